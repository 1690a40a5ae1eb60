"""Clients of benches, on raw sockets: what they cost is not counted, but they must not be slow."""

from __future__ import annotations

import json
import re
import selectors
import socket
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.bench.model_server import EVENTS, Clock
from tests.unit.egress.harness import PLACEHOLDER

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_EVENT = b"data: "


def request(*, stream: bool = False, token: str = PLACEHOLDER) -> bytes:
    """A completion request with a body of 2 KB."""
    text = "Please draft a short and friendly answer to this message of a customer. " * 27
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]
    body = json.dumps({"model": "llm-v1", "messages": messages, "stream": stream}).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {token}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@dataclass
class Way:
    """One way to the model: where it listens, the processes that it consists of, what was found.

    Times in seconds; `cost` is CPU of all its processes together for one request.
    """

    name: str
    address: tuple[str, int]
    pids: tuple[int, ...] = ()
    times: list[float] = field(default_factory=list)
    cost: float = 0.0

    def cpu(self) -> float:
        """Seconds of CPU that its processes have used, all threads that live."""
        total = 0
        for pid in self.pids:
            for task in Path(f"/proc/{pid}/task").iterdir():
                total += int((task / "schedstat").read_text().split()[0])
        return total / 1e9

    def p50(self) -> float:
        """Median of the times, in ms."""
        return statistics.median(self.times) * 1000

    def p99(self) -> float:
        """In ms."""
        return statistics.quantiles(self.times, n=100)[98] * 1000


def family(pid: int) -> tuple[int, ...]:
    """A process and all below it."""
    one = psutil.Process(pid)
    return (pid, *(child.pid for child in one.children(recursive=True)))


def complete(data: bytes) -> bool:
    """Whether it is a whole response. Raises RuntimeError unless it is a success."""
    head, mark, body = data.partition(b"\r\n\r\n")
    if not mark:
        return False
    if b" 200 " not in head.partition(b"\r\n")[0] + b" ":
        raise RuntimeError(f"a request failed: {data[:300]!r}")
    length = _LENGTH.search(head + b"\r\n")
    return len(body) == int(length[1]) if length else body.endswith(b"0\r\n\r\n")


def connect(address: tuple[str, int]) -> socket.socket:
    """A connection that sends at once."""
    sock = socket.create_connection(address, timeout=30)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def ask(sock: socket.socket, data: bytes) -> bytes:
    """One request and its whole response."""
    sock.sendall(data)
    answer = b""
    while not complete(answer):
        part = sock.recv(65536)
        if not part:
            raise RuntimeError(f"hung up after {answer[:300]!r}")
        answer += part
    return answer


def take_turns(ways: Sequence[Way], data: bytes, rounds: int, warm: int) -> None:
    """Ask each way once per round, so that other work on the machine meets all alike."""
    socks = [connect(way.address) for way in ways]
    for number in range(warm + rounds):
        for way, sock in zip(ways, socks, strict=True):
            began = time.perf_counter()
            ask(sock, data)
            if number >= warm:
                way.times.append(time.perf_counter() - began)
    for sock in socks:
        sock.close()


def saturate(way: Way, data: bytes, requests: int, clients: int = 8) -> float:
    """`clients` connections that never pause; the way's seconds of CPU for one request."""
    with selectors.DefaultSelector() as selector:
        for _ in range(clients):
            selector.register(connect(way.address), selectors.EVENT_READ, bytearray())
        before, sent, done = way.cpu(), 0, 0
        for key in list(selector.get_map().values()):
            key.fileobj.sendall(data)  # type: ignore[union-attr]  # our sockets
            sent += 1
        while done < requests:
            for key, _ in selector.select(30):
                part = key.fileobj.recv(65536)  # type: ignore[union-attr]
                if not part:
                    raise RuntimeError(f"{way.name} hung up")
                key.data.extend(part)
                if not complete(bytes(key.data)):
                    continue
                key.data.clear()
                done += 1
                if sent < requests:
                    key.fileobj.sendall(data)  # type: ignore[union-attr]
                    sent += 1
        cost = (way.cpu() - before) / requests
        for key in list(selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
    return cost


def delays(way: Way, data: bytes, clock: Clock) -> list[float]:
    """Seconds from the sending of each event of one stream to its arrival here."""
    found: list[float] = []
    with connect(way.address) as sock:
        sock.sendall(data)
        answer = b""
        while not complete(answer):
            part = sock.recv(65536)
            now = time.monotonic()
            if not part:
                raise RuntimeError(f"{way.name} hung up")
            answer += part
            while len(found) < min(EVENTS, answer.count(_EVENT)):
                found.append(now - clock.of(len(found)))
    return found
