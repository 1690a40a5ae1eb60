"""The gateway's process: accept, judge, dial, relay, record."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import secrets
import signal
import socket
import sys
from pathlib import Path

import h11

from .. import launch
from ..audit import AuditLog, AuditUnwritable
from ..dial import Broker, DialError, Status
from ..errors import BrokerLost, ProxyError
from . import config, head, refusal, relay, websocket
from .admission import Admission
from .ledger import Ledger
from .peer import Peer
from .refusal import ClientGone, Refusal
from .strangers import Strangers
from .token import Claims, Verifier

_ANSWER_HEAD_MAX = 65536
_STREAM_LIMIT = 65536
_STOP_SECONDS = 1.5


class Gateway:
    """Serves clients on one listening socket; `run` returns when `stop` was called."""

    def __init__(self, settings: config.Config, audit: AuditLog, broker: Broker) -> None:
        self._config = settings
        self._limits = settings.limits
        self._hosts = settings.hosts()
        self._routes = {route.protocol.encode("ascii"): route for route in settings.routes}
        self._audit = audit
        self._broker = broker
        self._broker_lost = False
        self._verifier = Verifier(settings)
        self._admission = Admission(settings.limits)
        self._strangers = Strangers(
            settings.limits.unproven or max(1, settings.limits.connections // 2)
        )
        self._serving: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Stop accepting, and end what is being served."""
        self._stopping.set()

    async def run(self, listener: socket.socket) -> None:
        """Serve until stopped; everything is closed within 2 s of the stop.

        Raises BrokerLost when the broker went away.
        """
        listener.setblocking(False)
        self._broker.watch(self._lose_broker)
        server = await asyncio.start_server(self._accepted, sock=listener, limit=_STREAM_LIMIT)
        await self._stopping.wait()
        server.close()
        for task in self._serving:
            task.cancel()
        if self._serving:
            await asyncio.wait(self._serving, timeout=_STOP_SECONDS)
        self._broker.close()
        if self._broker_lost:
            raise BrokerLost

    def _lose_broker(self) -> None:
        self._broker_lost = True
        self.stop()

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._serving) >= 2 * self._limits.connections:
            writer.transport.abort()  # a refusal takes a place too, for as long as it is read
            return
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # streams run this in a task
        self._serving.add(task)
        try:
            await self._serve(reader, writer)
        except asyncio.CancelledError:
            if not self._stopping.is_set():
                raise
        finally:
            self._serving.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        limits = self._limits
        # The head's limit is enforced on raw bytes before; this one bounds chunk headers.
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=2 * limits.head_max)
        client = Peer(reader, writer, http, limits.idle_timeout)
        address = writer.get_extra_info("peername")
        ledger = Ledger(secrets.token_hex(8), str(address[0]) if address else "")
        self._strangers.arrive(ledger.peer, client.abort)
        try:
            reason = await self._request(client, reader, ledger)
            if ledger.method is not None:
                self._ended(ledger, "failed" if reason else "allowed", reason)
            # The client may still be sending: after a Close frame, or an answer before its body.
            if reason or client.http.their_state in (h11.SEND_BODY, h11.ERROR):
                await client.linger()
            await client.finish()
        except Refusal as no:
            await self._refuse(client, ledger, no)
        except ClientGone:
            self._ended(ledger, "failed", "client_gone")
            client.abort()
        except asyncio.CancelledError:
            self._ended(ledger, "failed", "gateway_stopping")
            client.abort()
            raise
        except Exception as error:  # the last resort: one request fails, the gateway lives
            _complain(error)
            internal = refusal.failed(500, "internal", "The gateway failed; tell the operator.")
            await self._refuse(client, ledger, internal)
        finally:
            self._strangers.leave(ledger.peer, client.abort)

    async def _request(
        self, client: Peer, reader: asyncio.StreamReader, ledger: Ledger
    ) -> str | None:
        """Serve one request; returns a reason when it ended early after its answer had begun."""
        limits = self._limits
        if len(self._serving) > limits.connections and not self._strangers.make_room():
            message = "The gateway has as many connections as it may; try again shortly."
            raise Refusal(503, "too_many_connections", message, retry=1)
        data = await head.read(reader, limits.head_max, limits.head_timeout)
        if not data:
            return None
        ledger.method = "?"
        parsed = head.parse(data, client.http)
        ledger.method = parsed.method.decode("ascii")
        head.where_from(parsed, self._config, self._hosts)
        ledger.route, target = head.route(parsed, self._routes)
        upgrade = websocket.wanted(parsed)
        claims = self._authenticate(parsed, ledger.route, upgrade)
        ledger.client = claims.sub
        self._strangers.leave(ledger.peer, client.abort)
        if upgrade and not ledger.route.upgrade:
            raise Refusal(403, "upgrade_not_allowed", "This protocol has no WebSocket.")
        if int(parsed.one(b"content-length") or b"0") > ledger.route.body_max:
            raise relay.too_large(ledger.route)
        with self._admission.hold(claims.sub):
            try:
                ledger.admitted(self._audit)
                # A power cut must not lose the record of what was carried on.
                await self._audit.settled()
            except AuditUnwritable:
                raise refusal.audit_unwritable() from None
            return await self._carry(client, parsed, target, upgrade, claims, ledger)

    def _authenticate(self, parsed: head.Head, route: config.Route, upgrade: bool) -> Claims:
        token = None
        if upgrade:
            token, _ = websocket.offered(parsed)
        given = parsed.one(b"authorization")
        if given is not None:
            if token is not None:
                raise Refusal(400, "two_tokens", "Send the token in one place only.")
            scheme, _, token = given.partition(b" ")
            if scheme.lower() != b"bearer":
                raise Refusal(401, "missing_token", "Use `Authorization: Bearer <token>`.")
        if token is None:
            message = "Send `Authorization: Bearer <token>`; see `anchorhold token issue`."
            raise Refusal(401, "missing_token", message)
        return self._verifier.check(token, route.workload)

    async def _carry(
        self,
        client: Peer,
        parsed: head.Head,
        target: bytes,
        upgrade: bool,
        claims: Claims,
        ledger: Ledger,
    ) -> str | None:
        route, limits = ledger.route, self._limits
        assert route is not None  # noqa: S101  # the caller found it
        adapter = await self._dial(route)
        try:
            if not upgrade:
                await relay.exchange(client, adapter, parsed, target, route, limits, ledger)
                return None
            if await websocket.handshake(client, adapter, parsed, target, route, limits, ledger):
                tunnel = websocket.Tunnel(client, adapter, route, limits, ledger)
                return await tunnel.run(claims.exp)
            return None
        finally:
            adapter.abort()

    async def _dial(self, route: config.Route) -> Peer:
        try:
            sock = await self._broker.dial(route.target)
        except DialError as error:
            down = error.status in (Status.UNKNOWN, Status.CONNECT_FAILED)
            raise refusal.failed(
                503 if down else 502,
                "adapter_down" if down else "adapter_unreachable",
                f"The workload {route.workload} cannot be reached: {error.reason}; "
                "see `anchorhold status`.",
            ) from None
        reader, writer = await asyncio.open_connection(sock=sock, limit=_STREAM_LIMIT)
        http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_ANSWER_HEAD_MAX)
        return Peer(reader, writer, http, self._limits.idle_timeout)

    async def _refuse(self, client: Peer, ledger: Ledger, no: Refusal) -> None:
        begun = ledger.status is not None
        if not begun:
            ledger.status = no.status
        try:
            ledger.ended(self._audit, no.verdict, no.code)
        except AuditUnwritable as error:
            _complain(error)
            no = refusal.audit_unwritable()
        if begun:
            client.abort()
            return
        response, body = refusal.response(no, ledger.request)
        with contextlib.suppress(OSError, h11.LocalProtocolError):
            await client.write(_answer(response, b"" if ledger.method == "HEAD" else body))
            await client.linger()
        await client.finish()

    def _ended(self, ledger: Ledger, verdict: str, reason: str | None) -> None:
        if ledger.method is None:
            return
        try:
            ledger.ended(self._audit, verdict, reason)
            self._audit.settle_soon()
        except AuditUnwritable as error:
            _complain(error)  # it was admitted on record; the next one will be refused


