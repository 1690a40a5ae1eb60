"""WebSocket (RFC 6455) at `/`: JSON messages in, the executor's events out as they come."""

from __future__ import annotations

import asyncio
import contextlib

from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    Pong,
    Request,
    TextMessage,
)
from wsproto.events import Event as WireEvent
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import RemoteProtocolError

from assistant import log
from assistant.adapters import intake
from assistant.errors import AssistantError
from assistant.http.exchange import Exchange, Upgraded
from assistant.http.server import Limits, Routes, Server
from assistant.router.link import Router
from assistant.router.messages import CONTENT_MAX, Ask, Error, Event, Reply, encode, failure

_AT_ONCE = 8  # messages being worked on, per connection
_QUIET = 20.0  # seconds of silence before a ping, and again before giving up
_WRITE = 30.0  # seconds that a client may stop reading


class WebSocket:
    """The adapter for browsers and other WebSocket clients."""

    name = "websocket"

    async def serve(self, listen_port: int, router: Router) -> None:
        """Listen on 127.0.0.1:`listen_port` until cancelled."""

        async def connect(exchange: Exchange) -> None:
            await _connect(exchange, router)

        async def healthy(exchange: Exchange) -> None:
            await exchange.reply(200, {"status": "ok"})

        routes: Routes = {"/": {"GET": connect}, "/healthz": {"GET": healthy, "HEAD": healthy}}
        server = Server(routes, Limits(body=0))
        log.line("listening", protocol=self.name, port=await server.start(listen_port))
        await server.serve_forever()


async def _connect(exchange: Exchange, router: Router) -> None:
    """Check the handshake, then talk; without an upgrade the answer is plain HTTP 426."""
    request = exchange.request
    wire = WSConnection(ConnectionType.SERVER)
    headers = [(n.encode("latin-1"), v.encode("latin-1")) for n, v in request.headers]
    try:
        wire.initiate_upgrade_connection(headers, request.target)
        offered = [event for event in wire.events() if isinstance(event, Request)]
    except RemoteProtocolError as error:
        raise AssistantError(
            "upgrade_required",
            "this path speaks WebSocket only",
            "connect with ws:// or wss://",
            status=426,
        ) from error
    if not offered:
        raise AssistantError("bad_request", "incomplete WebSocket handshake")
    caller = intake.caller(request)
    talk = _Talk(wire, await exchange.upgrade(), router, caller)
    log.line("connected", request=caller.request)
    await talk.run()
    log.line("disconnected", request=caller.request, messages=talk.messages)


class _Talk:
    """One open WebSocket connection and the messages in flight on it."""

    def __init__(
        self, wire: WSConnection, stream: Upgraded, router: Router, caller: intake.Caller
    ) -> None:
        self._wire = wire
        self._stream = stream
        self._router = router
        self._caller = caller
        self._prefix = id(self)
        self._text: list[str] = []
        self._size = 0
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.messages = 0

    async def run(self) -> None:
        """Talk until the connection ends; whatever is still in flight is then cancelled."""
        try:
            await self._send(AcceptConnection())
            if self._stream.early:
                self._wire.receive_data(self._stream.early)
            while await self._take_events() and await self._receive():
                pass
        except RemoteProtocolError as error:
            if error.event_hint is not None:
                await self._send(error.event_hint)
        except (ConnectionError, TimeoutError):
            self._stream.writer.transport.abort()
        finally:
            for task in self._tasks.values():
                task.cancel()
            if self._tasks:
                await asyncio.wait(list(self._tasks.values()))
            self._stream.writer.close()

    async def _receive(self) -> bool:
        """Read more bytes; a silent client is pinged, a dead one given up."""
        for ping in (True, False):
            try:
                async with asyncio.timeout(_QUIET):
                    data = await self._stream.reader.read(65536)
            except TimeoutError:
                if not ping:
                    raise
                await self._send(Ping())
                continue
            if data:
                self._wire.receive_data(data)
            return bool(data)
        return False

    async def _take_events(self) -> bool:
        """Work through what has arrived; False when the connection is to end."""
        for event in self._wire.events():
            match event:
                case TextMessage():
                    self._size += len(event.data.encode())
                    if self._size > CONTENT_MAX:
                        return await self._close(CloseReason.MESSAGE_TOO_BIG, "message too large")
                    self._text.append(event.data)
                    if event.message_finished:
                        text, self._text, self._size = "".join(self._text), [], 0
                        await self._take_message(text)
                case BytesMessage():
                    return await self._close(CloseReason.UNSUPPORTED_DATA, "send JSON as text")
                case Ping():
                    await self._send(event.response())
                case CloseConnection():
                    await self._send(event.response())
                    return False
                case Pong():
                    pass
        return True

    async def _close(self, code: CloseReason, reason: str) -> bool:
        """Close and read on for a moment, or a reset would overtake the closing frame."""
        log.line("refused", request=self._caller.request, code=f"close_{int(code)}")
        await self._send(CloseConnection(code=code, reason=reason))
        left = 8 << 20
        with contextlib.suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(1.0):
                while left > 0 and (data := await self._stream.reader.read(65536)):
                    left -= len(data)
        return False

    async def _take_message(self, text: str) -> None:
        self.messages += 1
        identity = str(self.messages)
        try:
            incoming = intake.read(text)
            identity = incoming.id or identity
            if identity in self._tasks:
                raise AssistantError("bad_message", "this id is already in use", status=409)
            if len(self._tasks) >= _AT_ONCE:
                raise AssistantError(
                    "too_many_requests",
                    f"{_AT_ONCE} messages are in flight",
                    "wait for a reply",
                    status=429,
                )
        except AssistantError as error:
            log.line("refused", request=self._caller.request, code=error.code)
            await self._send_event(failure(identity, error))
            return
        log.line("received", request=self._caller.request, bytes=len(text))
        number = f"{self._caller.request}.{self.messages}"
        ask = Ask(
            id=f"{self._prefix}.{self.messages}",
            request=self._caller.request,
            protocol=WebSocket.name,
            client=self._caller.client,
            workflow=incoming.workflow,
            content=incoming.content,
            stream=True,
            run=incoming.run or number,
        )
        self._tasks[identity] = asyncio.create_task(self._work(identity, ask))

    async def _work(self, identity: str, ask: Ask) -> None:
        try:
            async with contextlib.aclosing(self._router.ask(ask)) as events:
                async for event in events:
                    event.id = identity
                    if isinstance(event, Reply | Error):
                        self._tasks.pop(identity, None)
                        code = event.code if isinstance(event, Error) else "ok"
                        log.line("answered", request=ask.request, code=code)
                    await self._send_event(event)
        except (ConnectionError, TimeoutError):
            self._stream.writer.transport.abort()  # the reading side ends the talk
        finally:
            self._tasks.pop(identity, None)

    async def _send_event(self, event: Event) -> None:
        await self._send(TextMessage(data=encode(event).decode()))

    async def _send(self, event: WireEvent) -> None:
        if self._stream.writer.is_closing():
            raise ConnectionResetError
        self._stream.writer.write(self._wire.send(event))
        async with asyncio.timeout(_WRITE):
            await self._stream.writer.drain()
