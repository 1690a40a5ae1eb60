"""Secrets written so that a plain search misses them, and texts that only look like secrets."""

from __future__ import annotations

import base64
import hashlib
import json
import uuid
from collections.abc import Callable

import pytest

from proxy.egress.guard import KeyGuard
from proxy.egress.keys import KeyRing
from proxy.egress.redaction import rules
from proxy.egress.redaction.hold import HoldBack
from proxy.egress.redaction.scan import Scanner
from proxy.egress.redaction.stream import Channel
from proxy.egress.redaction.text import Masker

from .evasions import EVASIONS
from .samples import IN_CONTEXT, SECRETS, draw

BOOK = rules.load()
SCANNER = Scanner(BOOK)
HOLD = HoldBack(BOOK)
GUARD = KeyGuard(KeyRing())
RECALL = 0.95
# A stream is masked as the finished text, but for so many of 100 cases; nothing secret passes in
# these either: two dashes of a key block are gone before a third is there.
UNLIKE = {"E17 percent in base64": 2}
# What is written in another form, and what must be gone afterwards.
CASES = [(secret, secret) for secret in SECRETS.values()] + [
    (context.format(secret), secret) for _, context, secret in IN_CONTEXT
]


def finished(text: str) -> str:
    return Masker(SCANNER, GUARD, "standard").text(text)


def in_a_document(text: str) -> str:
    document = {"messages": [{"role": "user", "content": text}], "model": "m"}
    masked = Masker(SCANNER, GUARD, "standard").document(json.dumps(document))
    content = json.loads(masked)["messages"][0]["content"]
    assert isinstance(content, str)
    return content


def in_json_in_json(text: str) -> str:
    arguments = json.dumps({"body": text})
    masked = Masker(SCANNER, GUARD, "standard").document(json.dumps({"arguments": arguments}))
    inner = json.loads(masked)["arguments"]
    assert isinstance(inner, str)
    return inner


def in_pieces(text: str, size: int) -> str:
    channel = Channel(Masker(SCANNER, GUARD, "standard"), HOLD)
    passed = [channel.feed(text[n : n + size]) for n in range(0, len(text), size)]
    return "".join(passed) + channel.flush()


WAYS: dict[str, Callable[[str], str]] = {
    "finished": finished,
    "document": in_a_document,
    "json in json": in_json_in_json,
}


def test_there_are_enough_kinds_for_a_recall() -> None:
    assert len(CASES) >= 20


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("evasion", EVASIONS)
def test_a_disguised_secret_is_masked(evasion: str, way: str) -> None:
    disguise = EVASIONS[evasion]
    missed = []
    for text, secret in CASES:
        whole = f"see {disguise(text)} now"
        masked = WAYS[way](whole)
        if "[REDACTED:" not in masked or secret in masked or disguise(secret) in masked:
            missed.append(text[:12])
        assert masked.startswith(("see ", '{"body": "see ')) and masked.rstrip('"}').endswith("now")
    assert len(missed) <= (1 - RECALL) * len(CASES), missed
    harmless = f"see {disguise('Plain words, which nobody would ever want to hide')} now"
    assert finished(harmless) == harmless, "the control: the disguise itself is no secret"


