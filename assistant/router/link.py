"""The adapter's side of the channel: asks go out, events come back, broken connections heal."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

import msgspec

from assistant import log
from assistant.errors import AssistantError
from assistant.router.messages import (
    LINE_MAX,
    Ask,
    Cancel,
    Error,
    Event,
    Reply,
    encode,
    failure,
    read_event,
)

_BACKOFF = (0.05, 2.0)  # seconds: first and longest pause between two attempts
_QUEUE = 4096  # events that one slow client may be behind


class Router:
    """Carries asks to the executor over the Unix socket at `path`, reconnecting for ever."""

    def __init__(self, path: str, patience: float = 5.0) -> None:
        """`patience`: seconds that an ask waits for the executor to come back."""
        self._path = path
        self._patience = patience
        self._writer: asyncio.StreamWriter | None = None
        self._up = asyncio.Event()
        self._waiting: dict[str, asyncio.Queue[Event]] = {}

    async def keep_connected(self) -> None:
        """Connect, read events, and start over when the connection breaks; runs until cancelled."""
        pause = _BACKOFF[0]
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(self._path, limit=LINE_MAX)
            except OSError:
                await asyncio.sleep(pause)
                pause = min(pause * 2, _BACKOFF[1])
                continue
            log.line("executor_connected")
            self._writer = writer
            self._up.set()
            try:
                if await self._read(reader):
                    pause = _BACKOFF[0]
            finally:
                self._up.clear()
                self._writer = None
                writer.close()
                self._fail_all()
            await asyncio.sleep(pause)
            pause = min(pause * 2, _BACKOFF[1])

    async def ask(self, ask: Ask) -> AsyncGenerator[Event, None]:
        """Send `ask` and yield its events; the last one is a Reply or an Error.

        Closing the iterator early tells the executor to stop.
        """
        line = encode(ask) + b"\n"
        if len(line) > LINE_MAX:
            too_large = AssistantError(
                "message_too_large", "the message is too large", "send less", status=413
            )
            yield failure(ask.id, too_large)
            return
        queue: asyncio.Queue[Event] = asyncio.Queue()
        over = False
        try:
            async with asyncio.timeout(self._patience):
                await self._up.wait()
            self._waiting[ask.id] = queue
            await self._send(line)
            while not over:
                event = await queue.get()
                over = isinstance(event, Reply | Error)
                yield event
        except TimeoutError:
            over = True
            down = AssistantError(
                "executor_unavailable",
                "the workflow executor is not running",
                "try again later",
                status=503,
            )
            yield failure(ask.id, down)
        finally:
            if self._waiting.pop(ask.id, None) is not None and not over:
                await self._send(encode(Cancel(id=ask.id, kind="cancel")) + b"\n")

    async def _send(self, line: bytes) -> None:
        """Write one line; a broken connection is noticed, and reported, by the reading side."""
        if self._writer is not None:
            self._writer.write(line)
            with contextlib.suppress(ConnectionError):
                await self._writer.drain()

    async def _read(self, reader: asyncio.StreamReader) -> bool:
        """Hand out events until the connection ends; True when at least one came."""
        any_came = False
        while True:
            try:
                event = read_event(await reader.readuntil(b"\n"))
            except (asyncio.IncompleteReadError, ConnectionError):
                return any_came
            except (asyncio.LimitOverrunError, msgspec.DecodeError) as error:
                log.line("executor_garbled", error=type(error).__name__)
                return any_came
            any_came = True
            queue = self._waiting.get(event.id)
            if queue is None:
                continue
            if queue.qsize() >= _QUEUE:
                await self._drop(event.id, queue)
            else:
                queue.put_nowait(event)

    async def _drop(self, identity: str, queue: asyncio.Queue[Event]) -> None:
        """Give up a client that does not read, rather than hold back all the others."""
        self._waiting.pop(identity, None)
        while not queue.empty():
            queue.get_nowait()
        slow = AssistantError("client_too_slow", "the client reads too slowly", status=408)
        queue.put_nowait(failure(identity, slow))
        await self._send(encode(Cancel(id=identity, kind="cancel")) + b"\n")

    def _fail_all(self) -> None:
        restarted = AssistantError(
            "executor_restarted",
            "the workflow executor restarted",
            "send the message again with the same `run` to get the result",
            status=503,
        )
        for identity, queue in self._waiting.items():
            queue.put_nowait(failure(identity, restarted))
        self._waiting.clear()
