"""What must hold whatever comes: one strategy for the input and one check for each property."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from proxy import providers
from proxy.egress.deltas import StreamInvalid, StreamMasker
from proxy.egress.guard import KeyGuard
from proxy.egress.keys import KeyRing
from proxy.egress.redaction import rules
from proxy.egress.redaction.hold import HoldBack
from proxy.egress.redaction.json_walk import JsonInvalid, parse
from proxy.egress.redaction.scan import ScanFailed, Scanner
from proxy.egress.redaction.stream import Channel
from proxy.egress.redaction.text import Masker
from proxy.egress.sse import EventReader
from tests.unit.egress.evasions import EVASIONS
from tests.unit.egress.samples import SECRETS

_BOOK = rules.load()
_SCANNER = Scanner(_BOOK)
_HOLD = HoldBack(_BOOK)
_GUARD = KeyGuard(KeyRing())
_PROVIDER = providers.load()[providers.DEFAULT]
_STREAM = next((r.stream, _PROVIDER) for r in _PROVIDER.routes if r.stream)
# Never part of another value, so that each must be gone wherever it stands between spaces.
_KINDS = ("openai-key", "github-token", "google-api-key", "aws-access-key-id")
_secrets = st.sampled_from([SECRETS[kind] for kind in _KINDS])
_scraps = st.sampled_from(
    [
        *('password="', "token: ", "+1 ", "-----BEGIN ", "://a:", "@x", "H4sI", "eJw", "%25"),
        *("&#x7", "\\u00", "=\n", "**", "\x1b[", "\u200b", "\ud83d", "AAAA", "key", "ey", "4111 "),
    ]
)
_noise = st.lists(st.one_of(st.text(max_size=8), _scraps), max_size=8).map("".join)
_cuts = st.lists(st.integers(0, 1 << 14), max_size=20)


def _masker() -> Masker:
    return Masker(_SCANNER, _GUARD, "strict")


def _pieces(text: Any, cuts: list[int]) -> list[Any]:
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[a:b] for a, b in itertools.pairwise(places)]


def _no_stream_lets_a_secret_through(case: tuple[str, str, str, list[int]]) -> None:
    before, hidden, after, cuts = case
    channel = Channel(_masker(), _HOLD)
    with contextlib.suppress(ScanFailed):  # refused is well too
        passed = "".join(map(channel.feed, _pieces(f"{before} {hidden} {after}", cuts)))
        passed += channel.flush()
        assert hidden not in passed


def _glue_hides_no_secret(case: tuple[str, str, str, list[int]]) -> None:
    glue, secret, form, cuts = case
    hidden = EVASIONS[form](glue + secret) if form else glue + secret
    text = f"see {hidden} now"
    with contextlib.suppress(ScanFailed):
        channel = Channel(_masker(), _HOLD)
        streamed = "".join(map(channel.feed, _pieces(text, cuts))) + channel.flush()
        for masked in (_masker().text(text), streamed):
            assert "[REDACTED:" in masked
            assert hidden not in masked and secret not in masked


def _masking_twice_is_masking_once(text: str) -> None:
    with contextlib.suppress(ScanFailed):
        once = _masker().text(text)
        assert _masker().text(once) == once


def _shown(value: Any) -> list[str]:
    """The secrets that stand as strings of their own in `value`."""
    if isinstance(value, dict):
        return [secret for item in value.values() for secret in _shown(item)]
    if isinstance(value, list):
        return [secret for item in value for secret in _shown(item)]
    return [value] if value in (SECRETS[kind] for kind in _KINDS) else []


def _json_stays_json(case: tuple[Any, bool]) -> None:
    document, ascii_only = case
    text = json.dumps(document, ensure_ascii=ascii_only)
    with contextlib.suppress(JsonInvalid, ScanFailed):
        parse(text)
        masked = _masker().document(text)
        parse(masked)
        assert not any(secret in masked for secret in _shown(document))


def _what_is_no_json_is_refused(text: str) -> None:
    with contextlib.suppress(JsonInvalid):
        parse(text)
        json.loads(text)


def _any_bytes_are_a_stream_or_refused(case: tuple[bytes, list[int]]) -> None:
    data, cuts = case
    kind, provider = _STREAM
    reader, masker = EventReader(), StreamMasker(kind, provider, _masker(), _HOLD)
    with contextlib.suppress(StreamInvalid, ScanFailed):
        for chunk in _pieces(data, cuts):
            for event in reader.feed(chunk):
                masker.event(event)
        for event in reader.close():
            masker.event(event)
        masker.end()


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _noise | _secrets,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_noise, inner, max_size=4),
    max_leaves=12,
)
_deltas = st.builds(
    lambda text, index, key: {"choices": [{"index": index, "delta": {key: text}}]},
    st.one_of(_noise, _secrets),
    st.integers(-1, 3),
    st.sampled_from(["content", "reasoning_content", "refusal", "tool_calls"]),
)
_event = st.one_of(_deltas, _values).map(lambda value: b"data: " + json.dumps(value).encode())
_stream = st.lists(
    st.one_of(_event, st.binary(max_size=20), st.just(b"data: [DONE]")), max_size=8
).map(b"\n\n".join)
# Without vowels: "task-" and "disk-" are words.
_glue = st.text("bkxQZ079_", max_size=8)
_hidden = st.builds(
    lambda secret, form: EVASIONS[form](secret), _secrets, st.sampled_from(sorted(EVASIONS))
)

PROPERTIES: dict[str, tuple[st.SearchStrategy[Any], Callable[[Any], None]]] = {
    "no stream lets a secret through": (
        st.tuples(_noise, _hidden, _noise, _cuts),
        _no_stream_lets_a_secret_through,
    ),
    "glue hides no secret": (
        st.tuples(_glue, _secrets, st.sampled_from(["", *sorted(EVASIONS)]), _cuts),
        _glue_hides_no_secret,
    ),
    "masking twice is masking once": (
        st.builds(lambda *parts: " ".join(parts), _noise, _hidden, _noise),
        _masking_twice_is_masking_once,
    ),
    "JSON stays JSON": (st.tuples(_values, st.booleans()), _json_stays_json),
    "what is no JSON is refused": (
        st.one_of(st.text('[]{}",:\\u0123456789.eE+-truefalsn ', max_size=60), _noise),
        _what_is_no_json_is_refused,
    ),
    "any bytes are a stream or refused": (
        st.tuples(st.one_of(_stream, st.binary(max_size=200)), _cuts),
        _any_bytes_are_a_stream_or_refused,
    ),
}
