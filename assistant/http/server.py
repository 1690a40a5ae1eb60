"""The server: bounded heads and bodies, keep-alive, and handlers that end when clients do."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import h11

from assistant import log
from assistant.errors import AssistantError
from assistant.http.exchange import Exchange, Request, Upgraded

Handler = Callable[[Exchange], Awaitable[None]]
Routes = Mapping[str, Mapping[str, Handler]]  # path -> method -> handler

_CHUNK = 65536


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes, counts and seconds that one server grants its clients."""

    head: int = 16384
    body: int = 1 << 20
    connections: int = 128
    head_seconds: float = 10.0
    body_seconds: float = 30.0
    idle_seconds: float = 75.0
    write_seconds: float = 30.0


class Server:
    """Listens on loopback and runs one handler per request."""

    def __init__(self, routes: Routes, limits: Limits | None = None) -> None:
        self.routes = routes
        self.limits = limits or Limits()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self, port: int) -> int:
        """Listen on 127.0.0.1:`port` (0: any) and return the port. Raises OSError."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", port, limit=_CHUNK)
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def serve_forever(self) -> None:
        """Serve until cancelled, then close the listener and every connection."""
        try:
            await asyncio.Event().wait()
        finally:
            if self._server:
                self._server.close()
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=1.0)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(
            self, reader, writer, full=len(self._tasks) >= self.limits.connections
        )
        task = asyncio.create_task(connection.run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Connection:
    """One TCP connection: requests in order until either side closes."""

    def __init__(
        self, server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, full: bool
    ) -> None:
        self._routes = server.routes
        self._limits = server.limits
        self._reader = reader
        self._writer = writer
        self._full = full
        self._watching: asyncio.Task[None] | None = None
        self._wire = h11.Connection(h11.SERVER, max_incomplete_event_size=server.limits.head)

    async def run(self) -> None:
        try:
            while (request := await self._receive()) is not None:
                if not await self._handle(request) or self._wire.our_state is not h11.DONE:
                    return
                self._wire.start_next_cycle()
        except (ConnectionError, TimeoutError, h11.LocalProtocolError):
            self._writer.transport.abort()
        finally:
            self._writer.close()

    async def _receive(self) -> Request | None:
        """The next request, or None when the connection is over (an error was already answered)."""
        try:
            return await self._read_request()
        except h11.RemoteProtocolError as error:
            status = error.error_status_hint  # 400, 431 or 501
            problem = (
                _head_too_large()
                if status == 431
                else AssistantError("bad_request", "no proper HTTP/1.1 request", status=status)
            )
        except TimeoutError:
            problem = AssistantError(
                "request_timeout", "the request did not arrive in time", status=408
            )
        except AssistantError as error:
            problem = error
        await self._refuse(problem)
        return None

    async def _read_request(self) -> Request | None:
        if not self._wire.trailing_data[0]:
            try:
                async with asyncio.timeout(self._limits.idle_seconds):
                    first = await self._reader.read(_CHUNK)
            except TimeoutError:
                return None
            self._wire.receive_data(first)
        async with asyncio.timeout(self._limits.head_seconds):
            head = await self._event()
        if not isinstance(head, h11.Request):
            return None
        # h11 bounds only heads that are still incomplete; one read can bring a larger whole one.
        if len(head.target) + sum(len(n) + len(v) + 4 for n, v in head.headers) > self._limits.head:
            raise _head_too_large()
        if self._full:
            raise AssistantError("busy", "too many connections", "try again later", status=503)
        async with asyncio.timeout(self._limits.body_seconds):
            return Request.of(head, await self._read_body(head))

    async def _read_body(self, head: h11.Request) -> bytes:
        limit = self._limits.body
        declared = next((value for name, value in head.headers if name == b"content-length"), b"0")
        if int(declared) > limit:  # h11 lets only digits through
            raise _too_large(limit)
        body = bytearray()
        while True:
            event = await self._event()
            if isinstance(event, h11.Data):
                body += event.data
                if len(body) > limit:
                    raise _too_large(limit)
            elif isinstance(event, h11.EndOfMessage):
                return bytes(body)
            else:
                raise ConnectionResetError

    async def _event(self) -> h11.Event | type[h11.PAUSED]:
        while (event := self._wire.next_event()) is h11.NEED_DATA:
            if self._wire.they_are_waiting_for_100_continue:
                go_on = h11.InformationalResponse(status_code=100, headers=[])
                self._writer.write(self._wire.send(go_on) or b"")
            self._wire.receive_data(await self._reader.read(_CHUNK))
        return event  # type: ignore[return-value]  # NEED_DATA is excluded by the loop

    async def _refuse(self, problem: AssistantError) -> None:
        """Answer and close; read on for a moment, or a reset would overtake the answer."""
        log.line("refused", code=problem.code, status=problem.status)
        if self._wire.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        await Exchange(Request.nothing(), self._send, self._upgrade).fail(problem, close=True)
        self._writer.write_eof()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                left = 4 << 20
                while left > 0 and (data := await self._reader.read(_CHUNK)):
                    left -= len(data)

    async def _handle(self, request: Request) -> bool:
        """Run the handler while watching the client; True when the connection can go on."""
        exchange = Exchange(request, self._send, self._upgrade)
        handler = asyncio.create_task(self._answer(exchange))
        self._watching = asyncio.create_task(self._watch(handler))
        try:
            return await handler
        except asyncio.CancelledError:
            ours = asyncio.current_task()
            if not handler.cancelled() or (ours and ours.cancelling()):
                raise
            log.line("client_gone", request=request.header("x-request-id")[:64])
            return False
        finally:
            handler.cancel()
            await self._stop_watching()
            with contextlib.suppress(asyncio.CancelledError):
                await handler

    async def _answer(self, exchange: Exchange) -> bool:
        methods = self._routes.get(exchange.request.path)
        try:
            if methods is None:
                raise AssistantError("not_found", "there is nothing at this path", status=404)
            handler = methods.get(exchange.request.method)
            if handler is None:
                await exchange.fail(
                    AssistantError("method_not_allowed", "this path has other methods", status=405),
                    headers=[("allow", ", ".join(methods))],
                )
                return True
            await handler(exchange)
        except AssistantError as error:
            await exchange.fail(error)
        except (ConnectionError, TimeoutError):
            raise
        except Exception as error:
            log.line("handler_failed", error=type(error).__name__)
            await exchange.fail(AssistantError("internal", "internal error", status=500))
        return not exchange.upgraded

    async def _watch(self, handler: asyncio.Task[bool]) -> None:
        """Cancel the handler when the client goes away; keep early bytes of its next request."""
        try:
            while data := await self._reader.read(_CHUNK):
                self._wire.receive_data(data)
                if len(self._wire.trailing_data[0]) > self._limits.head:
                    return  # it floods us: TCP holds back the rest
        except ConnectionError:
            pass
        handler.cancel()

    async def _stop_watching(self) -> None:
        if self._watching:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching
            self._watching = None

    async def _send(self, *events: h11.Event) -> None:
        for event in events:
            self._writer.write(self._wire.send(event) or b"")
        async with asyncio.timeout(self._limits.write_seconds):
            await self._writer.drain()

    async def _upgrade(self) -> Upgraded:
        await self._stop_watching()
        return Upgraded(self._reader, self._writer, self._wire.trailing_data[0])


def _head_too_large() -> AssistantError:
    return AssistantError("head_too_large", "the request head is too large", status=431)


def _too_large(limit: int) -> AssistantError:
    return AssistantError(
        "message_too_large", f"the body is over {limit} bytes", "send less", status=413
    )
