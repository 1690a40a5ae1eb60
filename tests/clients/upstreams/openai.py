"""Answers in the shapes of OpenAI's API reference: chat completions, responses, embeddings."""

from __future__ import annotations

import base64
import json
from typing import Any

from tests.clients.upstreams.server import Provider, Reply, Seen, as_json, pieces

# What a tool would not take for text: passed on byte for byte.
SPEECH = b"\xff\xfb\x90\x64" + bytes(range(256)) * 8
PICTURE = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 8).decode()
_USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}


def _errors(status: int, message: str) -> dict[str, Any]:
    kind = {401: "authentication_error", 429: "rate_limit_error"}.get(status, "server_error")
    if status == 400:
        kind = "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def _answers(seen: Seen, script: str, secret: str) -> Reply:
    path = seen.target.partition("?")[0]
    if path.endswith("/embeddings"):
        return _embeddings(seen.json)
    if "/files" in path:
        return _files(seen, secret)
    if path.endswith("/audio/speech"):
        return Reply(SPEECH, kind="audio/mpeg")
    if path.endswith("/audio/transcriptions"):
        return as_json({"text": f"Use {secret} with care."})
    if path.endswith("/images/generations"):
        return as_json({"created": 1, "data": [{"b64_json": PICTURE}]})
    if "/responses" in path:
        return _responses(seen.json, script, secret)
    return _chat(seen.json, script, secret)


def _events(events: list[Any], *, named: bool = False) -> list[bytes]:
    out = []
    for event in events:
        name = f"event: {event['type']}\n" if named else ""
        out.append(f"{name}data: {json.dumps(event)}\n\n".encode())
    return out


def _stream(events: list[bytes]) -> Reply:
    return Reply(events, kind="text/event-stream; charset=utf-8")


def _call(secret: str) -> tuple[str, str]:
    return "lookup", json.dumps({"city": "Berlin", "token": secret})


def _wants_tool(document: Any, script: str) -> bool:
    turns = document.get("messages") or document.get("input")
    answered = any(
        turn.get("role") == "tool" or turn.get("type") == "function_call_output"
        for turn in turns
        if isinstance(turn, dict)
    )
    return script == "tools" and not answered


def _chat(document: Any, script: str, secret: str) -> Reply:
    head = {"id": "chatcmpl-1", "created": 1, "model": document["model"]}
    name, arguments = _call(secret)
    text, tool = f"Use {secret} with care.", _wants_tool(document, script)
    reason = "tool_calls" if tool else "stop"
    if not document.get("stream"):
        message: dict[str, Any] = {"role": "assistant", "content": None if tool else text}
        if tool:
            function = {"name": name, "arguments": arguments}
            message["tool_calls"] = [{"id": "call_1", "type": "function", "function": function}]
        choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": None}
        body = {**head, "object": "chat.completion", "choices": [choice], "usage": _USAGE}
        return as_json(body, headers={"x-request-id": "req_1"})
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": None if tool else ""}]
    if tool:
        first = {"name": name, "arguments": ""}
        deltas.append(
            {"tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": first}]}
        )
        deltas += [
            {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}
            for piece in pieces(arguments)
        ]
    else:
        deltas += [{"content": piece} for piece in pieces(text)]
    choices = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    choices.append({"index": 0, "delta": {}, "finish_reason": reason})
    events = [{**head, "object": "chat.completion.chunk", "choices": [c]} for c in choices]
    if (document.get("stream_options") or {}).get("include_usage"):
        events.append({**head, "object": "chat.completion.chunk", "choices": [], "usage": _USAGE})
    return _stream([*_events(events), b"data: [DONE]\n\n"])


def _files(seen: Seen, secret: str) -> Reply:
    if seen.target.endswith("/content"):
        return Reply(f"Use {secret} with care.".encode(), kind="text/plain; charset=utf-8")
    return as_json(
        {
            "id": "file-1", "object": "file", "bytes": len(seen.body), "created_at": 1,
            "filename": "notes.txt", "purpose": "user_data", "status": "processed",
        }
    )  # fmt: skip


def _embeddings(document: Any) -> Reply:
    inputs = document["input"] if isinstance(document["input"], list) else [document["input"]]
    vectors = [
        {"object": "embedding", "index": index, "embedding": [0.25, -0.5, 0.125]}
        for index in range(len(inputs))
    ]
    usage = {"prompt_tokens": 4, "total_tokens": 4}
    body = {"object": "list", "data": vectors, "model": document["model"], "usage": usage}
    return as_json(body)


def _responses(document: Any, script: str, secret: str) -> Reply:
    text, tool = f"Use {secret} with care.", _wants_tool(document, script)
    name, arguments = _call(secret)
    if tool:
        item: dict[str, Any] = {
            "type": "function_call", "id": "fc_1", "call_id": "call_1", "name": name,
            "arguments": arguments, "status": "completed",
        }  # fmt: skip
        begun = {**item, "arguments": "", "status": "in_progress"}
    else:
        part = {"type": "output_text", "text": text, "annotations": []}
        item = {
            "type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
            "content": [part],
        }  # fmt: skip
        begun = {**item, "content": [], "status": "in_progress"}
    usage = {
        "input_tokens": 11, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": 7,
        "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 18,
    }  # fmt: skip
    whole = {
        "id": "resp_1", "object": "response", "created_at": 1, "status": "completed",
        "model": document["model"], "output": [item], "parallel_tool_calls": True,
        "tool_choice": "auto", "tools": document.get("tools", []), "usage": usage, "error": None,
        "incomplete_details": None, "instructions": None, "metadata": {}, "temperature": 1.0,
        "top_p": 1.0,
    }  # fmt: skip
    if not document.get("stream"):
        return as_json(whole)
    start = {**whole, "status": "in_progress", "output": [], "usage": None}
    place = {"item_id": item["id"], "output_index": 0}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": start},
        {"type": "response.in_progress", "response": start},
        {"type": "response.output_item.added", "output_index": 0, "item": begun},
    ]
    if tool:
        events += [
            {"type": "response.function_call_arguments.delta", **place, "delta": piece}
            for piece in pieces(arguments)
        ]
        events.append(
            {"type": "response.function_call_arguments.done", **place, "arguments": arguments}
        )
    else:
        place["content_index"] = 0
        empty = {"type": "output_text", "text": "", "annotations": []}
        events.append({"type": "response.content_part.added", **place, "part": empty})
        events += [
            {"type": "response.output_text.delta", **place, "delta": piece, "logprobs": []}
            for piece in pieces(text)
        ]
        events += [
            {"type": "response.output_text.done", **place, "text": text, "logprobs": []},
            {"type": "response.content_part.done", **place, "part": item["content"][0]},
        ]
    events += [
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": whole},
    ]
    numbered = [{**event, "sequence_number": number} for number, event in enumerate(events)]
    return _stream(_events(numbered, named=True))


PROVIDER = Provider(_answers, _errors)
