"""A thousand streams at once through one egress proxy: is any lost, and what does each hold?

The model server sends every stream a token each tenth of a second, for five seconds; the streams
come from eight workloads, as one may have no more than 256 connections.
"""

from __future__ import annotations

import os
import resource
import selectors
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.bench.bench_egress import ours  # needs the path
from tests.bench.figure import Figure
from tests.bench.load import connect, request
from tests.bench.model_server import EVENTS, Choir
from tests.unit.egress.harness import Proxy

VOICES, WORKLOADS, PAUSE = 1000, 8, 0.1
PATIENCE = 60.0


def placeholders() -> dict[str, str]:
    """One workload's id -> its placeholder."""
    return {f"crowd-{n}": f"anchorhold-placeholder-{n:032x}" for n in range(WORKLOADS)}


def resident(pid: int) -> float:
    """KiB of memory that the process holds."""
    return float(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0])


def used(pid: int) -> float:
    """Seconds of CPU that the process has used. proc(5)"""
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def listen_all(proxy: Proxy) -> list[tuple[tuple[str, int], bytes]]:
    """Where each workload's requests go, and what they are."""
    for name in placeholders():
        proxy.listen(name)
    return [
        (proxy.listeners[name], request(stream=True, token=token))
        for name, token in placeholders().items()
    ]


def sing(proxy: Proxy) -> tuple[int, float, float]:
    """How many streams came complete, KiB of memory for each, seconds of CPU for all."""
    places = listen_all(proxy)
    pid = proxy.process.pid
    before, most, began = resident(pid), 0.0, used(pid)
    heard: list[bytearray] = [bytearray() for _ in range(VOICES)]
    with selectors.DefaultSelector() as selector:
        for number in range(VOICES):
            address, data = places[number % WORKLOADS]
            sock = connect(address)
            sock.sendall(data)
            selector.register(sock, selectors.EVENT_READ, heard[number])
        end = time.monotonic() + PATIENCE
        while selector.get_map() and time.monotonic() < end:
            for key, _ in selector.select(1.0):
                part = key.fileobj.recv(65536)  # type: ignore[union-attr]  # our sockets
                key.data.extend(part)
                if not part or key.data.endswith(b"0\r\n\r\n"):
                    selector.unregister(key.fileobj)
                    key.fileobj.close()  # type: ignore[union-attr]
            if len(selector.get_map()) == VOICES:
                most = max(most, resident(pid))
    whole = sum(
        data.count(b"data: ") == EVENTS + 1 and data.endswith(b"0\r\n\r\n") for data in heard
    )
    return whole, (most - before) / VOICES, used(pid) - began


def main() -> list[Figure]:
    """Measure; a lost stream is a failure, not a figure."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 16384), hard))
    choir = Choir(VOICES, PAUSE)
    common = {"digest": "d" * 64, "file": "crowd.toml", "body_max": 100_000, "concurrent": 1024,
              "timeout": 60.0}  # fmt: skip
    model = {"name": "llm-v1", "upstream": "practice", "rule": "models", "line": 1,
             "redact": "standard"}  # fmt: skip
    workloads = {
        name: {**common, "placeholder": token, "models": [model]}
        for name, token in placeholders().items()
    }
    with tempfile.TemporaryDirectory() as folder:
        try:
            with ours(choir.port, Path(folder), config={"workloads": workloads}) as proxy:
                whole, memory, seconds = sing(proxy)
        finally:
            choir.close()
    return [
        Figure(f"{VOICES} streams at once: lost", VOICES - whole, "", bound=0),
        Figure(f"{VOICES} streams at once: memory of each", memory, "KiB"),
        Figure(
            f"{VOICES} streams at once: CPU for one event", seconds / VOICES / EVENTS * 1e6, "µs"
        ),
    ]


if __name__ == "__main__":
    for figure in main():
        print(*figure.row(), sep="  ")
