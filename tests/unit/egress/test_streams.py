"""Event streams: nothing secret leaves in pieces, and the rest arrives in order."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.egress.deltas import CHANNELS_MAX

from .harness import KEY, Proxy, Upstream, chat, delta, stream
from .samples import SECRETS

DONE = b"data: [DONE]\n\n"


def content(proxy: Proxy, upstream: Upstream, chunks: list[bytes], **more: Any) -> Any:
    upstream.answer = stream(chunks, **more)
    return proxy.request(chat("x", stream=True))


def test_plain_text_passes_in_order_and_ends_with_done(proxy: Proxy, upstream: Upstream) -> None:
    words = ["Hello", " there", ", it", " is", " 10:30", " on", " 2026-11-23", ".", " Bye"]
    usage = {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 9}}
    chunks = [*map(delta, words), delta(finish_reason="stop")]
    chunks += [b"data: " + json.dumps(usage).encode() + b"\n\n", DONE]
    answer = content(proxy, upstream, chunks)
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.text() == "".join(words)
    assert answer.events()[-1] == "[DONE]"
    assert proxy.last()["stream"] is True
    assert proxy.last()["tokens"] == {"input": 1, "output": 9}


def test_secret_split_over_deltas_is_masked(proxy: Proxy, upstream: Upstream) -> None:
    secret = SECRETS["openai-key"]
    for size in (1, 2, 5, 17):
        text = f"The key is {secret}, keep it."
        pieces = [text[n : n + size] for n in range(0, len(text), size)]
        answer = content(proxy, upstream, [*map(delta, pieces), delta(finish_reason="stop"), DONE])
        assert answer.text() == "The key is [REDACTED:openai-key], keep it."
        assert proxy.last()["redacted"]["response"] == {"openai-key": 1}


def test_live_key_split_over_deltas_is_masked_at_every_point(
    proxy: Proxy, upstream: Upstream
) -> None:
    for n in range(1, len(KEY)):
        answer = content(proxy, upstream, [delta("a " + KEY[:n]), delta(KEY[n:] + " b"), DONE])
        assert answer.text() == "a [REDACTED:live-key] b"
        assert proxy.last()["incidents"] == 1


@pytest.mark.parametrize("ending", ["stop", "done", "nothing"])
def test_held_text_comes_out_before_the_end(proxy: Proxy, upstream: Upstream, ending: str) -> None:
    chunks = [delta("call +49 30 "), delta("1234567")]
    chunks += [delta(finish_reason="stop")] if ending == "stop" else []
    chunks += [DONE] if ending != "nothing" else []
    answer = content(proxy, upstream, chunks)
    assert answer.text() == "call [REDACTED:phone-number]"
    events = [event for event in answer.events() if event != "[DONE]"]
    if ending == "stop":
        assert events[-1]["choices"][0]["finish_reason"] == "stop"
    else:
        assert events[-1]["object"] == "chat.completion.chunk"


def test_interleaved_choices_and_fields_do_not_share_state(
    proxy: Proxy, upstream: Upstream
) -> None:
    secret = SECRETS["github-token"]
    chunks = []
    for letter in secret:
        chunks.append(delta(letter, index=0))
        chunks.append(delta("x ", index=1))
        event = {"choices": [{"index": 0, "delta": {"reasoning_content": letter}}]}
        chunks.append(b"data: " + json.dumps(event).encode() + b"\n\n")
    answer = content(proxy, upstream, [*chunks, DONE])
    assert answer.text(0) == "[REDACTED:github-token]"
    assert answer.text(1) == "x " * len(secret)
    assert secret not in "".join(
        choice["delta"].get("reasoning_content", "")
        for event in answer.events()[:-1]
        for choice in event["choices"]
    )


def test_tool_arguments_are_masked_and_stay_json(proxy: Proxy, upstream: Upstream) -> None:
    secret = SECRETS["openai-key"]
    arguments = json.dumps({"to": "a@b.example", "body": f"key {secret} end", "n": 1})
    chunks = []
    for n in range(0, len(arguments), 3):
        call: dict[str, Any] = {"index": 0, "function": {"arguments": arguments[n : n + 3]}}
        if n == 0:
            call |= {"id": "call_1", "type": "function"}
            call["function"]["name"] = "send"
        event = {"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]}
        chunks.append(b"data: " + json.dumps(event).encode() + b"\n\n")
    answer = content(proxy, upstream, [*chunks, DONE])
    calls = [
        call
        for event in answer.events()[:-1]
        for choice in event["choices"]
        for call in choice["delta"]["tool_calls"]
    ]
    assert json.loads("".join(call["function"]["arguments"] for call in calls)) == {
        "to": "a@b.example",
        "body": "key [REDACTED:openai-key] end",
        "n": 1,
    }
    assert calls[0]["id"] == "call_1" and calls[0]["function"]["name"] == "send"


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
def test_chunks_may_end_anywhere(proxy: Proxy, upstream: Upstream, newline: bytes) -> None:
    events = b"\xef\xbb\xbf: comment\n" + delta("grün ") + b"event: x\nid: 7\nretry: 1\n"
    data = (events + delta(SECRETS["jwt"] + " é") + DONE).replace(b"\n", newline)
    answer = content(proxy, upstream, [data[n : n + 1] for n in range(len(data))])
    assert answer.text() == "grün [REDACTED:jwt] é"
    assert b"comment" not in answer.body and b"id: 7" not in answer.body


def test_aborted_stream_never_shows_what_was_held(proxy: Proxy, upstream: Upstream) -> None:
    secret = SECRETS["openai-key"]
    answer = content(proxy, upstream, [delta("key " + secret[:-2])], abort=True, pause=0.05)
    assert answer.text() == "key "
    assert answer.events()[-1]["error"]["code"] == "upstream_disconnected"
    assert secret[:8] not in answer.body.decode()
    assert proxy.last()["reason"] == "upstream_disconnected"


@pytest.mark.parametrize(
    "bad",
    [b"data: {\n\n", b"data: []\n\n", b'data: {"choices": 1}\n\n', b"data: \xff\n\n",
     b"data: " + b"x" * 1_100_000],
)  # fmt: skip
def test_invalid_event_ends_the_stream_with_an_error(
    proxy: Proxy, upstream: Upstream, bad: bytes
) -> None:
    answer = content(proxy, upstream, [delta("one "), bad, delta("two")])
    assert answer.text() == "one "
    assert answer.events()[-1]["error"]["code"] == "upstream_invalid"


def test_stream_is_recognised_by_its_type_not_by_what_was_asked(
    proxy: Proxy, upstream: Upstream
) -> None:
    upstream.answer = stream([delta(f"is {SECRETS['aws-access-key-id']} "), DONE])
    assert proxy.ask("x").text() == "is [REDACTED:aws-access-key-id] "


def test_logprobs_of_a_stream_are_dropped(proxy: Proxy, upstream: Upstream) -> None:
    chunks = [
        delta(c, logprobs={"content": [{"token": c, "bytes": [ord(c)]}]})
        for c in f"{SECRETS['openai-key']} end"
    ]
    answer = content(proxy, upstream, [*chunks, DONE])
    assert answer.text() == "[REDACTED:openai-key] end"
    shown = [choice for event in answer.events()[:-1] for choice in event["choices"]]
    assert all(choice.get("logprobs") is None for choice in shown)
    assert "bytes" not in answer.body.decode()


def test_answer_with_too_many_fields_ends(proxy: Proxy, upstream: Upstream) -> None:
    chunks = [delta("word ", index=n) for n in range(CHANNELS_MAX)]
    answer = content(proxy, upstream, [*chunks, DONE])
    assert answer.events()[-1] == "[DONE]"
    answer = content(proxy, upstream, [*chunks, delta("word ", index=CHANNELS_MAX), DONE])
    assert answer.events()[-1]["error"]["code"] == "upstream_invalid"
    assert answer.text(CHANNELS_MAX - 1) == "word " and answer.text(CHANNELS_MAX) == ""
