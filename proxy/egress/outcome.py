"""What the audit log is told of a request's end: sizes, tokens, counts of what was found, cost.

Of times: `ms` for all of it, `admission_ms` until the upstream was asked, `upstream_ms` from there
until the upstream began to answer.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from .errors import Refusal
from .usage import tokens_of

if TYPE_CHECKING:
    from .exchange import Exchange

# Ends for which no upstream asks money: nothing was sent, or it refused.
_NOT_BILLED = frozenset(
    {"upstream_unreachable", "upstream_error", "credential_absent", "audit_unwritable"}
)


def outcome(exchange: Exchange, verdict: str, reason: str | None) -> dict[str, object]:
    """Settle the budgets, and return the fields of the record that only an end has."""
    sides = {"request": exchange.outgoing, "response": exchange.incoming}
    incidents = sum(side.tally.live_keys for side in sides.values() if side)
    return _settled(exchange, verdict, reason) | {
        "status": exchange.status or None,
        "stream": exchange.stream,
        "bytes": {"request": exchange.size_in, "response": exchange.size_out},
        "tokens": _tokens(exchange),
        "redacted": {n: side.tally.as_record() if side else {} for n, side in sides.items()},
        "actions": {n: side.tally.as_actions() if side else {} for n, side in sides.items()},
        "incidents": exchange.header_keys + incidents or None,
        "ms": _ms(exchange.began, time.monotonic()),
        "admission_ms": _ms(exchange.began, exchange.sent),
        "upstream_ms": _ms(exchange.sent, exchange.heard),
    }


def _ms(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else round((end - start) * 1000, 3)


def _settled(exchange: Exchange, verdict: str, reason: str | None) -> dict[str, object]:
    """Settle the reservation; return the record's `cost` and what is left of the budgets.

    What broke off before its end may have been billed in full: then the reservation stands.
    """
    taken = exchange.reservation
    if taken is None:
        return {}
    if reason in _NOT_BILLED:
        taken.cancel()
    else:
        taken.settle(exchange.usage if verdict == "allowed" else None)
    record = taken.as_record()
    if taken.held:
        with contextlib.suppress(Refusal):
            record["budgets"] = exchange.services.budgets.state(exchange.workload.id)
    return record


def _tokens(exchange: Exchange) -> dict[str, int] | None:
    tokens = tokens_of(exchange.usage)
    if tokens is None:
        return None
    cache = {"cached": tokens.cached, "written": tokens.written}
    used = {name: count for name, count in cache.items() if count}
    return {"input": tokens.input, "output": tokens.output, **used}
