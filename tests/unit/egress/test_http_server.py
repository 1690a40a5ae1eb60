"""The server's side of the egress proxy: framing, order, limits, and clients that go away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from proxy.egress import http_server
from proxy.egress.http_server import ClientGone, Connection, Peers, Request

Serve = Callable[[Request], Awaitable[None]]
POST = b"POST /a?b=c HTTP/1.1\r\nhost: x\r\n"


async def echo(request: Request) -> None:
    body = bytearray()
    while part := await request.read():
        body += part
    said = f"{request.method} {request.path.decode()} {request.query.decode()} ".encode()
    request.answer(200, [(b"x-it", b"1")], said + body)


@contextlib.asynccontextmanager
async def serving(
    serve: Serve = echo,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter, Peers]]:
    """A client's end of a connection to `serve`."""
    peers = Peers(serve)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(peers), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    try:
        yield reader, writer, peers
    finally:
        writer.close()
        server.close()


async def answer(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Head and body of an answer that says its length."""
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return head, await reader.readexactly(length)


async def asked(data: bytes, serve: Serve = echo) -> bytes:
    """All that comes back for `data` until the server closes."""
    async with serving(serve) as (reader, writer, _):
        writer.write(data)
        return await asyncio.wait_for(reader.read(), 10)


def test_requests_in_a_row_and_in_pieces_are_answered_in_order_on_one_connection() -> None:
    async def scene() -> None:
        async with serving() as (reader, writer, _):
            two = POST + b"content-length: 2\r\n\r\nhi" + b"GET /z HTTP/1.1\r\nhost: x\r\n\r\n"
            writer.write(two)
            head, body = await answer(reader)
            assert head.startswith(b"HTTP/1.1 200 OK\r\nx-it: 1\r\n")
            assert body == b"POST /a b=c hi"
            assert (await answer(reader))[1] == b"GET /z  "
            for byte in two:
                writer.write(bytes([byte]))
                await writer.drain()
            assert (await answer(reader))[1] == b"POST /a b=c hi"
            assert (await answer(reader))[1] == b"GET /z  "
            chunked = b"transfer-encoding: chunked\r\n\r\n1\r\nh\r\n1\r\ni\r\n0\r\nx: y\r\n\r\n"
            writer.write(POST + chunked)
            assert (await answer(reader))[1] == b"POST /a b=c hi"

    asyncio.run(scene())


def test_who_waits_for_leave_to_send_gets_it_when_the_body_is_wanted() -> None:
    async def scene() -> None:
        async with serving() as (reader, writer, _):
            writer.write(POST + b"expect: 100-continue\r\ncontent-length: 2\r\n\r\n")
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(b"hi")
            assert (await answer(reader))[1] == b"POST /a b=c hi"

    async def unwilling(request: Request) -> None:
        request.answer(413, [], b"")

    asyncio.run(scene())
    refused = asked(POST + b"expect: 100-continue\r\ncontent-length: 2\r\n\r\n", unwilling)
    assert asyncio.run(refused).startswith(b"HTTP/1.1 413 ")


def test_an_answer_without_a_length_is_chunked_or_ends_with_the_connection() -> None:
    async def slowly(request: Request) -> None:
        request.start(200, [])
        for word in (b"one ", b"two "):
            await request.write(word)
            await asyncio.sleep(0.01)
        request.end(b"three")

    close = b"connection: close\r\n\r\n"
    newer = asyncio.run(asked(b"GET / HTTP/1.1\r\nhost: x\r\n" + close, slowly))
    assert newer.endswith(b"\r\n\r\n4\r\none \r\n4\r\ntwo \r\n5\r\nthree\r\n0\r\n\r\n")
    assert b"transfer-encoding: chunked" in newer
    older = asyncio.run(asked(b"GET / HTTP/1.0\r\n\r\n", slowly))
    assert older.endswith(b"\r\n\r\none two three")
    assert b"chunked" not in older
    head = asyncio.run(asked(b"HEAD / HTTP/1.1\r\nhost: x\r\n" + close))
    assert head.endswith(b"\r\n\r\n"), "a length, and no body"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\n", b"400"),
        (POST + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", b"400"),
        (POST + b"content-length: 2\r\ncontent-length: 3\r\n\r\nhi", b"400"),
        (POST + b"transfer-encoding: chunked\r\n\r\nzz\r\n", b"400"),
        (POST + b"x: " + b"a" * 40_000 + b"\r\n\r\n", b"431"),
    ],
)
def test_what_is_not_http_is_refused_and_closed(data: bytes, status: bytes) -> None:
    assert asyncio.run(asked(data)).split(b" ")[1] == status


def test_what_follows_an_upgrade_is_no_request() -> None:
    data = b"GET /z HTTP/1.1\r\nhost: x\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n"
    said = asyncio.run(asked(data + b"GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n"))
    assert said.count(b"HTTP/1.1 ") == 1
    assert b"smuggled" not in said


def test_a_body_that_nobody_read_ends_the_connection() -> None:
    async def unread(request: Request) -> None:
        request.answer(404, [], b"no")

    said = asyncio.run(asked(POST + b"content-length: 9\r\n\r\nhi", unread))
    assert said.startswith(b"HTTP/1.1 404 Not Found\r\n")


def test_a_slow_head_and_an_idle_connection_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "_CHECK", 0.05)
    monkeypatch.setattr(http_server, "HEAD_TIME", 0.2)
    assert asyncio.run(asked(b"GET / HT")) == b""
    monkeypatch.setattr(http_server, "IDLE_TIME", 0.2)
    said = asyncio.run(asked(b"GET /z HTTP/1.1\r\nhost: x\r\n\r\n"))
    assert said.endswith(b"GET /z  "), "the control: a request in time is answered before"


def test_a_workload_has_only_so_many_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "CONNECTIONS_MAX", 1)

    async def scene() -> None:
        async with serving() as (reader, writer, peers):
            writer.write(b"GET /z HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await answer(reader))[1] == b"GET /z  "
            second = Connection(peers)
            transport, _ = await asyncio.get_running_loop().create_connection(
                lambda: second, *writer.get_extra_info("peername")
            )
            while not transport.is_closing():
                await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(scene(), 10))


@pytest.mark.parametrize("watched", [False, True])
def test_a_client_that_goes_is_noticed(watched: bool) -> None:
    ends: list[str] = []

    async def waiting(request: Request) -> None:
        request.watched = watched
        try:
            if watched:
                await asyncio.sleep(30)
            while await request.read():
                pass
        except ClientGone:
            ends.append("gone")
        except asyncio.CancelledError:
            ends.append("cancelled")
        await request.write(b"into the void")

    async def scene() -> None:
        async with serving(waiting) as (_, writer, peers):
            writer.write(POST + b"content-length: 9\r\n\r\nhi")
            while not peers.tasks:
                await asyncio.sleep(0.01)
            writer.close()
            while peers.tasks:
                await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(scene(), 10))
    assert ends == ["cancelled" if watched else "gone"]


def test_a_client_that_does_not_read_holds_up_only_its_own_answer() -> None:
    written = 0

    async def flood(request: Request) -> None:
        nonlocal written
        request.start(200, [])
        for _ in range(4096):
            await request.write(bytes(16384))
            written += 1
            await asyncio.sleep(0)
        request.end()

    async def scene() -> None:
        async with serving(flood) as (reader, writer, _):
            writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            before = -1
            while written != before:
                before = written
                await asyncio.sleep(0.2)
            assert 0 < written < 4096
            size = 0
            while size < 4096 * 16384:
                size += len(await reader.read(1 << 20))
            assert written == 4096

    asyncio.run(asyncio.wait_for(scene(), 30))


def test_a_client_that_sends_much_is_read_no_faster_than_its_body_is_wanted() -> None:
    go = asyncio.Event()

    async def later(request: Request) -> None:
        await go.wait()
        size = 0
        while part := await request.read():
            size += len(part)
        request.answer(200, [], str(size).encode())

    async def scene() -> None:
        async with serving(later) as (reader, writer, _):
            size = 32 << 20
            writer.write(POST + b"content-length: %d\r\n\r\n" % size)
            writer.write(bytes(size))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(writer.drain(), 0.5)
            go.set()
            assert (await answer(reader))[1] == str(size).encode()

    asyncio.run(asyncio.wait_for(scene(), 30))


def test_at_the_end_idle_connections_close_and_answers_are_finished() -> None:
    go = asyncio.Event()

    async def later(request: Request) -> None:
        await go.wait()
        request.answer(200, [], b"done")

    async def scene() -> None:
        async with serving(later) as (reader, writer, peers):
            writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            while not peers.tasks:
                await asyncio.sleep(0.01)
            for connection in peers.connections:
                connection.shutdown()
            go.set()
            assert (await reader.read()).endswith(b"connection: close\r\n\r\ndone")

    asyncio.run(asyncio.wait_for(scene(), 10))


def test_a_defect_answers_503_and_never_half_an_answer() -> None:
    async def broken(request: Request) -> None:
        raise LookupError

    async def half(request: Request) -> None:
        request.start(200, [])
        await request.write(b"half")
        await asyncio.sleep(0.01)
        raise LookupError

    async def quiet(serve: Serve) -> bytes:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        with contextlib.suppress(ConnectionResetError):
            return await asked(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", serve)
        return b"reset"

    assert asyncio.run(quiet(broken)).startswith(b"HTTP/1.1 503 ")
    assert not asyncio.run(quiet(half)).endswith(b"0\r\n\r\n")


def test_a_header_cannot_end_its_line() -> None:
    async def injecting(request: Request) -> None:
        with pytest.raises(ValueError, match="end its line"):
            request.answer(200, [(b"a", b"b\r\nset-cookie: c")], b"")
        request.begun = False
        request.answer(200, [(b"a", b"b")], b"")

    said = asyncio.run(asked(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", injecting))
    assert said.startswith(b"HTTP/1.1 200 OK\r\na: b\r\n")
