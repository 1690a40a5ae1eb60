"""Answers in the shapes of Ollama's API reference: chat, generate, embed; streams are NDJSON."""

from __future__ import annotations

import json
from typing import Any

from tests.clients.upstreams.server import Provider, Reply, Seen, as_json, pieces

_DONE = {
    "done": True, "done_reason": "stop", "total_duration": 9, "load_duration": 1,
    "prompt_eval_count": 11, "prompt_eval_duration": 2, "eval_count": 7, "eval_duration": 3,
}  # fmt: skip


def _errors(_status: int, message: str) -> dict[str, Any]:
    return {"error": message}


def _answers(seen: Seen, script: str, secret: str) -> Reply:
    document = seen.json
    if "/embed" in seen.target:
        return as_json({"model": document["model"], "embeddings": [[0.25, -0.5, 0.125]]})
    chat = "/chat" in seen.target
    head = {"model": document["model"], "created_at": "2026-01-01T00:00:00Z"}
    text = f"Use {secret} with care."
    answered = any(turn["role"] == "tool" for turn in document.get("messages", ()))
    messages: list[dict[str, Any]] = [
        {"role": "assistant", "content": piece}
        for piece in (pieces(text) if document.get("stream", True) else [text])
    ]
    if script == "tools" and not answered:
        function = {"name": "lookup", "arguments": {"city": "Berlin", "token": secret}}
        messages = [{"role": "assistant", "content": "", "tool_calls": [{"function": function}]}]
    bodies = [{"message": m} if chat else {"response": m["content"]} for m in messages]
    if not document.get("stream", True):
        return as_json({**head, **bodies[0], **_DONE})
    empty = {"message": {"role": "assistant", "content": ""}} if chat else {"response": ""}
    lines = [{**head, **body, "done": False} for body in bodies]
    lines.append({**head, **empty, **_DONE})
    framed = [json.dumps(line).encode() + b"\n" for line in lines]
    return Reply(framed, kind="application/x-ndjson")


PROVIDER = Provider(_answers, _errors)
