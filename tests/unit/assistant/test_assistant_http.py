"""The HTTP server and client under clients and servers that misbehave."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable

import pytest
from assistant_house import Program, call

from assistant.errors import UsageError
from assistant.http.client import Client, ClientError
from assistant.http.exchange import Exchange
from assistant.http.server import Limits, Server


async def echo(exchange: Exchange) -> None:
    await exchange.reply(200, {"bytes": len(exchange.request.body)})


async def crash(exchange: Exchange) -> None:
    raise RuntimeError("secret words")


async def crash_later(exchange: Exchange) -> None:
    await exchange.start(200, "text/plain")
    await exchange.write(b"half")
    raise RuntimeError("secret words")


ROUTES = {"/echo": {"POST": echo}, "/crash": {"GET": crash}, "/later": {"GET": crash_later}}


def raw(data: bytes, limits: Limits | None = None, pause: float = 0.0) -> bytes:
    """Send `data` to a fresh server and return all that it answers until it hangs up."""

    async def run() -> bytes:
        server = Server(ROUTES, limits)
        port = await server.start(0)
        serving = asyncio.create_task(server.serve_forever())
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(data)
        await asyncio.sleep(pause)
        async with asyncio.timeout(5):
            answer = await reader.read()
        serving.cancel()
        return answer

    return asyncio.run(run())


POST = b"POST /echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (POST + b"content-length: 3\r\n\r\nabc", 200),
        (POST + b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", 200),
        (b"\x16\x03\x01\x02\x00\x01\x00", 400),
        (b"GET /echo HTTP/1.1\r\nbroken header\r\n\r\n", 400),
        (POST + b"content-length: 3\r\ncontent-length: 4\r\n\r\nabcd", 400),
        (POST + b"content-length: -1\r\n\r\n", 400),
        (POST + b"transfer-encoding: gzip\r\n\r\n", 501),
        (b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 20000 + b"\r\n\r\n", 431),
        (POST + b"content-length: 2000000\r\n\r\n", 413),
        (POST + b"content-length: 99999999999999999999\r\n\r\n", 413),
    ],
)
def test_the_status_fits_what_came(data: bytes, status: int) -> None:
    answer = raw(data)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert b"connection: close" in answer.lower()


def test_a_slow_head_and_a_slow_body_are_408() -> None:
    limits = Limits(head_seconds=0.1, body_seconds=0.1)
    assert raw(b"GET / HT", limits).startswith(b"HTTP/1.1 408")
    assert raw(POST + b"content-length: 9\r\n\r\nab", limits).startswith(b"HTTP/1.1 408")


def test_an_idle_connection_is_closed_silently() -> None:
    assert raw(b"", Limits(idle_seconds=0.1)) == b""


def test_expect_100_continue_is_answered() -> None:
    data = POST + b"content-length: 3\r\nexpect: 100-continue\r\n\r\n"
    limits = Limits(body_seconds=0.2)
    assert raw(data, limits).startswith(b"HTTP/1.1 100")


def test_pipelined_requests_are_answered_in_order_on_one_connection() -> None:
    one = b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"
    answer = raw(one % 1 + b"a" + one % 2 + b"bb" + POST + b"content-length: 3\r\n\r\nccc")
    assert [answer.find(b'{"bytes":%d}' % n) for n in (1, 2, 3)] == sorted(
        answer.index(b'{"bytes":%d}' % n) for n in (1, 2, 3)
    )


def test_a_crashing_handler_is_500_without_its_words_and_later_a_cut_stream() -> None:
    answer = raw(b"GET /crash HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 500")
    assert b"secret" not in answer
    with pytest.raises(ConnectionError):  # reset: nobody takes half an answer for a whole one
        cut = raw(b"GET /later HTTP/1.1\r\nhost: x\r\n\r\n", pause=0.1)
        assert b"0\r\n\r\n" not in cut
        raise ConnectionError


def test_connections_over_the_bound_get_503() -> None:
    async def run() -> bytes:
        server = Server(ROUTES, Limits(connections=1))
        port = await server.start(0)
        serving = asyncio.create_task(server.serve_forever())
        _, first = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.sleep(0.05)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(POST + b"content-length: 0\r\n\r\n")
        answer = await reader.read()
        first.close()
        serving.cancel()
        return answer

    assert asyncio.run(run()).startswith(b"HTTP/1.1 503")


def test_a_client_that_goes_away_cancels_the_handler() -> None:
    cancelled: list[bool] = []

    async def wait(exchange: Exchange) -> None:
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def run() -> float:
        server = Server({"/": {"GET": wait}})
        port = await server.start(0)
        serving = asyncio.create_task(server.serve_forever())
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await asyncio.sleep(0.05)
        begun = time.monotonic()
        writer.close()
        while not cancelled:
            await asyncio.sleep(0.005)
        serving.cancel()
        return time.monotonic() - begun

    assert asyncio.run(run()) < 1


async def _serve(answer: bytes) -> int:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    port: int = server.sockets[0].getsockname()[1]
    return port


def _post(answer: bytes, then: Callable[[Client], Awaitable[object]] | None = None) -> object:
    async def run() -> object:
        client = Client(f"http://127.0.0.1:{await _serve(answer)}/v1", seconds=2.0)
        async with client.post("/x", [], b"{}") as response:
            return await response.read()

    return asyncio.run(run())


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2000000\r\n\r\n" + b"x" * 2_000_000,
    ],
)
def test_the_client_turns_a_broken_answer_into_one_error(answer: bytes) -> None:
    with pytest.raises(ClientError) as caught:
        _post(answer)
    assert (caught.value.code, caught.value.status) == ("model_failed", 502)


def test_events_split_anywhere_arrive_whole() -> None:
    stream = b": note\r\ndata: one\r\n\r\ndata: a\ndata: b\n\nid: 7\ndata:two\n\ndata: cut off"

    async def run(size: int) -> list[bytes]:
        async def feed(exchange: Exchange) -> None:
            await exchange.start(200, "text/event-stream")
            for at in range(0, len(stream), size):
                await exchange.write(stream[at : at + size])
            await exchange.end()

        server = Server({"/v1/x": {"POST": feed}})
        port = await server.start(0)
        serving = asyncio.create_task(server.serve_forever())
        client = Client(f"http://127.0.0.1:{port}/v1/")
        async with client.post("/x", [], b"{}") as response:
            found = [event async for event in response.events()]
        client.close()
        serving.cancel()
        return found

    for size in (1, 2, 3, 7, 1000):
        assert asyncio.run(run(size)) == [b"one", b"a\nb", b"two"]


@pytest.mark.parametrize("base", ["https://x/v1", "127.0.0.1:80", "http://", "http://a:b/"])
def test_a_base_url_that_cannot_work_is_named(base: str) -> None:
    with pytest.raises(UsageError, match="base URL"):
        Client(base)


def test_a_half_sent_request_blocks_nobody(start: Callable[..., Program]) -> None:
    port = start("practice-model", "--port", "0").port
    stuck = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
    for client in stuck:
        client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost:")
    assert call(port, "GET", "/healthz")[0] == 200
    for client in stuck:
        client.close()
