"""One HTTP/1.1 connection of a workload: requests come in, answers go out, all within limits.

RFC 9112. The parser is httptools (llhttp) in its strict mode, as for the other side of the proxy:
it refuses ambiguous framing. A general server builds for each request what some framework wants of
it; this one hands the exchange just what it reads, which is a quarter less work for each request.
"""

from __future__ import annotations

import asyncio
import http
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import cast

import httptools

HEAD_MAX = 32 * 1024
HEAD_TIME, IDLE_TIME = 10.0, 60.0
CONNECTIONS_MAX = 256
_BUFFER_MAX = 64 * 1024
_CHECK = 2.0  # how late a deadline may be noticed
_PHRASES = {int(status): status.phrase.encode("ascii") for status in http.HTTPStatus}
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_CLOSING = b"HTTP/1.1 %d \r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_CLOSE = (b"connection", b"close")

Headers = list[tuple[bytes, bytes]]


class ClientGone(Exception):
    """The workload closed its connection; nothing is left to answer."""


class _HeadTooLong(Exception):
    pass


class Request:
    """One request and its answer. `path` and `query` are as they were sent, header names lower.

    An answer is one `answer`, or `start`, any number of `write`, and `end`. `task` serves it.
    """

    __slots__ = (
        "_chunked", "_connection", "_out", "_parts", "_size", "_waiter", "asks_to_go_on",
        "begun", "ended", "gone", "headers", "keep", "method", "path", "query", "task",
        "version", "watched", "whole",
    )  # fmt: skip

    def __init__(self, connection: Connection) -> None:
        self.method = self.version = ""
        self.path = self.query = b""
        self.headers: Headers = []
        self.whole = False  # the body has arrived
        self.begun = self.ended = False  # the answer
        self.gone = False
        self.watched = False  # the task is cancelled when the client goes
        self.keep = True  # the connection, after this
        self.asks_to_go_on = False
        self.task: asyncio.Task[None] | None = None
        self._connection = connection
        self._parts: list[bytes] = []
        self._size = 0
        self._waiter: asyncio.Future[None] | None = None
        self._out: list[bytes] = []  # not sent yet
        self._chunked = False

    async def read(self) -> bytes:
        """Return what has arrived of the body, waiting for some; empty at its end.

        Raises ClientGone.
        """
        if self.asks_to_go_on and not self._parts and not self.whole and not self.begun:
            self._connection.write(_CONTINUE)
        self.asks_to_go_on = False
        while not self._parts:
            if self.gone:
                raise ClientGone
            if self.whole:
                return b""
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self._size = 0
        self._connection.read_or_not()
        return data

    def answer(self, status: int, headers: Headers, body: bytes) -> None:
        """Answer at once."""
        size = str(len(body)).encode("ascii")
        self._begin(status, [*headers, (b"content-length", size)])
        if self.method != "HEAD":
            self._out.append(body)
        self._finish()

    def start(self, status: int, headers: Headers) -> None:
        """Begin an answer whose length is not known yet."""
        self._chunked = self.version == "1.1"
        how = (b"transfer-encoding", b"chunked") if self._chunked else _CLOSE
        self._begin(status, [*headers, how])
        asyncio.get_running_loop().call_soon(self._flush)

    async def write(self, data: bytes) -> None:
        """Send a piece of the body, not empty, as soon as the client takes it."""
        await self._connection.writable()
        if not self._out:
            # What is written in one turn of the loop is sent together: each send wakes the client.
            asyncio.get_running_loop().call_soon(self._flush)
        self._out.append(self._framed(data))

    def end(self, data: bytes = b"") -> None:
        """Send the last of the body."""
        if data:
            self._out.append(self._framed(data))
        if self._chunked:
            self._out.append(b"0\r\n\r\n")
        self._finish()

    def took(self, data: bytes) -> bool:
        """Take a piece of the body; False when that is much."""
        if not self.ended:
            self._parts.append(data)
            self._size += len(data)
            self.wake()
        return self._size <= _BUFFER_MAX

    @property
    def full(self) -> bool:
        """True while more waits to be read than should."""
        return self._size > _BUFFER_MAX

    def lose(self) -> None:
        """The connection is no more."""
        self.gone = True
        self.wake()
        if self.watched and self.task is not None:
            self.task.cancel()

    def wake(self) -> None:
        """Something has changed for who reads."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _begin(self, status: int, headers: Headers) -> None:
        if self.begun:
            raise RuntimeError("the answer has begun")
        self.begun = True
        self.keep = self.keep and _CLOSE not in headers
        if not self.keep and _CLOSE not in headers:
            headers = [*headers, _CLOSE]
        head = b"".join([name + b": " + value + b"\r\n" for name, value in headers])
        if head.count(b"\n") != len(headers) or head.count(b"\r") != len(headers):
            raise ValueError("a header would end its line")
        phrase = _PHRASES.get(status, b"")  # providers have statuses of their own
        self._out.append(b"HTTP/1.1 %d %s\r\n%s\r\n" % (status, phrase, head))

    def _framed(self, data: bytes) -> bytes:
        if self.method == "HEAD":
            return b""
        return b"%x\r\n%s\r\n" % (len(data), data) if self._chunked else data

    def _flush(self) -> None:
        if self._out:
            self._connection.write(b"".join(self._out))
            self._out.clear()

    def _finish(self) -> None:
        self._flush()
        self.ended = True
        self._connection.finished(self)


Serve = Callable[[Request], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Peers:
    """The open connections of one listening socket, and what is being answered on them."""

    serve: Serve
    connections: set[Connection] = field(default_factory=set)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)


class Connection(asyncio.Protocol):
    """One connection; requests that come before the last is answered wait."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._request: Request | None = None  # being answered
        self._arriving: Request | None = None
        self._waiting: deque[Request] = deque()
        self._url = b""
        self._head = 0  # bytes that came before a head was complete
        self._fields = 0  # bytes of its headers
        self._deadline: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._held: asyncio.Future[None] | None = None  # while the client does not take more
        self._deaf = False  # nothing further is taken from the client
        self._paused = False

    def shutdown(self) -> None:
        """Close as soon as nothing is being answered."""
        if self._request is None:
            self._close()
        else:
            self._request.keep = False

    # What requests need.

    def write(self, data: bytes) -> None:
        """Send."""
        if self._transport is not None:
            self._transport.write(data)

    async def writable(self) -> None:
        """Wait until the client has taken most of what was sent."""
        while self._held is not None:
            await asyncio.shield(self._held)

    def read_or_not(self) -> None:
        """Read on, unless more has arrived than is being worked on."""
        full = self._arriving is not None and self._arriving.full
        hold = self._deaf or full or bool(self._waiting)
        if hold is self._paused or self._transport is None or self._transport.is_closing():
            return
        self._paused = hold
        if hold:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def finished(self, request: Request) -> None:
        """The answer is sent: serve the next, or wait for it."""
        self._request = None
        if not request.keep or not request.whole or self._deaf:
            self._close()
        elif self._waiting:
            self._serve(self._waiting.popleft())
            self.read_or_not()
        elif self._arriving is None:
            self._deadline = self._loop.time() + IDLE_TIME

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Close at once what exceeds the number of connections a workload may have."""
        self._transport = cast(asyncio.Transport, transport)
        self._peers.connections.add(self)
        if len(self._peers.connections) > CONNECTIONS_MAX:
            self._transport.abort()
            return
        self._deadline = self._loop.time() + HEAD_TIME
        self._timer = self._loop.call_later(_CHECK, self._check)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell who works on a request."""
        self._transport = None
        self._peers.connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        self.resume_writing()
        for request in {self._request, self._arriving}:
            if request is not None:
                request.lose()
        self._waiting.clear()

    def data_received(self, data: bytes) -> None:
        """Parse; what is not HTTP ends the connection."""
        if self._deaf:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._ignore_the_rest()
        except httptools.HttpParserError as error:
            self._refuse(431 if isinstance(error.__context__, _HeadTooLong) else 400)
        else:
            if self._deadline is not None:
                self._head += len(data)
                if self._head > HEAD_MAX:
                    self._refuse(431)

    def pause_writing(self) -> None:
        """The client is slow."""
        self._held = self._loop.create_future()

    def resume_writing(self) -> None:
        """It has caught up, or is gone."""
        held, self._held = self._held, None
        if held is not None:
            held.set_result(None)

    # Called by the parser.

    def on_message_begin(self) -> None:
        """A head begins."""
        self._arriving, self._url = Request(self), b""
        self._head = self._fields = 0
        self._deadline = self._loop.time() + HEAD_TIME

    def on_url(self, url: bytes) -> None:
        """A piece of the target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, of which trailers are dropped."""
        request = self._arriving
        if request is None or self._deadline is None:
            return
        self._fields += len(name) + len(value)
        if self._fields > HEAD_MAX:
            raise _HeadTooLong
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            request.asks_to_go_on = True
        request.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The head is complete; from here on the exchange's limits hold."""
        self._deadline, self._head = None, 0
        request = self._arriving
        if request is None:
            return
        url = httptools.parse_url(self._url)
        request.path, request.query = url.path or b"", url.query or b""
        request.method = self._parser.get_method().decode("ascii")
        request.version = self._parser.get_http_version()
        request.keep = request.version == "1.1" and self._parser.should_keep_alive()
        if self._request is None:
            self._serve(request)
        else:
            self._waiting.append(request)
            self.read_or_not()

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        if self._arriving is not None and not self._arriving.took(data):
            self.read_or_not()

    def on_message_complete(self) -> None:
        """The body is whole."""
        request, self._arriving = self._arriving, None
        if request is not None:
            request.whole = True
            request.wake()

    def _serve(self, request: Request) -> None:
        self._request = request
        request.task = task = self._loop.create_task(self._answered(request))
        self._peers.tasks.add(task)
        task.add_done_callback(self._peers.tasks.discard)

    async def _answered(self, request: Request) -> None:
        try:
            await self._peers.serve(request)
        except ClientGone:
            pass
        finally:
            if not request.ended and self._transport is not None:  # a defect, or our own end
                if not request.begun:
                    self.write(_CLOSING % 503)
                    self._close()
                else:  # half an answer must not look like a whole one
                    self._transport.abort()

    def _check(self) -> None:
        if self._deadline is not None and self._loop.time() >= self._deadline:
            self._close()
        else:
            self._timer = self._loop.call_later(_CHECK, self._check)

    def _refuse(self, status: int) -> None:
        """Answer what never became a request; one that is being answered gets its answer."""
        self._ignore_the_rest()
        if self._request is None or (self._request is self._arriving and not self._request.begun):
            self.write(_CLOSING % status)
            self._close()

    def _ignore_the_rest(self) -> None:
        self._deaf = True
        self.read_or_not()

    def _close(self) -> None:
        self._deadline = None
        if self._transport is not None:
            self._transport.close()
