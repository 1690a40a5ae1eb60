"""One request, top to bottom: authorise, mask, record, inject the key, send, mask, answer."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_plus

from proxy.audit import AuditLog, AuditUnwritable

from . import authorize, reply
from .bodies import request as request_body
from .bodies.media import Lifted, MediaHoldsSecret
from .bodies.multipart import Part
from .budget import OUTPUT_DEFAULT, Budgets, Reservation
from .config import Config, Grant, Workload
from .deltas import StreamInvalid
from .errors import Refusal, unrecorded, vault_locked
from .guard import KeyGuard
from .http_server import ClientGone, Request
from .keys import KeyRing
from .outcome import outcome
from .redaction.actions import Blocked, Treatments
from .redaction.hold import HoldBack
from .redaction.json_walk import Document, Untouchable
from .redaction.scan import ScanFailed, Scanner
from .redaction.text import Masker
from .redaction.views import DecodeLimit
from .routes import Match, Target
from .upstream import Upstreams
from .usage import output_bound, with_output_bound

BODY_TIME = 30.0
_REQUEST_ID = re.compile(rb"[0-9a-f]{16}")
_JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Services:
    """What every request needs; one of it in the process."""

    config: Config
    ring: KeyRing
    guard: KeyGuard
    scanner: Scanner
    hold: HoldBack
    upstreams: Upstreams
    audit: AuditLog
    placeholders: tuple[str, ...]
    treatments: dict[str, Treatments]  # by workload
    budgets: Budgets


class Exchange:
    """One request of one workload. `run` answers it and writes its audit records, whatever happens.

    Two records: ``admission`` before the first byte leaves, so that nothing is sent that cannot be
    recorded, and ``completion`` with the outcome.
    """

    def __init__(
        self, services: Services, workload: Workload, request: Request, match: Match | None
    ) -> None:
        self.services = services
        self.workload = workload
        self.request = request
        self.headers: authorize.Headers = request.headers
        self.match = match
        # Until the model is known, the one that the request's own key speaks for.
        self.target: Target | None = match.preferred(self.headers) if match else None
        ids = [v for k, v in self.headers if k == b"x-request-id" and _REQUEST_ID.fullmatch(v)]
        self.id = ids[0].decode("ascii") if ids else os.urandom(8).hex()
        self.began = time.monotonic()
        self.sent: float | None = None  # when the upstream was asked
        self.heard: float | None = None  # when it began to answer
        self.grant: Grant | None = None
        self.model: str | None = None
        self.outgoing: Masker | None = None
        self.incoming: Masker | None = None
        self.status = 0
        self.stream = False
        self.admitted = False
        self.size_in = self.size_out = 0
        self.header_keys = 0
        self.usage: dict[str, Any] = {}
        self.reservation: Reservation | None = None

    @property
    def routed(self) -> tuple[Match, Target]:
        """The route found and the target chosen so far."""
        if self.match is None or self.target is None:
            raise LookupError("the request has no route")
        return self.match, self.target

    @property
    def shape(self) -> str:
        """The shape in which this client reads errors."""
        return self.target.provider.shape if self.target else "openai"

    async def run(self) -> None:
        """Answer the request. Raises nothing but cancellation by the server's own end."""
        refusal: Refusal | None = None
        try:
            await self._complete()
            return
        except ClientGone:
            with contextlib.suppress(AuditUnwritable):  # nobody is left to be told
                self.record("completion", "failed", "client_gone")
            return
        except asyncio.CancelledError:
            with contextlib.suppress(AuditUnwritable):
                self.record("completion", "failed", "stopped")
            raise
        except Refusal as error:
            refusal = error
        except AuditUnwritable:
            refusal = unrecorded()
        except DecodeLimit as error:
            status = 502 if self.admitted else None
            refusal = Refusal(error.code, error.message, status=status)
        except ScanFailed:
            refusal = Refusal("scan_failed", "The scanner did not finish.")
        except Untouchable as error:
            refusal = Refusal(error.code, error.message, status=502 if self.admitted else None)
        except MediaHoldsSecret:
            status = 502 if self.admitted else None
            message = "A secret was found in an image or a recording."
            refusal = Refusal("secret_in_opaque", message, status=status)
        except Blocked as error:
            # On the way out it is the request that is wrong, on the way back the model's answer.
            refusal = Refusal(
                error.code, error.message, status=502 if self.admitted else None, by_rule=True
            )
        except Exception as error:
            # Neither message nor traceback: both may quote the request.
            refusal = Refusal("internal_error", f"{type(error).__name__} at {place(error)}.")
        try:
            self._refused(refusal)
        except AuditUnwritable:
            refusal = unrecorded()
        if self.request.begun:
            reply.send_stream_error(refusal, self)
        else:
            await reply.send_refusal(refusal, self)

    def check_head(self) -> None:
        """The right placeholder in the right place and nowhere else. Raises Refusal."""
        match, target = self.routed
        authorize.check_credential(self.headers, self.workload, target.provider)
        authorize.check_stray(self.headers, target.provider, self.services.placeholders)
        values = "/".join(match.values.values()).encode("ascii")
        self.check_target(values + b"?" + self.request.query)

    def check_target(self, target: bytes) -> None:
        """No placeholder in the path or the query. Raises Refusal."""
        if self._has_placeholder(unquote_plus(target.decode("latin-1"))):
            raise authorize.misplaced("in the path or the query")

    def check_query(self) -> str:
        """Return the query as it may be sent. Raises Refusal."""
        _, target = self.routed
        strict = Masker(self.services.scanner, self.services.guard, "strict")
        return authorize.check_query(self.request.query, target.route, self.outgoing or strict)

    async def _complete(self) -> None:
        services, workload = self.services, self.workload
        self.check_head()
        self.header_keys = authorize.live_keys(self.headers, services.guard)
        match, target = self.routed
        route, provider = target.route, target.provider
        authorize.check_length(self.headers, workload)
        kind = request_body.media_type(self.headers, route)
        body = await self._body()
        body = request_body.decoded(body, self.headers, workload)
        model = match.values.get("model", "")
        document, lifted, parts = Document("", {}, ""), Lifted(""), list[Part]()
        if route.request == "json":
            document, lifted = request_body.read(body)
            named, self.stream = request_body.asked(document.value, route, provider)
            model = model or named
        elif route.request == "multipart":
            parts = request_body.read_form(body, kind)
            model = request_body.named_model(parts) if route.model else ""
        grant, target = self._permit(model)
        treatment = services.treatments[workload.id].of(grant.redact)
        outgoing = Masker(services.scanner, services.guard, treatment, sent=True)
        incoming = Masker(services.scanner, services.guard, treatment)
        self.outgoing, self.incoming = outgoing, incoming
        if services.ring.locked and target.upstream.credential is not None:
            raise vault_locked(services.ring.why_locked)
        if any(outgoing.text(value) != value for value in match.values.values()):
            raise Refusal("secret_blocked", "The path holds a secret.")
        path = target.route.filled(match.values) + self.check_query()
        sent = authorize.passed_headers(self.headers, target.provider, outgoing)
        if route.family:
            for name in request_body.batched_models(document.value, parts):
                authorize.grant_for(name, workload, match.upstreams, self.shown)
        if route.request == "json":
            body = request_body.masked(
                document, lifted, target.provider, outgoing, self._has_placeholder
            )
        elif route.request == "multipart":
            kind, body = request_body.masked_form(
                parts, target.provider, outgoing, self._has_placeholder
            )
        else:
            body = b""
        body = self._reserve(grant, target, document.value, body)
        self.record("admission", "allowed", None)
        self.admitted = True
        await self._forward(target, incoming, path, kind, sent, body)

    def _permit(self, model: str) -> tuple[Grant, Target]:
        """Find the policy's permission, and with it the upstream. Raises Refusal."""
        match, before = self.routed
        if before.route.model:
            grant = authorize.grant_for(model, self.workload, match.upstreams, self.shown)
            self.model = grant.name
        else:
            grant = authorize.family_grant(before.route.family, self.workload, match.upstreams)
        self.grant, self.target = grant, match.at(grant.upstream)
        if self.target.provider is not before.provider:
            self.check_head()
        return grant, self.target

    def _has_placeholder(self, text: str) -> bool:
        return any(placeholder in text for placeholder in self.services.placeholders)

    async def _forward(
        self,
        target: Target,
        incoming: Masker,
        path: str,
        kind: str,
        sent: dict[str, str],
        body: bytes,
    ) -> None:
        """Send the masked body on and answer with what comes back; stop when the client goes."""
        request, upstream = self.request, target.upstream
        request.watched = True
        self.sent = time.monotonic()
        try:
            response = await self.services.upstreams.send(
                upstream,
                target.route.method,
                upstream.path + path,
                self._upstream_headers(target, kind, sent),
                body,
                self.workload.timeout,
            )
            self.heard = time.monotonic()
            try:
                await reply.relay(self, target, incoming, response)
            except StreamInvalid as error:
                raise Refusal("upstream_invalid", f"{upstream.name}: {error}.") from None
            finally:
                response.close()  # cancels what the upstream still sends
        except asyncio.CancelledError:
            if request.gone and request.task is not None:
                request.task.uncancel()
                raise ClientGone from None
            raise
        finally:
            request.watched = False

    def _reserve(
        self, grant: Grant, target: Target, document: dict[str, Any], body: bytes
    ) -> bytes:
        """Take from the budgets what the request may use; return it with a bound on its output."""
        budgets, bound = self.services.budgets, None if target.route.bound else 0
        if bound is None and budgets.bounds_output(self.workload, grant.name):
            try:
                bound = output_bound(document)
            except ValueError as error:
                message = f"There is a budget, and {error} is not a whole number."
                raise Refusal("invalid_json", message) from None
            if bound is None:
                text = with_output_bound(body.decode("utf-8"), target.route.bound, OUTPUT_DEFAULT)
                body = text.encode("utf-8")
        self.reservation = budgets.reserve(self.workload, grant, size=len(body), output=bound)
        return body

    def finish(self) -> None:
        """Write the outcome's record; called before the last byte of the answer is sent."""
        self.record("completion", "allowed", None)

    def shown(self, text: str) -> str:
        """Return `text` from the request as it may stand in an error."""
        return Masker(self.services.scanner, self.services.guard, "strict").text(text[:80])

    def _upstream_headers(
        self, target: Target, kind: str, sent: dict[str, str]
    ) -> list[tuple[str, str]]:
        """Ours and the declared ones; the key is added when a connection is there."""
        accept = ", ".join(sorted(target.route.responses))
        if len(target.route.responses) > 1 and _JSON in target.route.responses:
            streams = sorted(target.route.responses - {_JSON})
            accept = streams[0] if self.stream else _JSON
        headers = [
            ("Accept", accept),
            ("Accept-Encoding", "identity"),
            ("User-Agent", "anchorhold"),
            ("X-Request-Id", self.id),
            *sent.items(),
        ]
        if kind:
            headers.append(("Content-Type", kind))
        return headers

    async def _body(self) -> bytes:
        request, body = self.request, b""
        try:
            if request.whole:
                body = await request.read()
            else:
                async with asyncio.timeout(BODY_TIME):
                    body = await self._arriving()
        except TimeoutError:
            raise Refusal("body_slow", f"The body took longer than {BODY_TIME:g} s.") from None
        self.size_in = len(body)
        if self.size_in > self.workload.body_max:
            raise authorize.too_large(self.workload)
        return body

    async def _arriving(self) -> bytes:
        body = bytearray()
        while part := await self.request.read():
            body += part
            self.size_in = len(body)
            if len(body) > self.workload.body_max:
                raise authorize.too_large(self.workload)
        return bytes(body)

    def _refused(self, refusal: Refusal) -> None:
        self.status = refusal.status
        verdict = "failed" if refusal.status >= 500 else "refused"
        detail = refusal.message if refusal.code == "internal_error" else None
        self.record("completion", verdict, refusal.code, refusal.by_rule, detail)

    def record(
        self,
        event: str,
        verdict: str,
        reason: str | None,
        by_rule: bool = False,
        detail: str | None = None,
    ) -> None:
        """Write one audit record; raises AuditUnwritable."""
        grant = self.grant
        if grant is None and by_rule:
            grant = next(iter(self.workload.models.values()), None)
        fields: dict[str, object] = {}
        if self.grant is not None:
            fields |= {"model": self.model, "upstream": self.grant.upstream}
        if self.target is not None:
            fields["route"] = f"{self.target.route.method} {self.target.route.path}"
        if event == "completion":
            fields |= outcome(self, verdict, reason) | {"detail": detail}
        self.services.audit.write(
            hop="egress",
            event=event,
            request=self.id,
            workload=self.workload.id,
            verdict=verdict,
            reason=reason,
            rule=self.workload.rule(grant),
            **fields,
        )
        self.services.audit.settle_soon()  # waiting would cost each call a disk's latency


def place(error: BaseException) -> str:
    """Return where `error` arose, as file:line."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "an unknown place"
    return f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}"  # noqa: PTH119
