"""What both proxies stand on: launch, audit, and the broker's client."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from proxy import launch
from proxy.dial import Broker, DialError, Status
from proxy.errors import LaunchError

# --- launch


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    def set_both(count: str, names: str) -> None:
        monkeypatch.setenv("LISTEN_FDS", count)
        monkeypatch.setenv("LISTEN_FDNAMES", names)
        monkeypatch.setenv("LISTEN_PID", "1")

    return set_both


def test_descriptors_by_name_are_closed_on_exec(
    env: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, write = os.pipe()
    os.set_inheritable(read, True)
    monkeypatch.setattr(launch, "FIRST", read)
    env("1", "channel.adapter.rest")
    assert launch.inherited() == {"channel.adapter.rest": read}
    assert not os.get_inheritable(read)
    assert not {"LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID"} & set(os.environ)
    os.close(read)
    os.close(write)


@pytest.mark.parametrize(
    ("count", "names"),
    [("", ""), ("x", "a"), ("-1", "a"), ("²", "a"), ("2", "a"), ("1", "a:b"), ("2", "0:0"),
     ("1", "a b"), ("1", ""), ("0", "a")],
)  # fmt: skip
def test_a_broken_hand_over(env: Callable[[str, str], None], count: str, names: str) -> None:
    env(count, names)
    with pytest.raises(LaunchError):
        launch.inherited()


def test_a_descriptor_that_is_not_open(
    env: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "FIRST", 9999)
    env("1", "audit")
    with pytest.raises(LaunchError, match="9999"):
        launch.inherited()


def test_missing_ones_are_named() -> None:
    assert launch.require({"a": 3, "b": 4}, "b", "a") == (4, 3)
    with pytest.raises(LaunchError, match="audit, broker"):
        launch.require({"config": 3}, "config", "audit", "broker")


def test_config_is_read_from_its_start_and_closed() -> None:
    fd = os.memfd_create("config")
    os.write(fd, b"x" * 200_000)
    assert launch.read_config(fd) == b"x" * 200_000
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_config_that_is_too_large_or_unreadable() -> None:
    fd = os.memfd_create("config")
    os.ftruncate(fd, launch.CONFIG_MAX + 1)
    with pytest.raises(LaunchError, match="larger"):
        launch.read_config(fd)
    read, write = os.pipe()
    with pytest.raises(LaunchError, match="cannot be read"):
        launch.read_config(read)
    os.close(write)


# --- dial


class BrokerSide:
    """The other end of the broker socket, driven by the test."""

    def __init__(self) -> None:
        self.client, self.sock = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(5)

    def ask(self) -> tuple[int, int, str]:
        data = self.sock.recv(300)
        number, op = struct.unpack_from("!IB", data)
        return number, op, data[5:].decode()

    def reply(self, number: int, status: int, reason: bytes = b"", *fds: int) -> None:
        socket.send_fds(self.sock, [struct.pack("!IB", number, status) + reason], list(fds))


@pytest.fixture
def side() -> Iterator[BrokerSide]:
    both = BrokerSide()
    yield both
    both.sock.close()
    both.client.close()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=100) as sock:
        yield sock


def connecting(port: int) -> socket.socket:
    sock = socket.socket()
    sock.setblocking(False)
    sock.connect_ex(("127.0.0.1", port))
    return sock


def open_fds() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def in_thread(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_many_dials_at_once_answered_out_of_order(
    side: BrokerSide, listener: socket.socket
) -> None:
    before = open_fds()

    def serve() -> None:
        asked = [side.ask() for _ in range(50)]
        for number, op, target in reversed(asked):
            assert op == 1
            if target.endswith("7"):
                side.reply(number, 1, b"not " + target.encode())
                continue
            with connecting(listener.getsockname()[1]) as sock:
                side.reply(number, 0, b"", sock.fileno())

    async def run() -> None:
        broker = Broker(side.client)
        results = await asyncio.gather(
            *(broker.dial(f"upstream.u{n}") for n in range(50)), return_exceptions=True
        )
        for number, got in enumerate(results):
            if number % 10 == 7:
                assert isinstance(got, DialError)
                assert (got.status, got.reason) == (1, f"not upstream.u{number}")
            else:
                assert isinstance(got, socket.socket)
                assert not got.getblocking()
                assert not os.get_inheritable(got.fileno())
                assert got.getpeername() == listener.getsockname()
                got.close()

    thread = in_thread(serve)
    asyncio.run(run())
    thread.join(5)
    assert not thread.is_alive()
    assert open_fds() == before


@pytest.mark.parametrize("status", [1, 2, 3, 4, 5])
def test_refusals_keep_status_and_reason(side: BrokerSide, status: int) -> None:
    def serve() -> None:
        side.reply(side.ask()[0], status, b"because")

    in_thread(serve)
    with pytest.raises(DialError, match="because") as caught:
        asyncio.run(Broker(side.client).dial("upstream.a"))
    assert caught.value.status == status


def test_a_connection_refused_later(side: BrokerSide, listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    listener.close()

    def serve() -> None:
        with connecting(port) as sock:
            side.reply(side.ask()[0], 0, b"", sock.fileno())

    in_thread(serve)
    with pytest.raises(DialError) as caught:
        asyncio.run(Broker(side.client).dial("upstream.a"))
    assert caught.value.status == Status.CONNECT_FAILED


def test_a_broker_that_says_nothing(side: BrokerSide) -> None:
    began = time.monotonic()
    with pytest.raises(DialError) as caught:
        asyncio.run(Broker(side.client, timeout=0.2).dial("upstream.a"))
    assert caught.value.status == Status.TIMED_OUT
    assert time.monotonic() - began < 2


def test_a_late_reply_leaks_no_descriptor(side: BrokerSide, listener: socket.socket) -> None:
    async def run() -> None:
        broker = Broker(side.client, timeout=0.1)
        with pytest.raises(DialError):
            await broker.dial("upstream.late")
        number, _, _ = side.ask()
        before = open_fds()
        with connecting(listener.getsockname()[1]) as sock:
            side.reply(number, 0, b"", sock.fileno())
        await asyncio.sleep(0.05)
        assert open_fds() == before

    asyncio.run(run())


@pytest.mark.parametrize("dialling", [True, False])
def test_a_broker_that_dies_is_told_once_and_a_closed_one_never(
    side: BrokerSide, dialling: bool
) -> None:
    told: list[str] = []

    async def run() -> None:
        broker = Broker(side.client)
        broker.watch(lambda: told.append("lost"))
        if dialling:
            asking = asyncio.create_task(broker.dial("upstream.x"))
            await asyncio.sleep(0.02)
        assert told == []
        side.sock.close()
        await asyncio.sleep(0.05)
        assert told == ["lost"]
        if dialling:
            assert isinstance(asking.exception(), DialError)
        broker.close()
        broker.watch(lambda: told.append("late"))
        assert told == ["lost", "late"]
        left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        closed = Broker(left)
        closed.watch(lambda: told.append("closed"))
        closed.close()
        await asyncio.sleep(0.02)
        right.close()

    asyncio.run(run())
    assert told == ["lost", "late"]


def test_a_broker_that_dies_fails_every_dial(side: BrokerSide) -> None:
    async def run() -> None:
        broker = Broker(side.client)
        dials = [asyncio.create_task(broker.dial(f"upstream.u{n}")) for n in range(5)]
        await asyncio.sleep(0.05)
        side.sock.close()
        for got in await asyncio.gather(*dials, return_exceptions=True):
            assert isinstance(got, DialError)
            assert got.status == Status.BROKER_GONE
        with pytest.raises(DialError) as caught:
            await broker.dial("upstream.again")
        assert caught.value.status == Status.BROKER_GONE

    asyncio.run(run())


@pytest.mark.parametrize("reply", [b"", b"\0", b"nonsense that is not a reply"])
def test_replies_that_are_none(side: BrokerSide, reply: bytes) -> None:
    def serve() -> None:
        number, _, _ = side.ask()
        side.sock.send(reply if reply else struct.pack("!IB", number, 0))

    in_thread(serve)
    with pytest.raises(DialError) as caught:
        asyncio.run(Broker(side.client, timeout=0.3).dial("upstream.a"))
    assert caught.value.status == (Status.TIMED_OUT if reply else Status.BAD_REPLY)


def test_too_many_descriptors_are_closed(side: BrokerSide, listener: socket.socket) -> None:
    def serve() -> None:
        with connecting(listener.getsockname()[1]) as sock:
            side.reply(side.ask()[0], 0, b"", *[sock.fileno()] * 3)

    before = open_fds()
    thread = in_thread(serve)
    with pytest.raises(DialError) as caught:
        asyncio.run(Broker(side.client).dial("upstream.a"))
    thread.join(5)
    assert caught.value.status == Status.BAD_REPLY
    assert open_fds() == before


@pytest.mark.parametrize("target", ["", "x" * 201])
def test_targets_that_cannot_be(side: BrokerSide, target: str) -> None:
    with pytest.raises(DialError):
        asyncio.run(Broker(side.client).dial(target))


def test_a_broker_that_is_slow_to_read_loses_nothing(
    side: BrokerSide, listener: socket.socket
) -> None:
    side.client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)

    def serve() -> None:
        time.sleep(0.2)
        for _ in range(200):
            number, _, target = side.ask()
            side.reply(number, 1, target.encode())

    async def run() -> None:
        broker = Broker(side.client)
        got = await asyncio.gather(
            *(broker.dial(f"upstream.u{n}") for n in range(200)), return_exceptions=True
        )
        assert [str(e.reason) for e in got if isinstance(e, DialError)] == [
            f"upstream.u{n}" for n in range(200)
        ]

    in_thread(serve)
    asyncio.run(run())
