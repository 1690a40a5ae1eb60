"""One completion, top to bottom: authorise, mask, record, inject the key, send, mask, answer."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
from dataclasses import dataclass
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from proxy.audit import AuditLog, AuditUnwritable

from . import authorize, reply
from .budget import OUTPUT_DEFAULT, Budgets, Reservation
from .config import Config, Grant, Upstream, Workload
from .errors import Refusal, unrecorded
from .guard import KeyGuard
from .keys import KeyRing
from .redaction.actions import Blocked, Treatments
from .redaction.json_walk import Document, JsonInvalid, JsonTooDeep, Untouchable, read, rewrite
from .redaction.scan import ScanFailed, Scanner
from .redaction.stream import HoldBack
from .redaction.text import Masker
from .redaction.views import DecodeLimit
from .sse import StreamInvalid
from .upstream import Upstreams
from .usage import output_bound, with_output_bound

BODY_TIME = 30.0
_WATCH_AFTER = 0.05
_MARK = "anchorhold-placeholder-"
_OUTPUT_BOUND = "max_tokens"
# Ends for which no upstream asks money: nothing was sent, or it refused.
_NOT_BILLED = frozenset(
    {"upstream_unreachable", "upstream_error", "credential_absent", "audit_unwritable"}
)
_REQUEST_ID = re.compile(rb"[0-9a-f]{16}")


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


class ClientGone(Exception):
    """The workload closed its connection; nothing is left to answer."""


class _Watch:
    """Cancels the task that made it when the client goes; begins only where an answer takes long.

    An answer that comes at once needs no watching, and is spared the cost of a second task.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._owner = asyncio.current_task()
        self._gone = False
        self._task: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(_WATCH_AFTER, self._begin)

    def _begin(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        if self._owner is not None:
            self._owner.cancel()

    def took_effect(self) -> bool:
        """True in the owner when it was this watch that cancelled it."""
        if self._gone and self._owner is not None:
            self._owner.uncancel()
        return self._gone

    def end(self) -> None:
        """Stop watching."""
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()


class Exchange:
    """One request of one workload. `run` answers it and writes its audit records, whatever happens.

    Two records: ``admission`` before the first byte leaves, so that nothing is sent that cannot be
    recorded, and ``completion`` with the outcome.
    """

    def __init__(self, services: Services, workload: Workload, scope: Scope) -> None:
        self.services = services
        self.workload = workload
        self.headers: authorize.Headers = scope["headers"]
        ids = [v for k, v in self.headers if k == b"x-request-id" and _REQUEST_ID.fullmatch(v)]
        self.id = ids[0].decode("ascii") if ids else os.urandom(8).hex()
        self.began = time.monotonic()
        self.grant: Grant | None = None
        self.outgoing: Masker | None = None
        self.incoming: Masker | None = None
        self.status = 0
        self.stream = False
        self.started = False
        self.admitted = False
        self.whole = False  # the body was read to its end
        self.size_in = self.size_out = 0
        self.header_keys = 0
        self.usage: dict[str, Any] | None = None
        self.reservation: Reservation | None = None

    async def run(self, receive: Receive, send: Send) -> None:
        """Answer the request. Raises nothing but cancellation by the server's own end."""
        refusal: Refusal | None = None
        try:
            await self._complete(receive, send)
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
        if self.started:
            await reply.send_stream_error(send, refusal)
        else:
            unread = None if self.whole else receive
            await reply.send_refusal(send, refusal, self.id, unread)

    async def _complete(self, receive: Receive, send: Send) -> None:
        services, workload = self.services, self.workload
        authorize.check_credential(self.headers, workload)
        authorize.check_stray(self.headers, services.placeholders)
        self.header_keys = authorize.live_keys(self.headers, services.guard)
        authorize.check_head(self.headers, workload)
        body = await self._body(receive)
        document = _document(body)
        model, self.stream = _asked(document.value)
        self.grant = authorize.grant_for(model, workload, self._shown)
        treatment = services.treatments[workload.id].of(self.grant.redact)
        outgoing = Masker(services.scanner, services.guard, treatment, sent=True)
        incoming = Masker(services.scanner, services.guard, treatment)
        self.outgoing, self.incoming = outgoing, incoming
        if services.ring.locked:
            raise Refusal("vault_locked", "The vault has not been unlocked.")

        def mask(text: str, before: str) -> str:
            if _MARK in text and any(mark in text for mark in services.placeholders):
                raise Refusal("credential_mismatch", "A placeholder was found in the body.")
            return outgoing.text(text, before)

        masked = rewrite(document, mask, lambda all_: _MARK in all_ or outgoing.suspects(all_))
        upstream = services.config.upstreams[self.grant.upstream]
        masked = self._reserve(self.grant, document.value, masked)
        self.record("admission", "allowed", None)
        self.admitted = True
        await self._forward(upstream, masked.encode("utf-8"), incoming, receive, send)

    async def _forward(
        self, upstream: Upstream, body: bytes, incoming: Masker, receive: Receive, send: Send
    ) -> None:
        """Send the masked body on and answer with what comes back; stop when the client goes."""
        watch = _Watch(receive)
        try:
            response = await self.services.upstreams.post(
                upstream, self._upstream_headers(upstream), body, self.workload.timeout
            )
            try:
                await reply.relay(self, incoming, upstream, response, send)
            except StreamInvalid as error:
                raise Refusal("upstream_invalid", f"{upstream.name}: {error}.") from None
            finally:
                # Cancels what the upstream still sends; a finished response went to the pool.
                response.close() if not response.content.at_eof() else response.release()
        except asyncio.CancelledError:
            if watch.took_effect():
                raise ClientGone from None
            raise
        finally:
            watch.end()

    def _reserve(self, grant: Grant, document: dict[str, Any], masked: str) -> str:
        """Take from the budgets what the request may use; return it with a bound on its output."""
        budgets, bound = self.services.budgets, None
        if budgets.bounds_output(self.workload, grant.name):
            try:
                bound = output_bound(document)
            except ValueError as error:
                message = f"There is a budget, and {error} is not a whole number."
                raise Refusal("invalid_json", message) from None
            if bound is None:
                masked = with_output_bound(masked, _OUTPUT_BOUND, OUTPUT_DEFAULT)
        size = len(masked.encode("utf-8"))
        self.reservation = budgets.reserve(self.workload, grant, size=size, output=bound)
        return masked

    def finish(self) -> None:
        """Write the outcome's record; called before the last byte of the answer is sent."""
        self.record("completion", "allowed", None)

    def _shown(self, text: str) -> str:
        """Return `text` from the request as it may stand in an error."""
        return Masker(self.services.scanner, self.services.guard, "strict").text(text[:80])

    def _upstream_headers(self, upstream: Upstream) -> dict[str, str]:
        """Everything is ours; the key is read here, as late as possible, and kept nowhere."""
        headers = {
            "Content-Type": "application/json",
            "Accept": "text/event-stream" if self.stream else "application/json",
            "Accept-Encoding": "identity",
            "User-Agent": "anchorhold",
            "X-Request-Id": self.id,
        }
        if upstream.credential is not None:
            if upstream.credential not in self.services.ring:
                raise Refusal("credential_absent", f"The vault has no key {upstream.credential}.")
            key = str(self.services.ring.value(upstream.credential), "latin-1")
            if not key.isascii() or not key.isprintable():
                raise Refusal("credential_absent", f"{upstream.credential} cannot be a header.")
            headers[upstream.header] = upstream.prefix + key
        return headers

    async def _body(self, receive: Receive) -> bytes:
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_TIME):
                while True:
                    message: Message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    body += message.get("body", b"")
                    self.size_in = len(body)
                    self.whole = not message.get("more_body", False)
                    if len(body) > self.workload.body_max:
                        raise authorize.too_large(self.workload)
                    if self.whole:
                        return bytes(body)
        except TimeoutError:
            raise Refusal("body_slow", f"The body took longer than {BODY_TIME:g} s.") from None

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
            fields |= {"model": self.grant.name, "upstream": self.grant.upstream}
        if event == "completion":
            fields |= self._settled(verdict, reason)
            fields |= {
                "status": self.status or None,
                "stream": self.stream,
                "bytes": {"request": self.size_in, "response": self.size_out},
                "tokens": _tokens(self.usage),
                "redacted": self._redacted(),
                "actions": self._actions(),
                "incidents": self._incidents() or None,
                "ms": round((time.monotonic() - self.began) * 1000, 3),
                "detail": detail,
            }
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

    def _settled(self, verdict: str, reason: str | None) -> dict[str, object]:
        """Settle the reservation; return the record's `cost` and what is left of the budgets.

        What broke off before its end may have been billed in full: then the reservation stands.
        """
        taken = self.reservation
        if taken is None:
            return {}
        if reason in _NOT_BILLED:
            taken.cancel()
        else:
            taken.settle(self.usage if verdict == "allowed" else None)
        record = taken.as_record()
        if taken.held:
            with contextlib.suppress(Refusal):
                record["budgets"] = self.services.budgets.state(self.workload.id)
        return record

    def _redacted(self) -> dict[str, dict[str, int]]:
        sides = {"request": self.outgoing, "response": self.incoming}
        return {name: side.tally.as_record() if side else {} for name, side in sides.items()}

    def _actions(self) -> dict[str, dict[str, dict[str, int]]]:
        sides = {"request": self.outgoing, "response": self.incoming}
        return {name: side.tally.as_actions() if side else {} for name, side in sides.items()}

    def _incidents(self) -> int:
        sides = [side for side in (self.outgoing, self.incoming) if side]
        return self.header_keys + sum(side.tally.live_keys for side in sides)


