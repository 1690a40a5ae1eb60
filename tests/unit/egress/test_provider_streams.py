"""Streams of every provider: nothing secret leaves in pieces, and the client sees its own shape."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from .harness import PLACEHOLDER, Answer, Proxy, Request, Upstream, stream
from .samples import SECRETS

SECRET = SECRETS["openai-key"]
MASK = "[REDACTED:openai-key]"
TEXT, MASKED = f"the key {SECRET} is {SECRET}", f"the key {MASK} is {MASK}"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, shared_upstream: Upstream) -> Iterator[Proxy]:
    folder = tmp_path_factory.mktemp("streams")
    started = Proxy(folder, shared_upstream, providers=("anthropic", "gemini", "ollama"))
    started.listen()
    started.unlock()
    yield started
    assert started.close() == b"", "the proxy printed something"


@pytest.fixture
def proxy(shared: Proxy, upstream: Upstream) -> Proxy:
    return shared


def split(text: str, size: int) -> list[str]:
    return [text[n : n + size] for n in range(0, len(text), size)]


def named(event: dict[str, Any]) -> bytes:
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()


def events(body: bytes) -> list[dict[str, Any]]:
    """The data of each event, whose name must be the data's type."""
    found = []
    for block in body.decode().split("\n\n"):
        name, _, data = block.partition("\n")
        if block:
            found.append(json.loads(data.removeprefix("data: ")))
            assert name == f"event: {found[-1]['type']}"
    return found


def messages(proxy: Proxy, upstream: Upstream, sent: list[dict[str, Any]], **more: Any) -> Any:
    upstream.answer = stream([named(event) for event in sent], **more)
    body = {"model": "anthropic-1", "messages": [], "stream": True}
    headers = {"x-api-key": PLACEHOLDER}
    return proxy.request(body, path="/v1/messages", token=None, headers=headers)


def block(index: int, kind: dict[str, Any], deltas: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"type": "content_block_start", "index": index, "content_block": kind},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


@pytest.mark.parametrize("size", [1, 4, 30])
def test_anthropic_blocks_are_masked_before_each_one_stops(
    proxy: Proxy, upstream: Upstream, size: int
) -> None:
    arguments = json.dumps({"body": TEXT, "n": 1})
    usage = {"input_tokens": 7, "output_tokens": 1}
    sent = [
        {"type": "message_start", "message": {"id": "msg_1", "content": [], "usage": usage}},
        *block(0, {"type": "text", "text": ""},
               [{"type": "text_delta", "text": piece} for piece in split(TEXT, size)]),
        {"type": "ping"},
        *block(1, {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}},
               [{"type": "input_json_delta", "partial_json": p} for p in split(arguments, size)]),
        {"type": "message_delta", "delta": {"stop_reason": "x"}, "usage": {"output_tokens": 9}},
        {"type": "message_stop"},
    ]  # fmt: skip
    answer = messages(proxy, upstream, sent)
    assert SECRET not in answer.body.decode()
    got = events(answer.body)
    texts = {0: "", 1: ""}
    stopped: set[int] = set()
    for event in got:
        if event["type"] == "content_block_delta":
            assert event["index"] not in stopped
            assert event["delta"]["type"] == (
                "input_json_delta" if event["index"] else "text_delta"
            )
            piece = event["delta"].get("text") or event["delta"].get("partial_json") or ""
            texts[event["index"]] += piece
        elif event["type"] == "content_block_stop":
            stopped.add(event["index"])
    assert texts[0] == MASKED
    assert json.loads(texts[1]) == {"body": MASKED, "n": 1}
    shown = [event["type"] for event in got if event["type"] != "content_block_delta"]
    assert shown == [event["type"] for event in sent if event["type"] != "content_block_delta"]
    assert proxy.last()["tokens"] == {"input": 7, "output": 9}


@pytest.mark.parametrize(("text", "kept"), [(TEXT, False), ("a plain thought", True)])
def test_signature_over_a_masked_thought_is_emptied_and_else_passes_byte_for_byte(
    proxy: Proxy, upstream: Upstream, text: str, kept: bool
) -> None:
    signature = "Eo8C" + "c2ln" * 20 + "=="
    deltas: list[dict[str, Any]] = [
        {"type": "thinking_delta", "thinking": piece} for piece in split(text, 5)
    ]
    deltas.append({"type": "signature_delta", "signature": signature})
    sent = block(0, {"type": "thinking", "thinking": "", "signature": ""}, deltas)
    answer = messages(proxy, upstream, sent)
    got = [e["delta"] for e in events(answer.body) if e["type"] == "content_block_delta"]
    said = "".join(delta.get("thinking", "") for delta in got)
    assert said == (text if kept else MASKED)
    assert got[-1] == {"type": "signature_delta", "signature": signature if kept else ""}


