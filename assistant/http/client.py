"""The client: POST with a JSON body, the answer whole or as server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import h11

from assistant.errors import AssistantError, UsageError

_CHUNK = 65536


class ClientError(AssistantError):
    """The server could not be reached, broke off, or sent too much."""


class Response:
    """An answer whose head has arrived; the body is read once, in whole or as events."""

    def __init__(self, connection: _Connection, status: int, limit: int, seconds: float) -> None:
        self.status = status
        self._connection = connection
        self._left = limit
        self._seconds = seconds

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives. Raises ClientError when it breaks off, stalls or is too large."""
        while data := await self._connection.data(self._seconds):
            self._left -= len(data)
            if self._left < 0:
                raise ClientError("model_failed", "the model's answer is too large", status=502)
            yield data

    async def read(self) -> bytes:
        """The whole body."""
        return b"".join([data async for data in self.chunks()])

    async def events(self) -> AsyncIterator[bytes]:
        """The `data` of each server-sent event (WHATWG HTML, 9.2.6; other fields are ignored)."""
        rest = b""
        event: list[bytes] = []
        async for chunk in self.chunks():
            *lines, rest = (rest + chunk).replace(b"\r\n", b"\n").split(b"\n")
            for line in lines:
                if line.startswith(b"data:"):
                    event.append(line[5:].removeprefix(b" "))
                elif not line and event:
                    yield b"\n".join(event)
                    event = []


class Client:
    """Speaks to one plain HTTP origin and keeps a few idle connections."""

    def __init__(
        self, base: str, *, seconds: float = 120.0, body_max: int = 1 << 20, idle: int = 4
    ) -> None:
        """`base` is `http://HOST[:PORT][/PATH]`. Raises UsageError for anything else."""
        scheme, separator, rest = base.partition("://")
        authority, _, path = rest.partition("/")
        host, _, port = authority.partition(":")
        if scheme != "http" or not separator or not host or not (port or "80").isdigit():
            raise UsageError(f"not a usable base URL: {base!r}", "give http://HOST:PORT/PATH")
        self._host, self._port = host, int(port or "80")
        self._authority = authority
        self._path = "/" + path.strip("/") if path.strip("/") else ""
        self._seconds, self._body_max, self._keep = seconds, body_max, idle
        self._idle: list[_Connection] = []

    @contextlib.asynccontextmanager
    async def post(
        self, path: str, headers: Sequence[tuple[str, str]], body: bytes
    ) -> AsyncIterator[Response]:
        """Send `body` to `path` under the base; leaving the block early closes the connection.

        Raises ClientError (status 502 or 504).
        """
        connection = await self._connection()
        head = [
            ("host", self._authority),
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            *headers,
        ]
        try:
            request = h11.Request(method="POST", target=self._path + path, headers=head)
            status = await connection.send(request, body, self._seconds)
            yield Response(connection, status, self._body_max, self._seconds)
        finally:
            if connection.reusable() and len(self._idle) < self._keep:
                self._idle.append(connection)
            else:
                connection.close()

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().close()

    async def _connection(self) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.alive():
                return connection
            connection.close()
        try:
            async with asyncio.timeout(10.0):
                streams = await asyncio.open_connection(self._host, self._port, limit=_CHUNK)
        except (OSError, TimeoutError) as error:
            raise ClientError(
                "model_unreachable", "no connection to the model", "is the proxy up?", status=502
            ) from error
        return _Connection(*streams)


class _Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._wire = h11.Connection(h11.CLIENT)

    async def send(self, request: h11.Request, body: bytes, seconds: float) -> int:
        """Send one request, wait for the head of the answer, and return its status."""
        data = [
            self._wire.send(event) for event in (request, h11.Data(data=body), h11.EndOfMessage())
        ]
        self._writer.write(b"".join(part or b"" for part in data))
        while True:
            event = await self._event(seconds)
            if isinstance(event, h11.Response):
                return event.status_code
            if not isinstance(event, h11.InformationalResponse):
                raise _broken()

    async def data(self, seconds: float) -> bytes:
        """The next piece of the body; empty at its end."""
        event = await self._event(seconds)
        if isinstance(event, h11.Data):
            return bytes(event.data)
        if isinstance(event, h11.EndOfMessage):
            return b""
        raise _broken()

    async def _event(self, seconds: float) -> object:
        try:
            async with asyncio.timeout(seconds):
                await self._writer.drain()
                while (event := self._wire.next_event()) is h11.NEED_DATA:
                    self._wire.receive_data(await self._reader.read(_CHUNK))
                return event
        except TimeoutError as error:
            raise ClientError(
                "model_timeout", "the model did not answer in time", status=504
            ) from error
        except (h11.RemoteProtocolError, OSError) as error:
            raise _broken() from error

    def alive(self) -> bool:
        """Whether an idle connection is still open, as far as this side has heard."""
        return not self._reader.at_eof() and not self._writer.is_closing()

    def reusable(self) -> bool:
        """Start the next cycle if the last one ended cleanly."""
        if self._wire.our_state is h11.DONE and self._wire.their_state is h11.DONE and self.alive():
            self._wire.start_next_cycle()
            return True
        return False

    def close(self) -> None:
        self._writer.close()


def _broken() -> ClientError:
    return ClientError("model_failed", "the connection to the model broke off", status=502)