def place(error: BaseException) -> str:
    """Return where `error` arose, as file:line."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "an unknown place"
    return f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}"  # noqa: PTH119


def _document(body: bytes) -> Document:
    try:
        return read(body.decode("utf-8"))
    except UnicodeDecodeError:
        raise Refusal("invalid_json", "The body is not UTF-8.") from None
    except JsonTooDeep as error:
        raise Refusal("body_too_deep", f"The body is {error}.") from None
    except JsonInvalid as error:
        raise Refusal("invalid_json", f"The body is not JSON: {error}.") from None


def _asked(document: Any) -> tuple[str, bool]:
    if not isinstance(document, dict):
        raise Refusal("invalid_json", "The body is not a JSON object.")
    model, stream = document.get("model"), document.get("stream")
    if not isinstance(model, str) or not isinstance(document.get("messages"), list):
        raise Refusal("invalid_json", "The body needs model (a string) and messages (a list).")
    if stream not in (True, False, None):
        raise Refusal("invalid_json", "stream is true or false.")
    if any(document.get(name) not in (None, False, 0) for name in ("logprobs", "top_logprobs")):
        # They repeat the answer in pieces, and each piece in bytes: no secret is whole in any.
        raise Refusal("logprobs_not_allowed", "Token by token, an answer cannot be masked.")
    return model, bool(stream)


def _tokens(usage: dict[str, Any] | None) -> dict[str, int] | None:
    if not usage:
        return None
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    return {name: usage[name] for name in names if isinstance(usage.get(name), int)} or None
