"""The executor's side: who is asking, may it, and not too much at once."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from assistant import log
from assistant.errors import AssistantError, UnsupportedProtocol
from assistant.router.messages import (
    CONTENT_MAX,
    LINE_MAX,
    Ask,
    Cancel,
    Event,
    encode,
    failure,
    read_ask,
)

PREFIX = "channel."
Emit = Callable[[Event], Awaitable[None]]
Work = Callable[[str, Ask, Emit], Awaitable[Event]]  # (peer, ask, emit) -> Reply or Error


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much may run at once: for one workload, and for one of its clients."""

    per_peer: int = 16
    per_client: int = 8


@dataclass(slots=True)
class _Peer:
    """One workload, known by the socket it connects on."""

    identity: str
    per_client: Counter[str] = field(default_factory=Counter)
    running: int = 0

    def speaks(self, protocol: str) -> bool:
        """`adapter.rest` and `adapter.rest-internal` may say that they speak `rest`."""
        name = self.identity.rpartition(".")[2]
        return name == protocol or name.startswith(protocol + "-")


class Desk:
    """Accepts connections on the inherited channel sockets and runs what is asked."""

    def __init__(self, work: Work, bounds: Bounds | None = None) -> None:
        self._work = work
        self._bounds = bounds or Bounds()
        self._servers: list[asyncio.Server] = []

    async def open(self, identity: str, descriptor: int) -> None:
        """Accept on `descriptor`; whoever connects there is the workload `identity`."""
        peer = _Peer(identity)
        listener = socket.socket(fileno=descriptor)

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await _Connection(self._work, self._bounds, peer, reader, writer).run()

        self._servers.append(
            await asyncio.start_unix_server(connected, sock=listener, limit=LINE_MAX)
        )
        log.line("channel_open", peer=identity)

    def close(self) -> None:
        """Stop accepting."""
        for server in self._servers:
            server.close()


class _Connection:
    def __init__(
        self,
        work: Work,
        bounds: Bounds,
        peer: _Peer,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._work, self._bounds, self._peer = work, bounds, peer
        self._reader, self._writer = reader, writer
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Read lines until the adapter goes; its runs go on and their results are kept."""
        try:
            while True:
                message = read_ask(await self._reader.readuntil(b"\n"))
                if isinstance(message, Cancel):
                    if task := self._tasks.get(message.id):
                        task.cancel()
                else:
                    await self._take(message)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        except (AssistantError, asyncio.LimitOverrunError) as error:
            # The adapter itself speaks nonsense: whatever else it says is not worth reading.
            log.line("channel_garbled", peer=self._peer.identity, error=type(error).__name__)
            problem = (
                error
                if isinstance(error, AssistantError)
                else AssistantError("bad_message", f"a line is over {LINE_MAX} bytes", status=413)
            )
            await self._emit(failure("", problem))
        finally:
            self._writer.close()

    async def _take(self, ask: Ask) -> None:
        try:
            self._check(ask)
        except AssistantError as error:
            log.line("refused", request=ask.request, peer=self._peer.identity, code=error.code)
            await self._emit(failure(ask.id, error))
            return
        self._peer.running += 1
        self._peer.per_client[ask.client] += 1
        task = self._tasks[ask.id] = asyncio.create_task(self._run(ask))
        # Not a `finally` in _run: a task cancelled before its first step never enters it.
        task.add_done_callback(lambda _: self._done(ask))

    def _check(self, ask: Ask) -> None:
        if not self._peer.speaks(ask.protocol):
            raise UnsupportedProtocol(ask.protocol)
        if ask.id in self._tasks:
            raise AssistantError("bad_message", "this id is already in use", status=409)
        if len(ask.content.encode()) > CONTENT_MAX:
            raise AssistantError(
                "message_too_large",
                f"the message is over {CONTENT_MAX} bytes",
                "send less",
                status=413,
            )
        peer, bounds = self._peer, self._bounds
        if peer.running >= bounds.per_peer or peer.per_client[ask.client] >= bounds.per_client:
            raise AssistantError(
                "too_many_requests",
                "too many messages are being worked on",
                "try again later",
                status=429,
            )

    async def _run(self, ask: Ask) -> None:
        await self._emit(await self._work(self._peer.identity, ask, self._emit))

    def _done(self, ask: Ask) -> None:
        self._tasks.pop(ask.id, None)
        self._peer.running -= 1
        self._peer.per_client[ask.client] -= 1
        if not self._peer.per_client[ask.client]:
            del self._peer.per_client[ask.client]

    async def _emit(self, event: Event) -> None:
        """Send one line, waiting while the adapter is behind; silent once it has gone."""
        if not self._writer.is_closing():
            self._writer.write(encode(event) + b"\n")
            with contextlib.suppress(ConnectionError):
                await self._writer.drain()
