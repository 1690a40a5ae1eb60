"""One connection on a workload's forward port: which rule decides, and what is done about it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import h11

from proxy.audit import AuditUnwritable
from proxy.dial import Broker, DialError
from proxy.egress import shapes
from proxy.egress.config import Workload
from proxy.egress.errors import Refusal, unrecorded
from proxy.egress.exchange import Services, place
from proxy.egress.redaction.actions import Blocked
from proxy.egress.redaction.scan import ScanFailed
from proxy.egress.redaction.text import Masker
from proxy.egress.tls import client_context

from .ask import Asks
from .destination import Destination, host_name, reachable
from .peer import next_event
from .request import Exchange
from .tunnel import Tunnel, TunnelRefused

if TYPE_CHECKING:
    import ssl


CONNECTIONS_MAX = 64
HEAD_MAX, HEAD_TIME = 32 * 1024, 10.0


@dataclass(slots=True)
class Call:
    """What is known of one request while it is answered; the audit record is made of it."""

    id: str
    began: float
    way: str  # "tunnel" or "request"
    host: str = ""
    port: int = 0
    rule: Destination | None = None
    status: int = 0
    sent: int = 0
    received: int = 0
    outgoing: Masker | None = None
    incoming: Masker | None = None
    detail: str | None = None
    ended: bool = False  # its last record is written


class Forward:
    """The forward port of one workload; who connects to it is that workload."""

    def __init__(self, services: Services, workload: Workload, broker: Broker, asks: Asks) -> None:
        self._asks = asks
        self.services = services
        self.workload = workload
        self.broker = broker
        self._models = {upstream.host for upstream in services.config.upstreams.values()}
        self._open: set[asyncio.Task[None]] = set()
        self._tls: ssl.SSLContext | None = None

    @property
    def tls(self) -> ssl.SSLContext:
        """Towards hosts outside; made when it is first needed, for the authorities take memory."""
        if self._tls is None:
            self._tls = client_context(self.services.config.ca_file)
        return self._tls

    async def serve(self, sock: socket.socket) -> None:
        """Accept until cancelled; then every connection is closed."""
        server = await asyncio.start_server(self._accept, sock=sock, backlog=128, limit=HEAD_MAX)
        try:
            await server.serve_forever()
        finally:
            server.close()
            for task in self._open:
                task.cancel()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if len(self._open) >= CONNECTIONS_MAX or task is None:
            writer.transport.abort()
            return
        self._open.add(task)
        try:
            await self._requests(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # the connection is gone, or we are; each request has had its record
        finally:
            self._open.discard(task)
            writer.close()

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_MAX)
        while True:
            call = Call(os.urandom(8).hex(), time.monotonic(), "request")
            try:
                async with asyncio.timeout(HEAD_TIME):
                    event = await next_event(client, reader)
            except TimeoutError:
                return
            except h11.RemoteProtocolError:
                await self._refuse(call, client, writer, _malformed("It is not HTTP/1.1."))
                return
            if not isinstance(event, h11.Request):
                return
            try:
                if event.method == b"CONNECT":
                    call.way = "tunnel"
                    await self._tunnel(call, event, client, reader, writer)
                    return
                await Exchange(self, call, event, client, reader, writer).run()
            except Refusal as error:
                await self._refuse(call, client, writer, error)
            except AuditUnwritable:
                await self._refuse(call, client, writer, unrecorded())
            except Blocked as error:
                wrong = Refusal(error.code, error.message, by_rule=True)
                await self._refuse(call, client, writer, wrong)
            except ScanFailed:
                wrong = Refusal("scan_failed", "The scanner did not finish.")
                await self._refuse(call, client, writer, wrong)
            except (OSError, asyncio.CancelledError) as error:
                self._broken_off(call, type(error).__name__)
                raise
            except Exception as error:
                # Neither message nor traceback: both may quote the request.
                wrong = Refusal("internal_error", f"{type(error).__name__} at {place(error)}.")
                call.detail = wrong.message
                await self._refuse(call, client, writer, wrong)
            if client.our_state is not h11.DONE or client.their_state is not h11.DONE:
                return
            client.start_next_cycle()

    def _broken_off(self, call: Call, why: str) -> None:
        if not call.ended:
            with contextlib.suppress(AuditUnwritable):
                self.record(call, "completion", "failed", why)

    async def _tunnel(
        self,
        call: Call,
        request: h11.Request,
        client: h11.Connection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        call.host, call.port = _authority(request.target)
        call.rule = await self.permitted(call)
        self.record(call, "admission", "allowed", None)
        upstream = await self.dial(call)
        tunnel = Tunnel(call.host, upstream, reader, writer)
        verdict, reason = "allowed", None
        call.status = 200
        try:
            await tunnel.run(client.trailing_data[0])
        except TunnelRefused as error:
            refused = error.reason in ("sni_mismatch", "handshake_refused", "too_many_bytes")
            verdict, reason = ("refused" if refused else "allowed"), error.reason
            call.detail = str(error) if refused else None
            if refused:
                writer.transport.abort()
        except OSError as error:
            verdict, reason = "failed", type(error).__name__
        except asyncio.CancelledError:
            verdict, reason = "failed", "stopped"
            raise
        finally:
            call.sent, call.received = tunnel.sent, tunnel.received
            with contextlib.suppress(AuditUnwritable):
                self.record(call, "completion", verdict, reason)

    async def permitted(
        self, call: Call, fits: Callable[[Destination], bool] | None = None
    ) -> Destination:
        """Return the rule that allows the call's host and port; without `fits` for a tunnel.

        Raises Refusal.
        """
        if call.host in self._models:
            raise Refusal("model_host", "This is a model's host; it has a port of its own.")
        rules = reachable(self.workload.net, call.host, call.port)
        file = self.workload.file
        if not rules:
            message = f"{file} allows no such host and port."
            raise Refusal("destination_not_allowed", message, by_rule=True)
        places = ", ".join(f"{file}:{rule.line} ({rule.rule})" for rule in rules)
        allowed = [rule for rule in rules if (fits(rule) if fits else not rule.readable_only)]
        if allowed:
            if allowed[0].ask:
                call.rule = allowed[0]
                await self._asks.permission(self.workload.id, call.host, call.port, allowed[0])
            return allowed[0]
        call.rule = rules[0]
        if fits is None:
            message = f"{places} bounds methods, path or key, which a tunnel would hide."
            raise Refusal("tunnel_not_allowed", message, by_rule=True)
        message = f"Method or path is not allowed by {places}."
        raise Refusal("destination_not_allowed", message, by_rule=True)

    async def dial(self, call: Call) -> socket.socket:
        """Return a socket connected to where the call goes. Raises Refusal."""
        assert call.rule is not None  # noqa: S101 - permitted() came before
        try:
            return await self.broker.dial(call.rule.dial_as(self.workload.id, call.host))
        except DialError as error:
            raise Refusal("upstream_unreachable", f"No connection: {error.reason}.") from None

    async def _refuse(
        self, call: Call, client: h11.Connection, writer: asyncio.StreamWriter, refusal: Refusal
    ) -> None:
        if call.ended:
            return
        call.ended = True
        call.status = refusal.status
        verdict = "failed" if refusal.status >= 500 else "refused"
        try:
            self.record(call, "completion", verdict, refusal.code)
        except AuditUnwritable:
            refusal = unrecorded()
        if client.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            writer.transport.abort()  # an answer that had begun: it must not look complete
            return
        body = shapes.error("openai", refusal)
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("x-request-id", call.id),
        ]
        head = h11.Response(status_code=refusal.status, headers=headers, reason=b"")
        for event in (head, h11.Data(data=body), h11.EndOfMessage()):
            writer.write(client.send(event) or b"")
        await writer.drain()

    def record(self, call: Call, event: str, verdict: str, reason: str | None) -> None:
        """Write one audit record; raises AuditUnwritable."""
        fields: dict[str, Any] = {"way": call.way, "host": self._shown(call.host) or None}
        fields["port"] = call.port or None
        if event == "completion":
            fields |= {
                "status": call.status or None,
                "bytes": {"request": call.sent, "response": call.received},
                "redacted": {
                    name: side.tally.as_record()
                    for name, side in (("request", call.outgoing), ("response", call.incoming))
                    if side is not None
                }
                or None,
                "ms": round((time.monotonic() - call.began) * 1000, 3),
                "detail": call.detail,
            }
        self.services.audit.write(
            hop="egress",
            event=event,
            request=call.id,
            workload=self.workload.id,
            verdict=verdict,
            reason=reason,
            rule=self.workload.rule(call.rule),
            **fields,
        )
        self.services.audit.settle_soon()

    def _shown(self, host: str) -> str:
        """The host as it may stand in a record: the workload chose it."""
        return Masker(self.services.scanner, self.services.guard, "strict").text(host)


def _authority(target: bytes) -> tuple[str, int]:
    """Host and port of a CONNECT; the port is not optional."""
    host, _, port = target.decode("latin-1").rpartition(":")
    name = host_name(host)
    if name is None or not (port.isascii() and port.isdigit()) or not 0 < int(port[:6]) < 65536:
        raise _malformed("CONNECT takes a host name and a port, no address.")
    return name, int(port)


def _malformed(message: str) -> Refusal:
    return Refusal("proxy_request_invalid", message)
