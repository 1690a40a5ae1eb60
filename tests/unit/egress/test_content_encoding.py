"""Compressed bodies, both ways: masked like others, bounded, and refused where they are wrong."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable

import brotli
import pytest
import zstandard

from proxy.egress.bodies.content_encoding import Decoder, EncodingWrong, TooLarge, decode

from .harness import Proxy, Upstream, chat, completion, reply
from .samples import SECRETS

ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": zstandard.compress,
}
SECRET, MASK = SECRETS["openai-key"], "[REDACTED:openai-key]"
each = pytest.mark.parametrize("encoding", ENCODERS)


@each
def test_compressed_request_is_masked_and_sent_on_plain(
    proxy: Proxy, upstream: Upstream, encoding: str
) -> None:
    body = ENCODERS[encoding](json.dumps(chat(f"my {SECRET}")).encode())
    assert proxy.request(body, headers={"content-encoding": encoding}).status == 200
    (seen,) = upstream.seen
    assert seen.json == chat(f"my {MASK}")
    assert "content-encoding" not in seen.headers
    assert int(seen.headers["content-length"]) == len(seen.body)


@each
def test_compressed_answer_is_masked_and_comes_plain(
    proxy: Proxy, upstream: Upstream, encoding: str
) -> None:
    body = ENCODERS[encoding](json.dumps(completion(f"your {SECRET}")).encode())
    upstream.answer = reply(body, content_encoding=encoding, etag="x", content_md5="y")
    answer = proxy.ask("x")
    assert answer.json == completion(f"your {MASK}")
    assert not {"content-encoding", "etag", "content-md5"} & answer.headers.keys()
    assert int(answer.headers["content-length"]) == len(answer.body)


@each
def test_bomb_is_refused_both_ways(proxy: Proxy, upstream: Upstream, encoding: str) -> None:
    bomb = ENCODERS[encoding](b" " * 50_000_000)
    assert len(bomb) < 100_000
    answer = proxy.request(bomb, headers={"content-encoding": encoding})
    assert (answer.status, answer.code) == (413, "body_too_large")
    assert not upstream.seen
    upstream.answer = reply(bomb, content_encoding=encoding)
    assert proxy.ask("x").code == "upstream_invalid"


@each
@pytest.mark.parametrize("change", ["cut", "more", "other"])
def test_wrongly_encoded_request_is_refused(
    proxy: Proxy, upstream: Upstream, encoding: str, change: str
) -> None:
    body = ENCODERS[encoding](json.dumps(chat("hello " * 99)).encode())
    wrong = {"cut": body[:-6], "more": body + body, "other": json.dumps(chat("x")).encode()}
    answer = proxy.request(wrong[change], headers={"content-encoding": encoding})
    assert (answer.status, answer.code) == (415, "unsupported_encoding")
    assert not upstream.seen
    assert proxy.request(body, headers={"content-encoding": encoding}).status == 200


@each
def test_output_is_counted_before_it_is_whole(encoding: str) -> None:
    data = ENCODERS[encoding](bytes(range(256)) * 4096)
    assert decode(data, encoding, 1 << 20) == bytes(range(256)) * 4096
    with pytest.raises(TooLarge):
        decode(data, encoding, (1 << 20) - 1)
    decoder = Decoder(encoding, 1 << 20)
    assert b"".join(decoder.feed(data[n : n + 1]) for n in range(len(data)))
    decoder.finish()
    with pytest.raises(EncodingWrong):
        decoder.feed(b"x")
