"""One request and its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import h11
import msgspec

from assistant.errors import AssistantError

Headers = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Request:
    """What the client sent: head decoded as Latin-1, header names in lower case, body complete."""

    method: str
    path: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes = field(repr=False)

    @classmethod
    def of(cls, head: h11.Request, body: bytes) -> Request:
        target = head.target.decode("latin-1")
        headers = tuple((n.decode("latin-1"), v.decode("latin-1")) for n, v in head.headers)
        return cls(head.method.decode("latin-1"), target.partition("?")[0], target, headers, body)

    @classmethod
    def nothing(cls) -> Request:
        """Stands for a request that could not be read."""
        return cls("", "", "", (), b"")

    def header(self, name: str) -> str:
        """The first header of that (lower case) name, or an empty string."""
        return next((value for key, value in self.headers if key == name), "")


@dataclass(frozen=True, slots=True)
class Upgraded:
    """The bare connection after an upgrade, and bytes that came behind the request."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    early: bytes


class Exchange:
    """A request being answered: `reply` at once, or `start`, `write`..., `end`."""

    def __init__(
        self,
        request: Request,
        send: Callable[..., Awaitable[None]],
        upgrade: Callable[[], Awaitable[Upgraded]],
    ) -> None:
        self.request = request
        self.upgraded = False
        self.started = False
        self._send = send
        self._upgrade = upgrade

    async def reply(self, status: int, value: object, headers: Headers = ()) -> None:
        """Send `value` as JSON. Raises ConnectionError or TimeoutError when the client is stuck."""
        body = msgspec.json.encode(value)
        head = [("content-type", "application/json"), ("content-length", str(len(body))), *headers]
        self.started = True
        events: list[h11.Event] = [h11.Response(status_code=status, headers=head)]
        if self.request.method != "HEAD":
            events.append(h11.Data(data=body))
        await self._send(*events, h11.EndOfMessage())

    async def fail(self, error: AssistantError, headers: Headers = (), close: bool = False) -> None:
        """Send `error`; an answer already under way is cut off, so that nobody believes it."""
        if self.started:
            raise ConnectionAbortedError
        last = [("connection", "close")] if close else []
        await self.reply(error.status, error.body(), [*headers, *last])

    async def start(self, status: int, content_type: str) -> None:
        """Begin a chunked answer."""
        self.started = True
        head = [("content-type", content_type), ("cache-control", "no-store")]
        await self._send(h11.Response(status_code=status, headers=head))

    async def write(self, data: bytes) -> None:
        """Send one chunk and wait while the client is behind."""
        await self._send(h11.Data(data=data))

    async def end(self) -> None:
        """Finish a chunked answer."""
        await self._send(h11.EndOfMessage())

    async def upgrade(self) -> Upgraded:
        """Take the connection over; the caller closes it and notices when the client goes."""
        self.started = self.upgraded = True
        return await self._upgrade()
