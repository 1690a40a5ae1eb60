"""Routes beyond JSON: forms, files, batches, recordings and images; what they need of a policy."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from proxy.egress.bodies import multipart

from .harness import KEY, PLACEHOLDER, Proxy, Upstream, chat, completion, reply
from .samples import SECRETS

SECRET, MASK = SECRETS["openai-key"], "[REDACTED:openai-key]"
WAVE = (
    b"RIFF\x24\0\0\0WAVEfmt "
    + struct.pack("<IHHIIHH", 16, 1, 1, 8000, 8000, 1, 8)
    + b"data\0\0\0\0"
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, shared_upstream: Upstream) -> Iterator[Proxy]:
    granted = {
        "name": "gpt-1", "upstream": "openai", "rule": "more", "line": 9, "redact": "standard",
        "routes": ["files", "batches", "stored"],
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("files")
    started = Proxy(folder, shared_upstream, providers=("openai", "anthropic"), models=[granted])
    started.listen()
    started.unlock()
    yield started
    assert started.close() == b"", "the proxy printed something"


@pytest.fixture
def proxy(shared: Proxy, upstream: Upstream) -> Proxy:
    return shared


def form(fields: dict[str, str], *files: tuple[str, bytes, str]) -> tuple[str, bytes]:
    parts = [multipart.Part(name, None, "", value.encode()) for name, value in fields.items()]
    parts += [multipart.Part("file", name, kind, data) for name, data, kind in files]
    return multipart.build(parts)


def send(proxy: Proxy, path: str, sent: tuple[str, bytes], **headers: str) -> Any:
    kind, body = sent
    return proxy.request(body, path=path, headers={"content-type": kind, **headers})


def seen_parts(upstream: Upstream) -> list[multipart.Part]:
    (seen,) = upstream.seen
    assert int(seen.headers["content-length"]) == len(seen.body)
    return multipart.parse(seen.body, multipart.boundary(seen.headers["content-type"]))


def test_form_is_masked_in_every_place_and_the_recording_passes(
    proxy: Proxy, upstream: Upstream
) -> None:
    upstream.answer = reply({"text": f"heard {SECRET}"})
    fields = {"model": "gpt-1", "prompt": f"it says {SECRET}"}
    sent = form(fields, (f"{SECRET}.wav", WAVE, "audio/wav"))
    answer = send(proxy, "/openai/v1/audio/transcriptions", sent)
    assert answer.json == {"text": f"heard {MASK}"}
    model, prompt, file = seen_parts(upstream)
    assert (model.data, prompt.data) == (b"gpt-1", f"it says {MASK}".encode())
    assert (file.filename, file.data, file.kind) == (f"{MASK}.wav", WAVE, "audio/wav")
    assert SECRET.encode() not in upstream.seen[0].raw


def test_transcript_may_be_plain_text(proxy: Proxy, upstream: Upstream) -> None:
    upstream.answer = reply(f"1\n00:00 --> 00:01\n{SECRET}\n".encode(), kind="text/vtt")
    sent = form({"model": "gpt-1"}, ("a.wav", WAVE, "audio/wav"))
    answer = send(proxy, "/openai/v1/audio/transcriptions", sent)
    assert answer.body.decode() == f"1\n00:00 --> 00:01\n{MASK}\n"
    assert answer.headers["content-type"] == "text/vtt"


@pytest.mark.parametrize(
    "change",
    [
        lambda kind, body: (kind.partition(";")[0], body),
        lambda kind, body: (kind, b"before" + body),
        lambda kind, body: (kind, body + b"after"),
        lambda kind, body: (kind, body[:-4]),
        lambda kind, body: (kind, body.replace(b"Content-Type: audio/wav", b"X-Note: a")),
        lambda kind, body: (
            kind, body.replace(b"audio/wav", b"audio/wav\r\nContent-Transfer-Encoding: base64")),
        lambda kind, body: (kind, body.replace(b'filename="a', b'filename*="a')),
        lambda kind, body: (kind, body.replace(b'name="model"', b'name="other"')),
    ],
)  # fmt: skip
def test_form_that_can_be_read_in_two_ways_is_refused(
    proxy: Proxy, upstream: Upstream, change: Callable[[str, bytes], tuple[str, bytes]]
) -> None:
    sent = form({"model": "gpt-1"}, ("a.wav", WAVE, "audio/wav"))
    answer = send(proxy, "/openai/v1/audio/transcriptions", change(*sent))
    assert (answer.status, answer.code) == (400, "invalid_form")
    assert not upstream.seen
    upstream.answer = reply({"text": "ok"})
    assert send(proxy, "/openai/v1/audio/transcriptions", sent).status == 200


@pytest.mark.parametrize("data", [b"PK\x03\x04\xff\xfe zip", b"\xff\xfea\0b\0", b"text\0with nul"])
def test_file_that_cannot_be_looked_at_is_refused(
    proxy: Proxy, upstream: Upstream, data: bytes
) -> None:
    sent = form({"purpose": "user_data"}, ("a.bin", data, "application/octet-stream"))
    answer = send(proxy, "/openai/v1/files", sent)
    assert (answer.status, answer.code) == (415, "unsupported_type")
    assert not upstream.seen
    upstream.answer = reply({"id": "file-1"})
    sent = form({"purpose": "user_data"}, ("a.txt", f"my {SECRET}".encode(), "text/plain"))
    assert send(proxy, "/openai/v1/files", sent).status == 200
    assert seen_parts(upstream)[1].data == f"my {MASK}".encode()


def line(model: str) -> str:
    body = {"model": model, "messages": [{"role": "user", "content": SECRET}]}
    return json.dumps({"custom_id": "1", "method": "POST", "url": "/v1/x", "body": body}) + "\n"


def test_batch_is_masked_line_by_line_and_asks_only_for_granted_models(
    proxy: Proxy, upstream: Upstream
) -> None:
    upstream.answer = reply({"id": "file-1"})
    sent = form({"purpose": "batch"}, ("b.jsonl", (line("gpt-1") * 3).encode(), "text/plain"))
    assert send(proxy, "/openai/v1/files", sent).status == 200
    assert seen_parts(upstream)[1].data.decode() == (line("gpt-1") * 3).replace(SECRET, MASK)
    both = (line("gpt-1") + line("gpt-2")).encode()
    sent = form({"purpose": "batch"}, ("b.jsonl", both, "text/plain"))
    answer = send(proxy, "/openai/v1/files", sent)
    assert (answer.status, answer.code) == (403, "model_not_allowed")
    assert len(upstream.seen) == 1


@pytest.mark.parametrize("kind", ["application/octet-stream", "application/jsonl"])
def test_results_of_a_batch_come_masked(proxy: Proxy, upstream: Upstream, kind: str) -> None:
    row = json.dumps({"custom_id": "1", "response": {"body": completion(f"so {SECRET}")}}) + "\n"
    upstream.answer = reply((row * 2).encode(), kind=kind)
    answer = proxy.request(method="GET", path="/openai/v1/files/file-1/content")
    assert answer.body.decode() == (row * 2).replace(SECRET, MASK)
    assert proxy.last()["route"] == "GET /files/{id}/content"


def test_stored_answer_comes_masked_and_its_route_carries_no_body(
    proxy: Proxy, upstream: Upstream
) -> None:
    upstream.answer = reply({"id": "resp_1", "output": [{"content": [{"text": SECRET}]}]})
    path = "/openai/v1/responses/resp_1"
    answer = proxy.request({"secret": SECRET}, method="GET", path=path + "?include=x")
    assert answer.json["output"][0]["content"][0]["text"] == MASK
    assert upstream.seen[0].line == "GET /v1/responses/resp_1?include=x HTTP/1.1"
    assert upstream.seen[0].body == b""
    assert proxy.request(method="GET", path=f"/openai/v1/files/{SECRET}").status == 422
    assert proxy.request(method="DELETE", path=path).status == 200
    assert len(upstream.seen) == 2


@pytest.mark.parametrize("path", ["/v1/files", "/v1/messages/batches", "/v1/files/file_1"])
def test_route_without_a_model_needs_the_policys_word(
    proxy: Proxy, upstream: Upstream, path: str
) -> None:
    """The models of this upstream are granted, but no rule names the family of the route."""
    headers = {"x-api-key": PLACEHOLDER}
    answer = proxy.request(method="GET", path=f"/anthropic{path}", token=None, headers=headers)
    assert answer.status == 403 and "route_not_allowed" in answer.body.decode()
    assert not upstream.seen
    assert proxy.request(method="GET", path="/openai/v1/files").status == 200


def test_speech_comes_back_as_it_is(proxy: Proxy, upstream: Upstream) -> None:
    upstream.answer = reply(WAVE, kind="audio/wav")
    body = {"model": "gpt-1", "input": f"say {SECRET}", "voice": "alloy"}
    answer = proxy.request(body, path="/openai/v1/audio/speech")
    assert (answer.body, answer.headers["content-type"]) == (WAVE, "audio/wav")
    assert upstream.seen[0].json["input"] == f"say {MASK}"
    upstream.answer = reply(b"PK\x03\x04\xff", kind="audio/wav")
    assert proxy.request(body, path="/openai/v1/audio/speech").code == "upstream_invalid"


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(*texts: bytes, pixels: bytes = bytes(300)) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + head + b"".join(texts) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def jpeg(*segments: bytes) -> bytes:
    return (
        b"\xff\xd8\xff\xe0\0\x04JF"
        + b"".join(segments)
        + b"\xff\xda\0\x02"
        + bytes(300)
        + b"\xff\xd9"
    )


def segment(mark: int, body: bytes) -> bytes:
    return bytes([0xFF, mark]) + struct.pack(">H", len(body) + 2) + body


def webp(*chunks: bytes) -> bytes:
    body = b"WEBP" + b"VP8 " + struct.pack("<I", 300) + bytes(300) + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


HARMLESS = b"Comment\0taken in the garden"
TOLD = b"Comment\0" + SECRET.encode()
IMAGES = {
    "png text": (png(chunk(b"tEXt", HARMLESS), chunk(b"tEXt", TOLD)),
                 png(chunk(b"tEXt", HARMLESS))),
    "png packed text": (png(chunk(b"zTXt", b"C\0\0" + zlib.compress(TOLD))), png()),
    "png exif": (png(chunk(b"eXIf", TOLD.decode().encode("utf-16-le"))), png()),
    "png tail": (png() + TOLD, png()),
    "jpeg exif": (jpeg(segment(0xE1, b"Exif\0\0" + TOLD), segment(0xFE, HARMLESS)),
                  jpeg(segment(0xFE, HARMLESS))),
    "webp xmp": (webp(b"XMP " + struct.pack("<I", 60) + TOLD.ljust(60)[:60]), webp()),
}  # fmt: skip


@pytest.mark.parametrize("name", IMAGES)
def test_secret_in_the_metadata_of_an_image_is_left_out(
    proxy: Proxy, upstream: Upstream, name: str
) -> None:
    told, clean = IMAGES[name]
    for image, expected in ((told, clean), (clean, clean)):
        upstream.seen.clear()
        url = "data:image/png;base64," + base64.b64encode(image).decode()
        content = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": SECRET},
        ]
        assert (
            proxy.request({**chat(""), "messages": [{"role": "user", "content": content}]}).status
            == 200
        )
        sent = upstream.seen[0].json["messages"][0]["content"]
        assert base64.b64decode(sent[0]["image_url"]["url"].partition(",")[2]) == expected
        assert sent[1]["text"] == MASK


def test_pixels_are_no_text(proxy: Proxy, upstream: Upstream) -> None:
    """What a rule would take for a secret in base64, or in the image itself, is left alone."""
    image = png(pixels=SECRET.encode() + bytes(40) + b"AKIA" + b"Q" * 16)
    data = base64.b64encode(image).decode()
    source = {"type": "base64", "media_type": "image/png", "data": data}
    content = [{"type": "image", "source": source}]
    body = {"model": "anthropic-1", "messages": [{"role": "user", "content": content}]}
    headers = {"x-api-key": PLACEHOLDER}
    answer = proxy.request(body, path="/anthropic/v1/messages", token=None, headers=headers)
    assert answer.status == 200
    assert upstream.seen[0].json == body


def test_what_only_begins_like_an_image_is_looked_at_as_text(
    proxy: Proxy, upstream: Upstream
) -> None:
    fake = base64.b64encode(
        b"\x89PNG\r\n\x1a\n\0" + b"no chunks here " * 20 + SECRET.encode()
    ).decode()
    for text in (fake, "data:image/png;base64," + fake):
        answer = proxy.request({**chat(""), "image": text + "=" * (-len(fake) % 4)})
        assert (answer.status, answer.code) == (422, "secret_in_opaque")
    assert not upstream.seen


@pytest.mark.parametrize("name", [name for name in IMAGES if name != "png tail"])
def test_cut_image_is_refused_or_taken_but_breaks_nothing(
    proxy: Proxy, upstream: Upstream, name: str
) -> None:
    """Of an image cut anywhere either nothing passes, or nothing of the secret."""
    told, _ = IMAGES[name]
    for end in range(140, len(told), 61):
        upstream.seen.clear()
        image = base64.b64encode(told[:end]).decode()
        answer = proxy.request({**chat(""), "image": image})
        assert answer.status in (200, 422)
        for seen in upstream.seen:
            assert SECRET.encode() not in base64.b64decode(seen.json["image"])


@pytest.mark.parametrize("shift", [0, 1, 2])
def test_key_in_the_pixels_of_an_answer_never_passes(
    proxy: Proxy, upstream: Upstream, shift: int
) -> None:
    for pixels, status in ((bytes(shift) + KEY.encode(), 502), (bytes(60), 200)):
        data = base64.b64encode(png(pixels=bytes(200) + pixels)).decode()
        upstream.answer = reply({"data": [{"b64_json": data}]})
        body = {"model": "gpt-1", "prompt": "x"}
        answer = proxy.request(body, path="/openai/v1/images/generations")
        assert answer.status == status
        assert (data in answer.body.decode()) is (status == 200)
