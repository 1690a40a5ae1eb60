"""What redacting the workloads' output costs: the pump with all rules, from a pipe to a file."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from proxy.egress import logs
from proxy.egress.guard import KeyGuard
from proxy.egress.keys import KeyRing
from proxy.egress.redaction import rules
from proxy.egress.redaction.hold import HoldBack
from proxy.egress.redaction.scan import Scanner
from tests.bench.figure import Figure
from tests.unit.egress.samples import SECRETS

_LINES = 20_000
_WORDS = ["request", "took", "handled", "worker", "started", "message", "page", "cache", "error"]


def output(secrets: bool) -> bytes:
    """Three megabytes of a service's log lines; with `secrets` every hundredth holds one."""
    draw = random.Random(5)  # the same lines in every run
    kept = [value for value in SECRETS.values() if "\n" not in value]
    lines = []
    for number in range(_LINES):
        words = " ".join(draw.choice(_WORDS) for _ in range(12))
        stamp = f"2026-11-24T20:00:{number % 60:02d}.{draw.randrange(10**6):06d}"
        tail = f"id={draw.getrandbits(64):016x} took={draw.random() * 9:.3f}s"
        if secrets and number % 100 == 0:
            tail += f" key {draw.choice(kept)}"
        lines.append(f"{stamp} INFO worker.{number % 7} {words} {tail}\n")
    return "".join(lines).encode()


async def _pumped(data: bytes, scanner: Scanner) -> float:
    """CPU seconds of this process for all of `data`."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    with tempfile.TemporaryFile() as file:
        lost: list[int] = []
        pump = logs.LogPump(
            "bench", read, os.dup(file.fileno()), scanner, KeyGuard(KeyRing()),
            HoldBack(scanner.book), lambda _who, _why, lines: lost.append(lines),
        )  # fmt: skip
        pump.start()
        began, at = time.process_time(), 0
        while at < len(data):
            with contextlib.suppress(BlockingIOError):
                at += os.write(write, data[at : at + 65536])
            await asyncio.sleep(0)
        os.close(write)
        while pump.open:
            await asyncio.sleep(0)
        spent = time.process_time() - began
        if lost or file.seek(0, os.SEEK_END) < len(data):
            raise RuntimeError("lines were lost: the figure would be of less work")
    return spent


def main() -> list[Figure]:
    """CPU seconds for 10 MB of output; the bound is 10 MB/s on one core."""
    rate, burst = logs.RATE, logs.BURST
    logs.RATE = logs.BURST = 1 << 40  # the flood limit is not what is measured
    try:
        scanner = Scanner(rules.load())
        figures = []
        for what, secrets, bound in (("plain", False, 1.0), ("1 % with a secret", True, None)):
            data = output(secrets)
            best = min(asyncio.run(_pumped(data, scanner)) for _ in range(3))
            figures.append(
                Figure(f"logs: 10 MB, {what}", best * 10e6 / len(data), "s CPU", bound=bound)
            )
        return figures
    finally:
        logs.RATE, logs.BURST = rate, burst


if __name__ == "__main__":
    for figure in main():
        print(*figure.row())
