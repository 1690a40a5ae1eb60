"""What one request did, and its audit records."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from ..audit import AuditLog
from .config import Route


@dataclass(slots=True)
class Ledger:
    """Filled in while a request is served. `bytes_in` and `bytes_out` count body bytes."""

    request: str
    peer: str
    started: float = field(default_factory=time.monotonic)
    method: str | None = None
    route: Route | None = None
    client: str | None = None
    status: int | None = None
    bytes_in: int = 0
    bytes_out: int = 0

    def admitted(self, audit: AuditLog) -> None:
        """Record that the request is about to be carried to its adapter."""
        self._write(audit, event="admitted", verdict="allowed")

    def ended(self, audit: AuditLog, verdict: str, reason: str | None) -> None:
        """Record the one "request" record: how it ended, its figures, and the rule behind it."""
        self._write(
            audit,
            event="request",
            verdict=verdict,
            reason=reason,
            status=self.status,
            bytes_in=self.bytes_in,
            bytes_out=self.bytes_out,
            ms=round((time.monotonic() - self.started) * 1000, 1),
        )

    def _write(self, audit: AuditLog, **record: object) -> None:
        route = self.route
        rule = None
        if route is not None:
            rule = {
                "file": route.file,
                "id": route.rule,
                "line": route.line,
                "digest": route.digest,
            }
        audit.write(
            hop="gateway",
            request=self.request,
            workload=route.workload if route else None,
            rule=rule,
            method=self.method,
            protocol=route.protocol if route else None,
            client=self.client,
            peer=self.peer,
            **record,
        )
