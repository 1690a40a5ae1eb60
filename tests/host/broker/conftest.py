"""A real broker and real network namespaces. Root only; nothing here is simulated."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import struct
from collections.abc import Callable, Iterator

import pytest

from sandbox import broker, syscalls

BROKER_UID = 1879050990


class Room:
    """A network namespace with only `lo`, kept alive by a child of the test."""

    def __init__(self) -> None:
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                syscalls.unshare(syscalls.CLONE_NEWNET)
                sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                fcntl.ioctl(sock, 0x8914, struct.pack("16sh22x", b"lo", 0x1 | 0x40))  # up, running
                os.write(writer, b"1")
                signal.pause()
            finally:
                os._exit(1)
        os.close(writer)
        ready = os.read(reader, 1)
        os.close(reader)
        if ready != b"1":
            pytest.fail("could not make a network namespace")
        self.netns = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY)

    def close(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.netns)


@pytest.fixture
def handle() -> Iterator[broker.BrokerHandle]:
    if os.geteuid():
        pytest.fail("the host tier runs as root")
    started = broker.start(BROKER_UID)
    yield started
    started.close()


@pytest.fixture
def room() -> Iterator[Callable[[], Room]]:
    made: list[Room] = []

    def make() -> Room:
        made.append(Room())
        return made[-1]

    yield make
    for each in made:
        each.close()


class Dialler:
    """The client side of the wire format, raw, so that it can also be rude."""

    def __init__(self, handle: broker.BrokerHandle, name: str, targets: dict[str, object]) -> None:
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(10)
        with theirs:
            handle.client(name, targets, theirs)  # type: ignore[arg-type]  # tests pass bad ones too

    def send(self, number: int, target: bytes, operation: int = 1) -> None:
        self.sock.send(struct.pack("!IB", number, operation) + target)

    def receive(self) -> tuple[int, int, str, socket.socket | None]:
        raw, fds, _flags, _address = socket.recv_fds(self.sock, 512, 4)
        if not raw:
            raise EOFError
        number, status = struct.unpack_from("!IB", raw)
        made = socket.socket(fileno=fds[0]) if fds else None
        return number, status, raw[5:].decode("ascii"), made

    def dial(self, target: str) -> tuple[int, str, socket.socket | None]:
        self.send(7, target.encode())
        number, status, reason, made = self.receive()
        assert number == 7
        return status, reason, made


@pytest.fixture
def dialler(
    handle: broker.BrokerHandle,
) -> Iterator[Callable[[str, dict[str, object]], Dialler]]:
    made: list[Dialler] = []

    def make(name: str, targets: dict[str, object]) -> Dialler:
        made.append(Dialler(handle, name, targets))
        return made[-1]

    yield make
    for each in made:
        each.sock.close()