def _answer(response: h11.Response, body: bytes) -> bytes:
    """A refusal as bytes; h11 cannot write it, being in its error state after bad input."""
    reason = b"%d Refused" % response.status_code
    lines = [b"HTTP/1.1 " + reason, *(name + b": " + value for name, value in response.headers)]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def _complain(error: Exception) -> None:
    """One line on stderr: kind and place only, since an exception's text may quote a request."""
    text = str(error) if isinstance(error, ProxyError) else type(error).__name__
    trace, place = error.__traceback__, ""
    while trace is not None:
        place = f" at {Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    # stderr is a pipe to another process; one that does not read must not stop this one.
    with contextlib.suppress(OSError):
        os.write(2, f"gateway: {text}{place}\n".encode())


async def _main(listener: socket.socket, gateway: Gateway) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, gateway.stop)
    await gateway.run(listener)


def main() -> int:
    """Take over the descriptors ``config``, ``audit``, ``broker``, ``listen`` and serve.

    Returns the exit status: 0 after SIGTERM, 1 when the broker went away, 78 for a wrong start.
    """
    try:
        handed = launch.inherited()
        settings, log, broker, listen = launch.require(
            handed, "config", "audit", "broker", "listen"
        )
        parsed = config.parse(launch.read_config(settings))
        gateway = Gateway(parsed, AuditLog(log), Broker(socket.socket(fileno=broker)))
    except ProxyError as error:
        print(f"gateway: {error}", file=sys.stderr)
        return 78  # EX_CONFIG, sysexits(3)
    os.set_blocking(2, False)
    gc.collect()
    gc.freeze()
    try:
        asyncio.run(_main(socket.socket(fileno=listen), gateway))
    except BrokerLost as error:
        _complain(error)
        return 1
    return 0
