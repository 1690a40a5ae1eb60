"""WebSocket upgrades (RFC 6455): the handshake is relayed, then frames under a size limit."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import time

import h11

from . import relay
from .config import Limits, Route
from .frames import FrameMeter, close_frame
from .head import Head
from .ledger import Ledger
from .peer import Peer
from .refusal import ClientGone, Refusal, common_headers, failed

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
BEARER = b"bearer"


def wanted(head: Head) -> bool:
    """Whether the request asks for an upgrade. Refusals: 400, 426 when it is not a sound one."""
    upgrade = head.one(b"upgrade")
    named = [token.lower() for token in head.tokens(b"connection")]
    if upgrade is None and b"upgrade" not in named:
        return False
    if upgrade is None or upgrade.lower() != b"websocket" or b"upgrade" not in named:
        raise Refusal(400, "bad_upgrade", "The only upgrade is to websocket.")
    if head.method != b"GET":
        raise Refusal(400, "bad_upgrade", "A WebSocket begins with GET.")
    if head.one(b"transfer-encoding") is not None or head.one(b"content-length") not in (
        None,
        b"0",
    ):
        raise Refusal(400, "bad_upgrade", "A WebSocket handshake has no body.")
    if head.one(b"sec-websocket-version") != b"13":
        raise Refusal(426, "websocket_version", "Use Sec-WebSocket-Version: 13.")
    try:
        key = base64.b64decode(head.one(b"sec-websocket-key") or b"", validate=True)
    except binascii.Error:
        key = b""
    if len(key) != 16:
        raise Refusal(400, "bad_upgrade", "Sec-WebSocket-Key is 16 bytes in base64.")
    return True


def offered(head: Head) -> tuple[bytes | None, list[bytes]]:
    """The token a browser sends as ``Sec-WebSocket-Protocol: bearer, <token>``, and the rest."""
    names = head.tokens(b"sec-websocket-protocol")
    places = [at for at, name in enumerate(names) if name.lower() == BEARER]
    if not places:
        return None, names
    if len(places) > 1:
        raise Refusal(400, "two_tokens", "Send the token in one place only.")
    at = places[0]
    token = names[at + 1] if len(names) > at + 1 else b""
    return token, names[:at] + names[at + 2 :]


async def handshake(
    client: Peer,
    adapter: Peer,
    head: Head,
    target: bytes,
    route: Route,
    limits: Limits,
    ledger: Ledger,
) -> bool:
    """Relay the upgrade; True when both sides now speak WebSocket.

    False when the adapter answered otherwise, and that answer was sent on. No extension is offered,
    so nothing is compressed and frame sizes are message sizes.
    """
    key = head.one(b"sec-websocket-key") or b""
    token, protocols = offered(head)
    headers = [
        *relay.request_headers(head, route, ledger),
        (b"connection", b"Upgrade"),
        (b"upgrade", b"websocket"),
        (b"sec-websocket-version", b"13"),
        (b"sec-websocket-key", key),
    ]
    if origin := head.one(b"origin"):
        headers.append((b"origin", origin))
    if protocols:
        headers.append((b"sec-websocket-protocol", b", ".join(protocols)))
    try:
        await adapter.send(h11.Request(method=b"GET", target=target, headers=headers))
        await adapter.send(h11.EndOfMessage())
    except OSError:
        raise relay.adapter_silent() from None
    reply = await relay.answer_head(adapter, limits)
    if reply.status_code != 101:
        await relay.answer(client, reply, adapter, limits, ledger)
        return False
    chosen = _agreed(reply, key, protocols)
    # A browser that offered protocols fails the connection unless one of them is chosen.
    if chosen is None and token is not None:
        chosen = next(
            name for name in head.tokens(b"sec-websocket-protocol") if name.lower() == BEARER
        )
    answer = [
        (b"upgrade", b"websocket"),
        (b"sec-websocket-accept", _accept(key)),
        *([(b"sec-websocket-protocol", chosen)] if chosen else []),
        *(pair for pair in common_headers(ledger.request) if pair[0] != b"connection"),
        (b"connection", b"Upgrade"),
    ]
    ledger.status = 101
    try:
        await client.send(h11.InformationalResponse(status_code=101, headers=answer))
    except OSError:
        raise ClientGone from None
    return True


def _accept(key: bytes) -> bytes:
    return base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())


def _agreed(
    reply: h11.Response | h11.InformationalResponse, key: bytes, protocols: list[bytes]
) -> bytes | None:
    """The subprotocol the adapter chose, after checking its side of the handshake."""
    said = dict(reply.headers)
    chosen = said.get(b"sec-websocket-protocol")
    if (
        said.get(b"upgrade", b"").lower() != b"websocket"
        or said.get(b"sec-websocket-accept") != _accept(key)
        or b"sec-websocket-extensions" in said
        or (chosen is not None and chosen not in protocols)
    ):
        message = "The workload's WebSocket handshake is wrong; see its log."
        raise failed(502, "adapter_bad_answer", message)
    return chosen


class Tunnel:
    """Both directions of one WebSocket after the handshake, until one side or a limit ends it."""

    def __init__(
        self, client: Peer, adapter: Peer, route: Route, limits: Limits, ledger: Ledger
    ) -> None:
        self._client, self._adapter = client, adapter
        self._up = FrameMeter(masked=True, message_max=route.body_max)
        self._down = FrameMeter(masked=False, message_max=None)
        self._idle = limits.websocket_idle
        self._ledger = ledger

    async def run(self, expires: float) -> str | None:
        """Relay until the end; returns the reason when it was the gateway's, or an abrupt one.

        `expires` (Unix seconds) is the token's end: no connection outlives what admitted it.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + max(0.0, expires - time.time())
        reason = None
        try:
            async with asyncio.timeout_at(min(until, loop.time() + self._idle)) as deadline:
                reason = await self._both(deadline, until)
        except TimeoutError:
            expired = loop.time() >= until
            reason = "token_expired" if expired else "idle"
            await self._close(1008 if expired else 1001, reason)
        except asyncio.CancelledError:
            await self._close(1001, "the gateway is stopping")
            raise
        finally:
            self._ledger.bytes_in = self._up.payload
            self._ledger.bytes_out = self._down.payload
        return reason

    async def _both(self, deadline: asyncio.Timeout, until: float) -> str | None:
        up = asyncio.create_task(
            self._pump(
                (self._client, "client_gone"),
                (self._adapter, "adapter_gone"),
                self._up,
                deadline,
                until,
            )
        )
        down = asyncio.create_task(
            self._pump(
                (self._adapter, "adapter_gone"),
                (self._client, "client_gone"),
                self._down,
                deadline,
                until,
            )
        )
        try:
            await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
            first = up if up.done() else down
        finally:
            up.cancel()
            down.cancel()
            await asyncio.gather(up, down, return_exceptions=True)
        code, reason = first.result()
        if code:
            await self._close(code, reason)
            return reason
        # After Close frames the ends of the streams are no surprise.
        return None if self._up.closed or self._down.closed else reason

    async def _pump(
        self,
        source: tuple[Peer, str],
        target: tuple[Peer, str],
        meter: FrameMeter,
        deadline: asyncio.Timeout,
        until: float,
    ) -> tuple[int, str]:
        """Relay one direction; returns (0, who left) at its end, or the close code and reason.

        `source` and `target` come with the reason to give when they leave.
        """
        loop = asyncio.get_running_loop()
        sender, receiver = source[0], target[0]
        data = sender.http.trailing_data[0] or await sender.read()
        while data:
            deadline.reschedule(min(until, loop.time() + self._idle))
            passed, error = meter.feed(data)
            if passed:
                try:
                    await receiver.write(passed)
                except OSError:
                    return 0, target[1]
            if error is not None:
                return error.close, error.code
            data = await sender.read()
        return 0, source[1]

    async def _close(self, code: int, reason: str) -> None:
        """Close both sides with a Close frame, where one fits: never inside another frame."""
        for peer, meter, masked in (
            (self._adapter, self._up, True),
            (self._client, self._down, False),
        ):
            if meter.between_frames:
                try:
                    async with asyncio.timeout(1.0):
                        await peer.write(close_frame(code, reason, masked=masked))
                except OSError:
                    continue
