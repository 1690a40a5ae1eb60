"""What a client is told when the gateway says no: a status, a stable code, and what to do."""

from __future__ import annotations

import json

import h11

from ..errors import ProxyError


class Refusal(ProxyError):
    """A request that is not carried out; `code` is also the audit record's reason."""

    def __init__(
        self, status: int, code: str, message: str, *, verdict: str = "refused", retry: int = 0
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.verdict = verdict
        self.retry = retry

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The headers that belong to this status, beside those of every answer."""
        if self.status == 401:
            return [(b"www-authenticate", b"Bearer")]
        if self.retry:
            return [(b"retry-after", b"%d" % self.retry)]
        if self.code == "websocket_version":
            return [(b"sec-websocket-version", b"13"), (b"upgrade", b"websocket")]
        return []

    def body(self) -> bytes:
        """The JSON body: ``{"error": {"code", "message"}}``."""
        return json.dumps({"error": {"code": self.code, "message": self.message}}).encode()


class ClientGone(Exception):
    """The client closed its connection, or stopped taking what it asked for."""


def failed(status: int, code: str, message: str) -> Refusal:
    """A refusal that is our side's fault (5xx): the audit verdict is ``failed``."""
    return Refusal(status, code, message, verdict="failed")


def audit_unwritable() -> Refusal:
    """Nothing is carried out that cannot be recorded."""
    message = "The audit log cannot be written; ask the operator to free space, then try again."
    return failed(503, "audit_unwritable", message)


def common_headers(request: str) -> list[tuple[bytes, bytes]]:
    """The headers of every answer; `request` is the request id."""
    return [
        (b"x-request-id", request.encode("ascii")),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
        # A workload that turned hostile must not script the gateway's origin.
        (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'; sandbox"),
        (b"connection", b"close"),
    ]


def response(refusal: Refusal, request: str) -> tuple[h11.Response, bytes]:
    """The whole answer to a refused request: head and body."""
    body = refusal.body()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
        *refusal.headers(),
        *common_headers(request),
    ]
    return h11.Response(status_code=refusal.status, headers=headers), body