@pytest.mark.parametrize("evasion", EVASIONS)
def test_a_disguised_secret_in_a_stream_is_masked_as_in_a_finished_text(evasion: str) -> None:
    disguise = EVASIONS[evasion]
    missed, unlike, rounds = [], [], 0
    for number, (text, secret) in enumerate(CASES):
        whole = f"see {disguise(text)} now"
        expected = finished(whole)
        for size in (len(whole) // 2, 11) + ((1,) if number % 9 == 0 else ()):
            masked = in_pieces(whole, size)
            rounds += 1
            unlike += [text[:12]] if masked != expected else []
            if "[REDACTED:" not in masked or secret in masked or disguise(secret) in masked:
                missed.append(text[:12])
    assert len(missed) <= (1 - RECALL) * rounds, missed
    assert len(unlike) <= UNLIKE.get(evasion, 0) / 100 * rounds, unlike


UNSEEN = "\u200b\u2060\u00ad\ufeff\u202e\ufe0f\u0301\u0e47\u3164\U000e0041\0\x0b"


@pytest.mark.parametrize("inner", [name for name in EVASIONS if name[:3] in ("E14", "E17", "E18")])
def test_unseen_characters_in_an_encoded_run_do_not_hide_what_it_says(inner: str) -> None:
    secret = SECRETS["github-token"]
    run = EVASIONS[inner](secret)
    for number, mark in enumerate(UNSEEN):
        place = 5 + 7 * number % (len(run) - 6)
        for hidden in (f"{run[:place]}{mark}{run[place:]}", mark.join(run)):
            text = f"see {hidden} now"
            masked = finished(text)
            assert masked.startswith("see ") and masked.endswith(" now")
            assert "[REDACTED:github-token]" in masked and run[8:] not in masked, f"{mark!a}"
            assert in_pieces(text, 13) == masked, f"{mark!a}"


# Values whose beginning nothing else has. The others need a border: "task-" is no "sk-".
GLUED = [
    "openai-key", "anthropic-key", "aws-access-key-id", "github-token", "github-fine-grained-token",
    "gitlab-token", "slack-token", "stripe-key", "google-api-key", "npm-token", "databricks-token",
    "digitalocean-token", "sendgrid-key",
]  # fmt: skip


@pytest.mark.parametrize("glue", ["x", "Q", "7", "_", "key_", "a1b2"])
@pytest.mark.parametrize("form", ["plain", "E14 base64", "E17 hex"])
def test_what_is_glued_to_its_front_does_not_hide_a_value(form: str, glue: str) -> None:
    disguise = EVASIONS.get(form, str)
    for kind in GLUED:
        secret = SECRETS[kind]
        whole = f"see {disguise(glue + secret)} now"
        masked = finished(whole)
        assert "[REDACTED:" in masked and disguise(glue + secret) not in masked, kind
        assert secret[6:] not in masked, kind
        for size in (1, 7, len(whole) // 2):
            streamed = in_pieces(whole, size)
            assert "[REDACTED:" in streamed and disguise(glue + secret) not in streamed, kind
            assert secret[6:] not in streamed, kind


@pytest.mark.parametrize(
    "text",
    [
        f"a task-{draw(40)} b",
        f"the disk_test_{draw(24)} b",
        "TODAYINASIAANYSACKOFRICEFELLOVER",
        "the desk-service-questions-of-today and helpdesk-admin-frontend-main",
        f"cache_key_{draw(64, '0123456789abcdef')}",
    ],
)
def test_an_ordinary_word_that_ends_like_a_beginning_passes(text: str) -> None:
    assert finished(text) == text


def test_a_number_beside_a_run_of_hexadecimal_digits_is_no_part_of_it() -> None:
    """What it says would grow by a letter, and a key that must end there would not be one."""
    secret = SECRETS["google-api-key"]
    for text in (f"{secret.encode().hex()} 30", f"30 {secret.encode().hex()}"):
        assert "[REDACTED:google-api-key]" in finished(text)
        assert secret.encode().hex() not in finished(text)
    spaced = secret.encode().hex(" ")
    assert spaced[:40] not in finished(f"{spaced} and"), "pairs that are all set apart are one run"


ORDINARY = {
    "git SHA": "commit 3f786850e387550fdab836ed7e6dc881de23001b\nMerge: 89e6c98 2b66fd2",
    "UUID": f"id {uuid.UUID(int=0x123E4567E89B12D3A456426614174000)} and request 7f000001",
    "trace id": "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "integrity": "sha512-" + base64.b64encode(hashlib.sha512(b"x").digest()).decode(),
    "digest": "sha256:" + hashlib.sha256(b"layer").hexdigest(),
    "example keys": "AKIAIOSFODNN7EXAMPLE and api_key=<your-api-key> token=${TOKEN}",
    "image": "data:image/png;base64,iVBORw0KGgo"
    + base64.b64encode(hashlib.shake_128(b"pixels").digest(60_000)).decode(),
    "base64 of words": base64.b64encode(b"The quick brown fox jumps over the lazy dog.").decode(),
    "minified script": 'var e=t=>{const n=a*b*c;return`${n}\\x41`},r="\\u0041\\n";e(r)&&f||g' * 9,
    "URL": "https://example.org/a%20b/c?q=caf%C3%A9&x=20&y=%2Fetc#frag",
    "Markdown": "**Bold** and `code`, *so* and ~~not~~, a*b*c, snake_case, __init__",
    "other scripts": "Привет, мир! Καλημέρα. 漢字かな交じり文。 Grüße, naïve façade — “quoted” 😀",
    "already masked": "key [REDACTED:openai-key] and [REDACTED:live-key].",
    "order numbers": "order 4111111111111112, invoice 5500000000000005, item 12345678901234",
    "dates and times": "2026-11-23T10:30:00+01:00, 23.11.2026, 1699999999, 10:30-12:45",
    "versions": "version 1.2.3-rc4+build.567, numpy==1.26.4, linux-6.1.0-13-amd64",
    "Windows path": "C:\\Users\\name\\new\\token\\u0041.txt and \\\\server\\share",
    "ANSI": "\x1b[1;32mPASS\x1b[0m tests/test_x.py",
}


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_text_passes_byte_for_byte(name: str) -> None:
    text = ORDINARY[name]
    assert finished(text) == text
    assert in_pieces(text[:2000], 3) == text[:2000]
    assert finished(f"{text} {SECRETS['github-token']}") == f"{text} [REDACTED:github-token]"


def test_the_placeholder_does_not_tell_the_length() -> None:
    masked = {finished(f"key sk-{draw(size)} end") for size in (24, 48, 90)}
    assert masked == {"key [REDACTED:openai-key] end"}
