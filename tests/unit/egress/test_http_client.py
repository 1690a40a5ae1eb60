"""The client towards model servers: what is ambiguous or too large is refused, nothing mixed up."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from .harness import Answer, Proxy, Upstream, chat, completion, reply

BODY = json.dumps(completion("ok")).encode()
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
LENGTH = b"content-length: %d\r\n" % len(BODY)
CHUNKED = b"transfer-encoding: chunked\r\n"
CHUNKS = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)


def raw(data: bytes, *, close: bool = False, step: int = 0) -> Answer:
    """An upstream that sends these bytes, at once or `step` at a time."""

    async def answer(_request: Any, writer: asyncio.StreamWriter) -> None:
        for at in range(0, len(data), step or len(data)):
            writer.write(data[at : at + (step or len(data))])
            await writer.drain()
        if close:
            writer.close()

    return answer


@pytest.mark.parametrize(
    "data",
    [
        HEAD + LENGTH + CHUNKED + b"\r\n" + CHUNKS,
        HEAD + LENGTH + b"content-length: 5\r\n\r\n" + BODY,
        HEAD + b"content-length: +5\r\n\r\n" + BODY,
        HEAD + b"content-length : 5\r\n\r\n" + BODY,
        HEAD + b"transfer-encoding: chunked, identity\r\n\r\n" + CHUNKS,
        HEAD + CHUNKED + b"\r\n" + b"5;\n" + CHUNKS,
        HEAD + CHUNKED + b"\r\n" + b"ffffffffffffffffff\r\n",
        HEAD + b"x-a: b\r\n folded: c\r\n" + LENGTH + b"\r\n" + BODY,
        HEAD + b"x-large: " + b"a" * 20_000 + b"\r\n" + LENGTH + b"\r\n" + BODY,
        HEAD + b"x: y\r\n" * 200 + LENGTH + b"\r\n" + BODY,
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n",
    ],
)
def test_ambiguous_or_foreign_answer_is_a_502(
    proxy: Proxy, upstream: Upstream, data: bytes
) -> None:
    upstream.answer = raw(data, close=True)
    answer = proxy.ask("x")
    assert answer.status == 502
    assert answer.code in ("upstream_disconnected", "upstream_invalid")
    upstream.answer = reply(completion("ok"))
    assert proxy.ask("x").json == completion("ok")


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize(
    "data",
    [
        HEAD + LENGTH + b"\r\n" + BODY,
        HEAD + CHUNKED + b"\r\n" + CHUNKS,
        HEAD + CHUNKED + b"\r\n" + CHUNKS[:-2] + b"x-trailer: y\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + HEAD + LENGTH + b"\r\n" + BODY,
        b"HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n" + BODY,
    ],
)
def test_every_right_framing_is_read(
    proxy: Proxy, upstream: Upstream, data: bytes, step: int
) -> None:
    upstream.answer = raw(data, close=data.startswith(b"HTTP/1.0"), step=step)
    for _ in range(2):
        answer = proxy.ask("x")
        assert (answer.status, answer.json) == (200, completion("ok"))
        assert not {"link", "x-trailer"} & answer.headers.keys()


def test_second_answer_that_nobody_asked_for_reaches_nobody(
    proxy: Proxy, upstream: Upstream
) -> None:
    other = json.dumps(completion("of another")).encode()
    more = HEAD + b"content-length: %d\r\n\r\n" % len(other) + other
    upstream.answer = raw(HEAD + LENGTH + b"\r\n" + BODY + more)
    for _ in range(3):
        answer = proxy.ask("x")
        assert "of another" not in answer.body.decode()
    upstream.answer = reply(completion("ok"))
    assert proxy.ask("x").json == completion("ok")


def test_answer_cut_short_is_no_answer(proxy: Proxy, upstream: Upstream) -> None:
    for framing, body in ((LENGTH, BODY[:-3]), (CHUNKED, CHUNKS[:-5])):
        upstream.answer = raw(HEAD + framing + b"\r\n" + body, close=True)
        answer = proxy.ask("x")
        assert (answer.status, answer.code) == (502, "upstream_disconnected")


def test_comment_keeps_the_client_while_text_is_held(proxy: Proxy, upstream: Upstream) -> None:
    """What may be the beginning of a secret waits; meanwhile the client hears that we live."""

    async def slow(_request: Any, writer: asyncio.StreamWriter) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n" + CHUNKED + b"\r\n"
        for text in ("it is sk-", "no key"):
            choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
            event = b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"
            writer.write(head + b"%x\r\n%s\r\n" % (len(event), event))
            await writer.drain()
            await asyncio.sleep(1.3)
            head = b""
        writer.write(b"0\r\n\r\n")

    upstream.answer = slow
    answer = proxy.request(chat("x", stream=True))
    assert b"\n\n:\n\n" in answer.body
    assert answer.text() == "it is sk-no key"
