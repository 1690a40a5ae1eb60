"""What the egress proxy adds to one 2 KB completion, against the same request sent directly.

The two ways take turns, request by request, so that other work on the machine meets both alike.
Upstream, proxy and client are three processes; each connection is kept open.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.bench.figure import Figure  # needs the path
from tests.unit.egress.harness import PLACEHOLDER, Proxy, completion

REQUESTS = 600
WARM = 100
BOUND_MS = 1.0


class Direct:
    """A blocking upstream in a process of its own, so that it shares no interpreter with us."""

    def __init__(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        self.pid = os.fork()
        if self.pid == 0:
            serve(listener)
        listener.close()


def serve(listener: socket.socket) -> None:
    """Answer every request alike, one process per connection; never returns."""
    body = json.dumps(completion("Thank you. " * 20)).encode()
    answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
    while True:
        sock, _ = listener.accept()
        if os.fork():
            sock.close()
            continue
        listener.close()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while ask_whole(sock):
            sock.sendall(answer % (len(body), body))
        os._exit(0)


def ask_whole(sock: socket.socket) -> bytes:
    """Read one message with a content-length; empty at the end of the connection."""
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = sock.recv(65536)
        if not chunk:
            return b""
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    while len(body) < int(fields[b"content-length"]):
        body += sock.recv(65536)
    return head


def request() -> bytes:
    """A completion request with a body of 2 KB."""
    text = "Please draft a short and friendly answer to this message of a customer. " * 27
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]
    body = json.dumps({"model": "llm-v1", "messages": messages}).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {PLACEHOLDER}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def measure(address: tuple[str, int], other: tuple[str, int]) -> tuple[list[float], list[float]]:
    """Seconds of each request to the two addresses, taking turns."""
    data = request()
    found: tuple[list[float], list[float]] = ([], [])
    with socket.create_connection(address) as one, socket.create_connection(other) as two:
        for sock in (one, two):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(REQUESTS + WARM):
            for sock, times in zip((one, two), found, strict=True):
                began = time.perf_counter()
                sock.sendall(data)
                head = ask_whole(sock)
                times.append(time.perf_counter() - began)
                if b" 200 " not in head:
                    raise RuntimeError("a request failed")
    return found[0][WARM:], found[1][WARM:]


def main() -> list[Figure]:
    """Measure; the bound is the issue's: under 1 ms at the median."""
    upstream = Direct()
    with tempfile.TemporaryDirectory() as folder:
        proxy = Proxy(Path(folder), upstream)  # type: ignore[arg-type]  # only its port is used
        try:
            proxy.listen()
            proxy.unlock()
            direct, through = measure(
                ("127.0.0.1", upstream.port), next(iter(proxy.listeners.values()))
            )
            status = Path(f"/proc/{proxy.process.pid}/status").read_text()
        finally:
            proxy.close()
            os.kill(upstream.pid, 9)
            os.waitpid(upstream.pid, 0)
    one, two = statistics.median(direct) * 1000, statistics.median(through) * 1000
    memory = int(status.partition("VmRSS:")[2].split()[0]) / 1024
    return [
        Figure("proxy adds to a 2 KB request, p50", two - one, "ms", bound=BOUND_MS),
        Figure("2 KB request through the proxy, p50", two, "ms", one, "direct"),
        Figure("egress proxy after the run, RSS", memory, "MiB"),
    ]


if __name__ == "__main__":
    for figure in main():
        print(*figure.row(), sep="  ")