def test_anthropic_stream_that_breaks_ends_with_an_error_event_and_nothing_raw(
    proxy: Proxy, upstream: Upstream
) -> None:
    pieces = [{"type": "text_delta", "text": piece} for piece in ("key ", SECRET[:-2])]
    sent = block(0, {"type": "text", "text": ""}, pieces)[:-1]
    got = events(messages(proxy, upstream, sent, abort=True, pause=0.05).body)
    assert got[-1]["type"] == "error" and got[-1]["error"]["code"] == "upstream_disconnected"
    assert SECRET[:8] not in json.dumps(got)
    assert proxy.last()["reason"] == "upstream_disconnected"


def test_interleaved_blocks_share_nothing(proxy: Proxy, upstream: Upstream) -> None:
    sent = []
    for one, other in zip(SECRET, SECRETS["github-token"], strict=False):
        for index, piece in enumerate((one, other)):
            delta = {"type": "text_delta", "text": piece}
            sent.append({"type": "content_block_delta", "index": index, "delta": delta})
    got = events(messages(proxy, upstream, sent).body)
    assert SECRETS["github-token"][:30] not in "".join(e["delta"]["text"] for e in got)
    first = "".join(e["delta"]["text"] for e in got if e["index"] == 0)
    assert first == MASK


def responses_events(text: str, arguments: str, size: int) -> list[dict[str, Any]]:
    """The events of one answer of the Responses API: a text, then a call of a function."""
    at, other = (
        {"item_id": "m", "output_index": 0, "content_index": 0},
        {"item_id": "f", "output_index": 1},
    )
    part = {"type": "output_text", "text": text, "annotations": []}
    call = {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": arguments}
    output = [{"type": "message", "content": [part]}, call]
    done = {"id": "resp_1", "output": output, "usage": {"input_tokens": 4, "output_tokens": 5}}
    kind = "response.function_call_arguments"
    found: list[dict[str, Any]] = [
        {"type": "response.created", "response": {"id": "resp_1", "output": []}},
        *({"type": "response.output_text.delta", **at, "delta": p} for p in split(text, size)),
        {"type": "response.output_text.done", **at, "text": text},
        {"type": "response.content_part.done", **at, "part": part},
        *({"type": f"{kind}.delta", **other, "delta": p} for p in split(arguments, size)),
        {"type": f"{kind}.done", **other, "arguments": arguments},
        {"type": "response.output_item.done", "output_index": 1, "item": call},
        {"type": "response.completed", "response": done},
    ]  # fmt: skip
    return [{**event, "sequence_number": n} for n, event in enumerate(found)]


@pytest.mark.parametrize("size", [1, 7, 500])
def test_responses_repeat_what_their_deltas_said(
    proxy: Proxy, upstream: Upstream, size: int
) -> None:
    arguments = json.dumps({"body": TEXT})
    upstream.answer = stream([named(e) for e in responses_events(TEXT, arguments, size)])
    answer = proxy.request({"model": "llm-v1", "input": "x", "stream": True}, path="/v1/responses")
    assert SECRET not in answer.body.decode()
    got = events(answer.body)
    assert [event["sequence_number"] for event in got] == list(range(len(got)))
    said = {"response.output_text": "", "response.function_call_arguments": ""}
    for event in got:
        if event["type"].endswith(".delta"):
            said[event["type"].removesuffix(".delta")] += event["delta"]
    text, call = said.values()
    assert text == MASKED and json.loads(call) == {"body": MASKED}
    (part,) = (e["part"] for e in got if e["type"] == "response.content_part.done")
    output = got[-1]["response"]["output"]
    assert part["text"] == output[0]["content"][0]["text"] == text
    assert output[1]["arguments"] == call
    assert proxy.last()["tokens"] == {"input": 4, "output": 5}


@pytest.mark.parametrize("finish", ["last", "every"])
def test_gemini_texts_and_thoughts_are_channels_of_their_own(
    proxy: Proxy, upstream: Upstream, finish: str
) -> None:
    sent = []
    for one, other in zip(split(TEXT, 6), split(TEXT, 6), strict=True):
        for part in ({"text": one, "thought": True}, {"text": other}):
            content = {"parts": [part], "role": "model"}
            candidate: dict[str, Any] = {"content": content, "index": 0}
            if finish == "every":
                candidate["finishReason"] = "STOP"
            sent.append({"candidates": [candidate], "modelVersion": "g"})
    sent[-1] |= {"usageMetadata": {"promptTokenCount": 8, "candidatesTokenCount": 6}}
    upstream.answer = stream([f"data: {json.dumps(event)}\r\n\r\n".encode() for event in sent])
    answer = proxy.request(
        {"contents": []}, token=None, headers={"x-goog-api-key": PLACEHOLDER},
        path="/v1beta/models/gemini-1:streamGenerateContent?alt=sse",
    )  # fmt: skip
    parts = [e["candidates"][0]["content"]["parts"][0] for e in answer.events()]
    assert "".join(p["text"] for p in parts if p.get("thought")) == MASKED
    assert "".join(p["text"] for p in parts if not p.get("thought")) == MASKED
    assert proxy.last()["tokens"] == {"input": 8, "output": 6}


def lines(sent: list[dict[str, Any]]) -> Answer:
    async def answer(_request: Request, writer: Any) -> None:
        data = b"".join(json.dumps(event).encode() + b"\n" for event in sent)
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\n"
        writer.write(head + b"content-length: %d\r\n\r\n" % len(data))
        for n in range(0, len(data), 11):
            writer.write(data[n : n + 11])
            await writer.drain()

    return answer


@pytest.mark.parametrize("size", [1, 9, 400])
def test_ollama_lines_are_masked_before_the_last(
    proxy: Proxy, upstream: Upstream, size: int
) -> None:
    for path, shape in (
        ("/api/chat", lambda piece: {"message": {"role": "assistant", "content": piece}}),
        ("/api/generate", lambda piece: {"response": piece}),
    ):
        sent = [{"model": "m", "done": False, **shape(piece)} for piece in split(TEXT, size)]
        sent.append(
            {"model": "m", "done": True, "prompt_eval_count": 5, "eval_count": 6, **shape("")}
        )
        upstream.answer = lines(sent)
        body = {"model": "ollama-1", "messages": [], "prompt": "x"}
        answer = proxy.request(body, path=path, token=None)
        assert answer.headers["content-type"] == "application/x-ndjson"
        got = [json.loads(line) for line in answer.body.splitlines()]
        said = [e["message"]["content"] if "message" in e else e["response"] for e in got]
        assert "".join(said) == MASKED
        assert [event["done"] for event in got] == [False] * (len(got) - 1) + [True]
        assert proxy.last()["tokens"] == {"input": 5, "output": 6}
        assert proxy.last()["stream"] is True


def test_text_after_the_end_of_its_element_ends_the_stream(
    proxy: Proxy, upstream: Upstream
) -> None:
    """Else an upstream could let a secret through by ending a choice in the middle of it."""

    def chunk(text: str, reason: str | None) -> bytes:
        choice = {"index": 0, "delta": {"content": text}, "finish_reason": reason}
        return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"

    upstream.answer = stream([chunk("key " + SECRET[:10], "stop"), chunk(SECRET[10:], "stop")])
    answer = proxy.ask("x", stream=True)
    assert answer.events()[-1]["error"]["code"] == "upstream_invalid"
    assert SECRET[10:] not in answer.body.decode()


@pytest.mark.parametrize("size", [1, 3, 8])
def test_event_like_the_last_is_treated_as_any_other(
    proxy: Proxy, upstream: Upstream, size: int
) -> None:
    """Events that differ in their piece alone are not parsed again; others are, to the same end."""
    text = f'so "{SECRET}" \\ and ä€ {SECRET}, "content" ' * 2

    def chunks(alike: bool) -> list[bytes]:
        events = []
        for n, piece in enumerate(split(text, size)):
            choice = {"index": 0, "delta": {"content": piece}, "finish_reason": None}
            events.append({"created": 1 if alike else n, "choices": [choice]})
        return [f"data: {json.dumps(event)}\n\n".encode() for event in events]

    upstream.answer = stream(chunks(alike=True))
    once = proxy.ask("x", stream=True).text()
    upstream.answer = stream(chunks(alike=False))
    assert once == proxy.ask("x", stream=True).text() == text.replace(SECRET, MASK)
