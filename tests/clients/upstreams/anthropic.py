"""Answers in the shapes of Anthropic's API reference: messages, with every kind of event."""

from __future__ import annotations

import json
from typing import Any

from tests.clients.upstreams.server import Provider, Reply, Seen, as_json, pieces

# Opaque to clients and proxies alike: given back byte for byte in the next turn.
SIGNATURE = "EqQBCgIYAhIM" + "Zm9vYmFy" * 12 + "=="
REDACTED = "EmwKAhgBEgy3" + "YmF6cXV4" * 10 + "=="
_KINDS = {
    400: "invalid_request_error", 401: "authentication_error", 429: "rate_limit_error",
    500: "api_error", 529: "overloaded_error",
}  # fmt: skip


def _errors(status: int, message: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": _KINDS[status], "message": message}}


def _blocks(document: Any, script: str, secret: str) -> list[dict[str, Any]]:
    text = f"Use {secret} with care."
    answered = "tool_result" in json.dumps(document["messages"])
    if script == "tools" and not answered:
        arguments = {"city": "Berlin", "token": secret}
        return [{"type": "tool_use", "id": "toolu_1", "name": "lookup", "input": arguments}]
    if script == "thinking":
        return [
            {"type": "thinking", "thinking": "The user is in a hurry.", "signature": SIGNATURE},
            {"type": "redacted_thinking", "data": REDACTED},
            {"type": "text", "text": text},
        ]
    if script == "citations":
        cited = {
            "type": "char_location", "cited_text": f"It says {secret}.", "document_index": 0,
            "document_title": "Notes", "start_char_index": 0, "end_char_index": 9,
            "file_id": None,
        }  # fmt: skip
        return [{"type": "text", "text": text, "citations": [cited]}]
    return [{"type": "text", "text": text}]


def _block_events(index: int, block: dict[str, Any]) -> list[dict[str, Any]]:
    kind = block["type"]
    empty = dict(block)
    deltas: list[dict[str, Any]] = []
    if kind == "text":
        empty["text"] = ""
        if "citations" in block:
            empty["citations"] = []
            deltas += [{"type": "citations_delta", "citation": c} for c in block["citations"]]
        deltas += [{"type": "text_delta", "text": piece} for piece in pieces(block["text"])]
    elif kind == "tool_use":
        empty["input"] = {}
        arguments = json.dumps(block["input"])
        parts = ["", *pieces(arguments)]
        deltas += [{"type": "input_json_delta", "partial_json": piece} for piece in parts]
    elif kind == "thinking":
        empty |= {"thinking": "", "signature": ""}
        thoughts = pieces(block["thinking"])
        deltas += [{"type": "thinking_delta", "thinking": piece} for piece in thoughts]
        deltas.append({"type": "signature_delta", "signature": block["signature"]})
    return [
        {"type": "content_block_start", "index": index, "content_block": empty},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


def _answers(seen: Seen, script: str, secret: str) -> Reply:
    document = seen.json
    if "count_tokens" in seen.target:
        return as_json({"input_tokens": 11})
    blocks = _blocks(document, script, secret)
    reason = "tool_use" if blocks[0]["type"] == "tool_use" else "end_turn"
    message = {
        "id": "msg_1", "type": "message", "role": "assistant", "model": document["model"],
        "content": blocks, "stop_reason": reason, "stop_sequence": None,
        "usage": {"input_tokens": 11, "output_tokens": 7},
    }  # fmt: skip
    if not document.get("stream"):
        return as_json(message, headers={"request-id": "req_1"})
    begun = {**message, "content": [], "stop_reason": None}
    events: list[dict[str, Any]] = [{"type": "message_start", "message": begun}, {"type": "ping"}]
    for index, block in enumerate(blocks):
        events += _block_events(index, block)
    if script == "stream-error":
        inner = {"type": "overloaded_error", "message": "Overloaded"}
        events = [*events[:4], {"type": "error", "error": inner}]
    else:
        ended = {"stop_reason": reason, "stop_sequence": None}
        usage = {"output_tokens": 7}
        events.append({"type": "message_delta", "delta": ended, "usage": usage})
        events.append({"type": "message_stop"})
    framed = [f"event: {e['type']}\ndata: {json.dumps(e)}\n\n".encode() for e in events]
    return Reply(framed, kind="text/event-stream; charset=utf-8")


PROVIDER = Provider(_answers, _errors)
