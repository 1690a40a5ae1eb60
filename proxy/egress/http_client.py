"""One HTTP/1.1 connection to a model server, over a socket that the broker made.

RFC 9112. The parser is httptools (llhttp) in its strict mode, which refuses ambiguous framing such
as Content-Length beside Transfer-Encoding. A general client does far more for each request than
this proxy needs: cookies, redirects, proxies, sessions, the building of URLs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import httptools

HEAD_MAX = 16 * 1024
_FIELDS_MAX = 128
_BUFFER_MAX = 256 * 1024


class Broken(Exception):
    """The connection or what came over it is of no use; the message holds no data."""


class Response:
    """One answer. `headers`: names in lower case, values decoded as Latin-1, in their order."""

    __slots__ = (
        "_connection", "_deadline", "_done", "_error", "_last", "_loop", "_parts", "_size",
        "_timeout", "_timer", "_waiter", "headers", "status",
    )  # fmt: skip

    def __init__(self, connection: Connection, timeout: float) -> None:
        self.status = 0
        self.headers: list[tuple[str, str]] = []
        self._connection: Connection | None = connection
        self._loop = asyncio.get_running_loop()
        self._parts: list[bytes] = []
        self._size = 0
        self._done = False
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._timeout = timeout
        self._deadline = self._loop.time() + timeout
        self._last: float | None = None
        self._timer: asyncio.TimerHandle | None = self._loop.call_later(timeout, self._late)

    def header(self, name: str, default: str = "") -> str:
        """Return the value of the first header called `name`."""
        return next((value for known, value in self.headers if known == name), default)

    async def read(self) -> bytes:
        """Return what has arrived of the body, waiting for some; empty at its end.

        Raises Broken, and TimeoutError when nothing came for the connection's timeout.
        """
        while not self._parts:
            if self._error:
                raise self._error
            if self._done:
                return b""
            await self._wait()
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        if self._size > _BUFFER_MAX and self._connection:
            self._connection.resume()
        self._size = 0
        return data

    def end_within(self, seconds: float) -> None:
        """From now on, wait no longer than this for all of the rest together."""
        self._last = self._loop.time() + seconds

    def close(self) -> None:
        """Give the connection up if the answer has not come to its end."""
        if self._connection:
            self._connection.abort()

    async def head(self) -> None:
        """Wait for status and headers."""
        while not self.status and not self._error:
            await self._wait()
        if self._error:
            raise self._error

    def feed(self, data: bytes) -> None:
        """Take a piece of the body."""
        self._parts.append(data)
        self._size += len(data)
        if self._size > _BUFFER_MAX and self._connection:
            self._connection.pause()
        self.wake()

    def end(self, error: Exception | None = None) -> None:
        """The answer is complete, or will never be."""
        if self._done:
            return
        self._done, self._error, self._connection = True, error, None
        if self._timer:
            self._timer.cancel()
            self._timer = None
        self.wake()

    def wake(self) -> None:
        """Something has changed."""
        deadline = self._loop.time() + self._timeout
        self._deadline = deadline if self._last is None else min(deadline, self._last)
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _late(self) -> None:
        left = self._deadline - self._loop.time()
        if left > 0 or (self._parts and self._waiter is None):  # it is the client that is slow
            wait = left if left > 0 else self._timeout / 4
            self._timer = self._loop.call_later(wait, self._late)
        elif self._connection:
            connection = self._connection
            self.end(TimeoutError())
            connection.abort()


class Connection(asyncio.Protocol):
    """Sends one request at a time; `idle` is called whenever it is ready for the next."""

    def __init__(self, idle: Callable[[Connection], None]) -> None:
        self._idle = idle
        self._transport: asyncio.Transport | None = None
        self._response: Response | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._arrived = 0  # bytes, before the head was complete
        self._head_size = 0
        self._head_done = False
        self._framed = False  # the head says where the body ends

    @property
    def usable(self) -> bool:
        """True while the connection is open and no answer is under way."""
        return (
            self._transport is not None
            and self._response is None
            and not self._transport.is_closing()
        )

    async def ask(self, request: bytes | bytearray, timeout: float) -> Response:
        """Send `request`, whole; return the response once its head has come.

        Raises Broken and TimeoutError.
        """
        if not self.usable or self._transport is None:
            raise Broken("the connection is closed")
        self._reset()
        response = self._response = Response(self, timeout)
        self._transport.write(request)
        try:
            await response.head()
        except BaseException:
            self.abort()
            raise
        return response

    def abort(self) -> None:
        """Close at once."""
        if self._transport:
            self._transport.abort()

    def close(self) -> None:
        """Close an idle connection."""
        if self._transport:
            self._transport.close()

    def pause(self) -> None:
        """Read no further until `resume`."""
        if self._transport:
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._transport and not self._transport.is_closing():
            self._transport.resume_reading()

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """End the answer under way: well, if only the end of the connection could end it."""
        self._transport = None
        response, self._response = self._response, None
        if response:
            whole = exc is None and response.status and not self._framed
            response.end(None if whole else Broken("the connection was closed"))

    def data_received(self, data: bytes) -> None:
        """Parse; what is wrong, or comes unasked, ends the connection."""
        if self._response is None:
            self.abort()
            return
        if not self._head_done:
            self._arrived += len(data)
        try:
            self._parser.feed_data(data)
            if not self._head_done and self._arrived > HEAD_MAX:
                raise Broken("the head is too long")
        except (httptools.HttpParserError, httptools.HttpParserUpgrade, Broken):
            response, self._response = self._response, None
            if response:
                response.end(Broken("it is not HTTP as declared"))
            self.abort()

    # Called by the parser.

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header of the head; trailers are dropped."""
        if self._head_done or self._response is None:
            return
        lower = name.decode("latin-1").lower()
        self._framed = self._framed or lower in ("content-length", "transfer-encoding")
        self._response.headers.append((lower, value.decode("latin-1")))
        self._head_size += len(name) + len(value)
        if len(self._response.headers) > _FIELDS_MAX or self._head_size > HEAD_MAX:
            raise Broken("the head is too long")

    def on_headers_complete(self) -> None:
        """The head is there; that of a 1xx only announces another."""
        status = self._parser.get_status_code()
        if self._response is None:
            return
        if status < 200:
            self._response.headers.clear()
            self._framed = False
            return
        self._head_done = True
        self._response.status = status
        self._response.wake()

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        if self._response:
            self._response.feed(data)

    def on_message_complete(self) -> None:
        """The answer is whole: ready for the next, if the server keeps the connection."""
        if not self._head_done or self._response is None:
            return
        response, self._response = self._response, None
        keep = self._parser.should_keep_alive() and self._framed
        response.end()
        if keep and self._transport:
            self._transport.resume_reading()
            self._idle(self)
        else:
            self.close()

    def _reset(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._arrived = 0  # bytes, before the head was complete
        self._head_size = 0
        self._head_done = False
        self._framed = False
