"""Answers in the shapes of the Gemini API reference: generate, stream, embed, count."""

from __future__ import annotations

import json
from typing import Any

from tests.clients.upstreams.server import Provider, Reply, Seen, as_json, pieces

_NAMES = {
    400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 429: "RESOURCE_EXHAUSTED", 500: "INTERNAL",
    529: "UNAVAILABLE",
}  # fmt: skip


def _errors(status: int, message: str) -> dict[str, Any]:
    return {"error": {"code": status, "message": message, "status": _NAMES[status]}}


def _part(document: Any, script: str, secret: str) -> dict[str, Any]:
    answered = "functionResponse" in json.dumps(document["contents"])
    if script == "tools" and not answered:
        arguments = {"city": "Berlin", "token": secret}
        return {
            "functionCall": {"name": "lookup", "args": arguments},
            "thoughtSignature": "c2lnbmF0dXJl" * 8,
        }
    return {"text": f"Use {secret} with care."}


def _chunk(part: dict[str, Any], model: str, last: bool) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": [part]}, "index": 0}
    if last:
        candidate["finishReason"] = "STOP"
    usage = {"promptTokenCount": 11, "candidatesTokenCount": 7, "totalTokenCount": 18}
    return {
        "candidates": [candidate], "usageMetadata": usage, "modelVersion": model,
        "responseId": "resp_1",
    }  # fmt: skip


def _answers(seen: Seen, script: str, secret: str) -> Reply:
    path = seen.target.partition("?")[0]
    model, _, method = path.rpartition("/")[2].partition(":")
    if "mbedContent" in method:
        vector = {"values": [0.25, -0.5, 0.125]}
        many = method.startswith("batch")
        return as_json({"embeddings": [vector]} if many else {"embedding": vector})
    if method.startswith("countTokens"):
        return as_json({"totalTokens": 11})
    part = _part(seen.json, script, secret)
    if not method.startswith("streamGenerateContent"):
        return as_json(_chunk(part, model, last=True))
    parts = [{"text": piece} for piece in pieces(part["text"])] if "text" in part else [part]
    chunks = [_chunk(p, model, last=n == len(parts) - 1) for n, p in enumerate(parts)]
    events = [f"data: {json.dumps(chunk)}\r\n\r\n".encode() for chunk in chunks]
    return Reply(events, kind="text/event-stream")


PROVIDER = Provider(_answers, _errors)
