"""WebSocket (RFC 6455) on the forward port: both ways parsed, each text message masked as a whole.

No extension is negotiated on either side, so that nothing is compressed; a compressed frame is then
a protocol error. Binary messages cannot be masked and end the connection.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import Callable
from typing import Any

from wsproto import ConnectionType
from wsproto.connection import Connection
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong, TextMessage
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from proxy.egress.redaction.json_walk import JsonInvalid, parse
from proxy.egress.redaction.text import Masker

MESSAGE_MAX = 1024 * 1024  # characters of one message, over all its frames
IDLE = 300.0
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_KEY = re.compile(rb"[A-Za-z0-9+/]{22}==")
_WRONG = (CloseReason.PROTOCOL_ERROR, CloseReason.INVALID_FRAME_PAYLOAD_DATA)
_READ = 64 * 1024


class WebSocketRefused(ConnectionError):
    """The connection was ended by us; the message is a code for the record."""


def valid_key(key: bytes) -> bool:
    """Whether a Sec-WebSocket-Key is 16 bytes in base64."""
    return _KEY.fullmatch(key) is not None


def accepts(key: bytes, answer: bytes) -> bool:
    """Whether `answer` is the Sec-WebSocket-Accept that belongs to `key` (section 4.2.2)."""
    digest = hashlib.sha1(key + _GUID, usedforsecurity=False).digest()
    return base64.b64encode(digest) == answer.strip()


class Side:
    """One end: what it sends is read from `reader`, what it gets is written to `writer`."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        kind: ConnectionType,
        early: bytes,
    ) -> None:
        self.reader, self.writer = reader, writer
        self.frames = Connection(kind)
        self.early = early

    async def send(self, event: Event) -> None:
        """Write one event's frame."""
        try:
            self.writer.write(self.frames.send(event))
        except LocalProtocolError:
            return  # it has closed already
        await self.writer.drain()


async def relay(
    client: Side, server: Side, masks: tuple[Masker, Masker], count: Callable[[int, int], None]
) -> None:
    """Carry messages until one end closes; `masks`: to the server, to the client.

    `count` gets bytes to the server and to the client. Raises WebSocketRefused, OSError.
    """
    outgoing, incoming = masks
    try:
        async with asyncio.timeout(IDLE) as idle, asyncio.TaskGroup() as both:

            def moved(sent: int, received: int) -> None:
                idle.reschedule(asyncio.get_running_loop().time() + IDLE)
                count(sent, received)

            both.create_task(_carry(client, server, outgoing, lambda n: moved(n, 0)))
            both.create_task(_carry(server, client, incoming, lambda n: moved(0, n)))
    except TimeoutError:
        raise WebSocketRefused("idle") from None
    except ExceptionGroup as group:
        error = group.exceptions[0]
        reason = CloseReason.UNSUPPORTED_DATA if str(error) == "binary" else None
        for side in (client, server):
            await side.send(CloseConnection(code=reason or CloseReason.POLICY_VIOLATION))
        raise error from None


async def _carry(source: Side, sink: Side, masker: Masker, count: Callable[[int], None]) -> None:
    data, pieces, size = source.early, [], 0
    while True:
        source.frames.receive_data(data)
        try:
            events: list[Any] = list(source.frames.events())
        except RemoteProtocolError:
            raise WebSocketRefused("malformed_frame") from None
        for event in events:
            if isinstance(event, TextMessage):
                pieces.append(event.data)
                size += len(event.data)
                if size > MESSAGE_MAX:
                    raise WebSocketRefused("message_too_large")
                if event.message_finished:
                    masked = _masked("".join(pieces), masker)
                    pieces, size = [], 0
                    count(len(masked.encode("utf-8", "surrogatepass")))
                    await sink.send(TextMessage(data=masked))
            elif isinstance(event, BytesMessage):
                raise WebSocketRefused("binary")
            elif isinstance(event, Ping):
                await source.send(event.response())
            elif isinstance(event, CloseConnection) and event.code in _WRONG:
                raise WebSocketRefused("malformed_frame")  # said by the parser, or by who sent it
            elif isinstance(event, CloseConnection):
                # The reason is free text of the other end: only its code goes on.
                await source.send(event.response())
                await sink.send(CloseConnection(code=event.code))
                return
            elif not isinstance(event, Pong):
                raise WebSocketRefused("malformed_frame")
        data = await source.reader.read(_READ)
        if not data:
            await sink.send(CloseConnection(code=CloseReason.GOING_AWAY))
            return


def _masked(text: str, masker: Masker) -> str:
    """A message masked: as JSON where it is JSON, so that it stays so."""
    if text[:1] in ("{", "["):
        try:
            parse(text)
        except JsonInvalid:
            return masker.text(text)
        return masker.document(text)
    return masker.text(text)
