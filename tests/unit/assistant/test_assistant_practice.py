"""The practice model says what it is, counts honestly, and shows what reached it."""

from __future__ import annotations

import hashlib
import http.client
import json
from collections.abc import Callable
from typing import Any

import pytest
from assistant_house import Program, call

from assistant.practice import rules

KEY = {"authorization": "Bearer test-key-0123456789"}


@pytest.fixture
def port(start: Callable[..., Program]) -> int:
    """A running practice model."""
    return start("practice-model", "--port", "0").port


def chat(*turns: tuple[str, str], **more: object) -> dict[str, Any]:
    return {
        "model": "llm-v1",
        "messages": [{"role": role, "content": text} for role, text in turns],
        **more,
    }


ASK = chat(("system", "Draft a reply"), ("user", "From: Ann <ann@x.example>\n\nSee you 2026-12-01"))


def test_an_answer_is_labelled_and_usage_adds_up(port: int) -> None:
    status, answer = call(port, "POST", "/v1/chat/completions", ASK, KEY)
    assert status == 200
    assert answer["system_fingerprint"] == "practice"
    text = answer["choices"][0]["message"]["content"]
    assert "practice model" in text
    assert "Ann" in text
    assert "2026-12-01" in text
    usage = answer["usage"]
    assert usage["completion_tokens"] == rules.tokens(text)
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_the_stream_says_the_same_as_the_plain_answer(port: int) -> None:
    plain = call(port, "POST", "/v1/chat/completions", ASK, KEY)[1]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    order = {**ASK, "stream": True, "stream_options": {"include_usage": True}}
    connection.request("POST", "/v1/chat/completions", json.dumps(order), KEY)
    response = connection.getresponse()
    assert response.headers["content-type"] == "text/event-stream"
    lines = response.read().decode().split("\n\n")
    connection.close()
    assert lines[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"])
    assert text == plain["choices"][0]["message"]["content"]
    assert chunks[-1]["usage"] == plain["usage"]
    assert {c["system_fingerprint"] for c in chunks} == {"practice"}


def test_without_a_key_it_is_401_and_nothing_is_remembered(port: int) -> None:
    for headers in ({}, {"authorization": "Basic eA=="}, {"authorization": "Bearer "}):
        assert call(port, "POST", "/v1/chat/completions", ASK, headers)[0] == 401
        assert call(port, "GET", "/v1/models", None, headers)[0] == 401
    assert call(port, "GET", "/practice/requests")[1] == {"requests": []}


def test_it_shows_the_raw_body_and_only_the_hash_of_the_key(port: int) -> None:
    call(port, "POST", "/v1/chat/completions", ASK, {**KEY, "x-request-id": "00ff"})
    seen = call(port, "GET", "/practice/requests")[1]["requests"]
    assert len(seen) == 1
    assert json.loads(seen[0]["body"]) == ASK
    assert seen[0]["request"] == "00ff"
    assert seen[0]["bearer_sha256"] == hashlib.sha256(b"test-key-0123456789").hexdigest()
    assert "test-key" not in json.dumps(seen)


def test_it_remembers_the_last_fifty(port: int) -> None:
    for number in range(55):
        call(port, "POST", "/v1/chat/completions", chat(("user", f"number {number}")), KEY)
    seen = call(port, "GET", "/practice/requests")[1]["requests"]
    assert len(seen) == 50
    assert "number 54" in seen[-1]["body"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "invalid_json"),
        (b"{}", 400, "invalid_request"),
        (json.dumps({**ASK, "messages": []}).encode(), 400, "invalid_request"),
        (json.dumps({**ASK, "messages": [{"role": "king", "content": "x"}]}).encode(), 400, None),
        (json.dumps({**ASK, "model": "gpt-x"}).encode(), 404, "model_not_found"),
        (b"x" * ((2 << 20) + 1), 413, "message_too_large"),
    ],
)
def test_bad_requests_are_refused(port: int, body: bytes, status: int, code: str | None) -> None:
    answer = call(port, "POST", "/v1/chat/completions", body, KEY)
    assert answer[0] == status
    assert code in (None, answer[1]["error"]["code"])


def test_urgency_follows_the_words() -> None:
    assert rules.priority("please act immediately")["priority"] == "urgent"
    assert rules.priority("the deadline is near")["priority"] == "high"
    assert rules.priority("our newsletter")["priority"] == "low"
    assert rules.priority("hello")["priority"] == "normal"


def test_a_prompt_of_a_megabyte_is_read_quickly(port: int) -> None:
    for filler in ("a@" * 400_000, "a" * 800_000, "<a " * 300_000, "+1 " * 300_000):
        order = chat(("system", "Extract dates"), ("user", filler))
        assert call(port, "POST", "/v1/chat/completions", order, KEY)[0] == 200
