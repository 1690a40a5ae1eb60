"""Our own answers in the shape of a provider: errors that its SDKs raise, and lists of models."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from .config import Grant
from .errors import Refusal

# google.rpc.Code for an HTTP status, as the Gemini API names it.
_RPC = {
    400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND",
    409: "ABORTED", 413: "INVALID_ARGUMENT", 415: "INVALID_ARGUMENT", 422: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED", 503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED",
}  # fmt: skip
_ANTHROPIC = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error",
    404: "not_found_error", 413: "request_too_large", 429: "rate_limit_error",
    529: "overloaded_error",
}  # fmt: skip


def error(shape: str, refusal: Refusal) -> bytes:
    """Return the JSON body that a client of a provider with this shape reads as an error."""
    return json.dumps(error_document(shape, refusal)).encode("ascii")


def error_document(shape: str, refusal: Refusal) -> dict[str, Any]:
    """As `error`, before encoding; also the data of an event that ends a stream."""
    message, status = f"{refusal.message} {refusal.fix}".strip(), refusal.status
    if shape == "anthropic":
        kind = _ANTHROPIC.get(status, "invalid_request_error" if status < 500 else "api_error")
        return {"type": "error", "error": {"type": kind, "message": message, "code": refusal.code}}
    if shape == "gemini":
        reason = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": refusal.code}
        rpc = _RPC.get(status, "INTERNAL")
        return {"error": {"code": status, "message": message, "status": rpc, "details": [reason]}}
    if shape == "ollama":
        return {"error": f"{message} ({refusal.code})"}
    inner = {"message": message, "type": refusal.type, "code": refusal.code, "param": None}
    return {"error": inner}


def models(shape: str, grants: Iterable[Grant]) -> dict[str, Any]:
    """Return the list of the models a workload may use; times are those of nobody: 0."""
    found = [model(shape, grant) for grant in grants]
    if shape == "anthropic":
        ends = {"first_id": found[0]["id"], "last_id": found[-1]["id"]} if found else {}
        return {"data": found, "has_more": False, **ends}
    if shape in ("gemini", "ollama"):
        return {"models": found}
    return {"object": "list", "data": found}


def model(shape: str, grant: Grant) -> dict[str, Any]:
    """Return one model as the provider's own list shows it."""
    name = grant.name
    if shape == "anthropic":
        at = "1970-01-01T00:00:00Z"
        return {"type": "model", "id": name, "display_name": name, "created_at": at}
    if shape == "gemini":
        ways = ["generateContent", "countTokens", "embedContent"]
        return {"name": f"models/{name}", "displayName": name, "supportedGenerationMethods": ways}
    if shape == "ollama":
        return {"name": name, "model": name}
    return {"id": name, "object": "model", "created": 0, "owned_by": grant.upstream}
