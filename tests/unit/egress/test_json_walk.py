"""The walker: strict reading, every string seen, only what must change changed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.egress.guard import KeyGuard
from proxy.egress.keys import KeyRing
from proxy.egress.redaction import json_walk, rules
from proxy.egress.redaction.json_restore import restore
from proxy.egress.redaction.json_walk import (
    JsonInvalid,
    JsonTooDeep,
    Untouchable,
    parse,
    read,
    rewrite,
    strings,
)
from proxy.egress.redaction.scan import Scanner
from proxy.egress.redaction.text import Masker

from .samples import SECRETS

SCANNER = Scanner(rules.load())
GUARD = KeyGuard(KeyRing())
KEY = SECRETS["github-token"]
MASK = "[REDACTED:github-token]"


def masked(document: str, **how: Any) -> str:
    return Masker(SCANNER, GUARD, "standard").document(document, **how)


def never(_text: str) -> bool:
    return False


# Strictness


@pytest.mark.parametrize(
    "text",
    [
        '{"a":1,"a":2}',
        '{"a":1,"\\u0061":2}',
        '{"a":1,"a"\t:2,"b":":"}',
        '{"a" :1,"a":2}',
        '{"a":1,\n"a"\n:2}',
        '{"x":":y","a":1,"a"\r:2}',
        '{"b\\\\":1,"b\\\\":2}',
        '{"q\\"":1,"q\\"":2}',
        '[{"deep":{"a":[],"a":[]}}]',
        '{"\\ud800":1,"\\ud800":2}',
    ],
)
def test_a_key_that_comes_twice_is_refused_however_it_is_written(text: str) -> None:
    with pytest.raises(JsonInvalid, match="twice"):
        parse(text)


@pytest.mark.parametrize(
    "text",
    ['{"a":":","b":"\\":"}', '{"a\\\\":"\\\\\\":"}', '{":":":",":\\"":":"}', '{"a" : 1, "b"\n:2}'],
)
def test_colons_and_quotes_in_strings_are_no_second_keys(text: str) -> None:
    assert parse(text) == json.loads(text)


@pytest.mark.parametrize(
    "text",
    [
        "[NaN]",
        "[Infinity]",
        "[-Infinity]",
        "{]",
        "",
        "[1,]",
        "01",
        '"\t"',
        '"\\x"',
        "[1] 2",
        "1" * 9999,
    ],
)
def test_what_is_not_strictly_json_is_refused(text: str) -> None:
    with pytest.raises(JsonInvalid):
        parse(text)


def test_depth_is_bounded_in_every_mixture() -> None:
    for opening, closing in (("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")):
        depth = 64 // opening.count("[") if opening == "[" else 64 // len(closing)
        assert parse(opening * depth + "1" + closing * depth) is not None
        with pytest.raises(JsonTooDeep):
            parse(opening * (depth + 1) + "1" + closing * (depth + 1))
    with pytest.raises(JsonTooDeep):
        parse("[" * 100_000)
    assert parse(json.dumps(["[" * 500, "}" * 500])), "brackets in strings nest nothing"


def test_huge_numbers_and_lone_surrogates_pass_as_they_are() -> None:
    text = '{"n": 1e400, "m": 123456789012345678901234567890, "s": "\\ud800 \\udc00x", "z": -0.0}'
    assert masked(text) == text


# Finding


def test_every_place_of_a_document_is_seen() -> None:
    escaped = "".join(f"\\u{ord(c):04x}" for c in KEY)
    for text in (
        '{{"unknown": {{"field": ["{}"]}}}}', '{{"{}": 1}}', '["{}"]', '"{}"',
        '{{"a": "x\\n{}\\/"}}', '{{"a": "\\ud83d\\ude00 {}"}}', '{{"a": "\\ud800 {}"}}',
        '{{"tools": [{{"schema": {{"enum": ["{}"], "default": "{}"}}}}]}}',
    ):  # fmt: skip
        for written in (KEY, escaped):
            out = masked(text.replace("{}", written).replace("{{", "{").replace("}}", "}"))
            assert MASK in out and KEY not in json.dumps(json.loads(out))


def test_value_behind_a_telling_key_is_found_in_lists_too() -> None:
    for text in (
        '{"password": "hunter2-Xy!"}', '{"password"  :\n\t "hunter2-Xy!"}',
        '{"password": ["hunter2-Xy!"]}', '{"password":[[{}, "hunter2-Xy!"]]}',
        '{"p\\u0061ssword":"hunter2-Xy!"}',
    ):  # fmt: skip
        assert "hunter2" not in masked(text), text
    clean = '{"name": "hunter2-Xy!", "password": null, "other": ["hunter2-Xy!"]}'
    assert masked(clean) == clean


def test_numbers_keep_their_type() -> None:
    text = '{"card": 4111111111111111, "in": [4111111111111111], "at": 1699999999, "f": 41.5e15}'
    assert json.loads(masked(text)) == {"card": 0, "in": [0], "at": 1699999999, "f": 41.5e15}


def test_json_inside_strings_stays_json() -> None:
    inner = {"password": 'hunter2-"Xy"!', "list": [KEY], "deeper": json.dumps({"a\n": KEY})}
    out = masked(json.dumps({"arguments": json.dumps(inner), "n": 1}))
    arguments = json.loads(json.loads(out)["arguments"])
    assert arguments["list"] == [MASK] and "hunter2" not in arguments["password"]
    assert json.loads(arguments["deeper"]) == {"a\n": MASK}


def test_escapes_inside_json_inside_a_string_hide_nothing() -> None:
    escaped = "".join(f"\\u{ord(c):04x}" for c in KEY)
    inner = f'{{"a": "{escaped}"}}'
    twice = json.dumps({"arguments": inner})
    assert json.loads(json.loads(masked(twice))["arguments"]) == {"a": MASK}
    thrice = json.dumps({"arguments": json.dumps({"b": inner})})
    assert KEY not in json.loads(json.loads(json.loads(masked(thrice))["arguments"])["b"])["a"]


def test_what_only_looks_like_json_is_masked_as_text() -> None:
    for text in (f'{{"a": "{KEY}"', f"[{KEY}]", f'{{"a":1,"a":"{KEY}"}}'):
        assert KEY not in masked(json.dumps({"content": text}))


def test_masked_keys_stay_apart() -> None:
    text = json.dumps({KEY: 1, KEY[:-1] + "Q": 2, "x": {KEY: 3}})
    out = masked(text)
    assert json.loads(out) == {MASK: 1, f"{MASK}-2": 2, "x": {MASK: 3}}
    assert masked(out) == out


def test_only_what_changed_is_written_anew() -> None:
    text = '{ "a" :\t"caf\\u00e9 \\/",  "b":"' + KEY + '", "c" : [ 1.10 , "\\u0041" ]\n}'
    assert masked(text) == text.replace(KEY, MASK)


def test_clean_document_is_returned_as_it_is() -> None:
    text = json.dumps({"messages": [{"role": "user", "content": "Hello there\n"}] * 3})
    assert masked(text) is text
    assert rewrite(read(text), lambda *_: "x", never) is text
    assert rewrite(text, lambda s, _: s.upper()) != text, (
        "the control: without suspects all is seen"
    )


# What must survive


def test_opaque_fields_are_never_changed_but_a_secret_in_them_is_refused() -> None:
    opaque = frozenset({"id", "encrypted_content"})
    text = json.dumps({"id": "call_" + "4" * 20, "encrypted_content": ["gAAAA+/="], "t": KEY})
    out = masked(text, opaque=opaque)
    assert json.loads(out) == {**json.loads(text), "t": MASK}
    for hidden in ({"id": KEY}, {"encrypted_content": [KEY]}, {"x": [{"id": f"a {KEY}"}]}):
        with pytest.raises(Untouchable) as caught:
            masked(json.dumps(hidden), opaque=opaque)
        assert KEY not in str(caught.value)
        assert MASK in masked(json.dumps(hidden)), "the control: elsewhere it is masked"


def thinking(text: str, **more: Any) -> dict[str, Any]:
    return {"type": "thinking", "thinking": text, "signature": "c2lnbmF0dXJl" * 4, **more}


@pytest.mark.parametrize("indent", [None, 2])
def test_signed_text_with_a_secret_is_left_out_with_its_signature(indent: int | None) -> None:
    signed = {"signature": "thinking"}
    clean, dirty, other = (
        thinking("fine so far"),
        thinking(f"use {KEY}"),
        {"type": "text", "text": "ok"},
    )

    def out(parts: list[Any]) -> Any:
        return json.loads(masked(json.dumps({"content": parts}, indent=indent), signed=signed))[
            "content"
        ]

    assert out([clean, other]) == [clean, other]
    assert out([dirty, other]) == [other]
    assert out([other, dirty]) == [other]
    assert out([dirty, dirty, clean]) == [clean]
    assert out([clean, dirty, other, dirty]) == [clean, other]
    assert out([1, dirty, "x", dirty, []]) == [1, "x", []]
    unsigned = {"type": "thinking", "thinking": f"use {KEY}"}
    assert out([unsigned, other])[0]["thinking"] == f"use {MASK}"
    for parts in ([dirty], [dirty, dirty]):
        with pytest.raises(Untouchable, match="nothing stands beside"):
            out(parts)
    with pytest.raises(Untouchable, match="signed"):
        masked(json.dumps({"block": dirty}), signed=signed)


# Putting back


def shout(text: str, place: str) -> str:
    return text.replace("anonymous", f"<{place}>")


PLACES: dict[str, Any] = {
    "content": "text",
    "arguments": "tool-arguments",
    "input": "tool-arguments",
}


def test_put_back_only_in_the_places_named() -> None:
    document = {
        "id": "anonymous",
        "content": "hi anonymous",
        "arguments": json.dumps({"q": 'anonymous "x"', "anonymous": 1}),
        "input": {"to": ["anonymous"], "deep": {"content": "anonymous", "y": "anonymous"}},
        "list": [{"content": ["anonymous", {"url": "anonymous"}]}],
        "name": "anonymous",
    }
    out = json.loads(restore(json.dumps(document), shout, PLACES))
    assert out["id"] == out["name"] == "anonymous"
    assert out["content"] == "hi <text>"
    assert json.loads(out["arguments"]) == {"q": '<tool-arguments> "x"', "anonymous": 1}
    assert out["input"] == {
        "to": ["<tool-arguments>"], "deep": {"content": "<text>", "y": "<tool-arguments>"},
    }  # fmt: skip
    assert out["list"] == [{"content": ["<text>", {"url": "anonymous"}]}]


def test_put_back_with_the_escaping_of_the_place() -> None:
    def quote(text: str, _place: str) -> str:
        return text.replace("anonymous", 'a "quoted"\n\\ value')

    out = restore(
        '{"content": "anonymous", "arguments": "{\\"a\\": \\"anonymous\\"}"}', quote, PLACES
    )
    found = json.loads(out)
    assert found["content"] == 'a "quoted"\n\\ value'
    assert json.loads(found["arguments"]) == {"a": 'a "quoted"\n\\ value'}


# Properties

leaves = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20) | st.sampled_from([":", '":', '\\":', "\\", "{}", ": "])
    | st.sampled_from(list(SECRETS.values()))
)  # fmt: skip
names = st.text(max_size=8) | st.sampled_from(["password", "api_key", ":", 'a":', "\\", KEY])
documents = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)
writings = st.sampled_from(
    [
        lambda d: json.dumps(d),
        lambda d: json.dumps(d, ensure_ascii=False),
        lambda d: json.dumps(d, indent=1),
        lambda d: json.dumps(d, separators=(" ,\t", "\n: ")),
        lambda d: json.dumps({"arguments": json.dumps(d)}),
    ]
)
Writing = Callable[[object], str]


@settings(max_examples=200, deadline=None)
@given(documents, writings)
def test_rewritten_documents_are_valid_alike_clean_and_stay_so(
    document: object, write: Writing
) -> None:
    text = write(document)
    once = masked(text)
    assert shape(parse(once)) == shape(json.loads(text))
    assert masked(once) == once
    for secret in SECRETS.values():
        assert secret not in json.dumps(json.loads(once), ensure_ascii=False)


def shape(value: object) -> object:
    if isinstance(value, dict):
        return [shape(item) for item in value.values()]
    if isinstance(value, list):
        return [shape(item) for item in value]
    return int if isinstance(value, int) and not isinstance(value, bool) else type(value)


@settings(max_examples=200, deadline=None)
@given(documents, writings)
def test_one_look_sees_all_that_single_looks_see(document: object, write: Writing) -> None:
    text = write(document)
    flat = read(text).flat
    for item in strings(text):
        assert item.before + item.plain in flat


@settings(max_examples=200, deadline=None)
@given(documents, writings, st.integers(0, 2**32))
def test_fast_and_strict_reading_agree_on_damaged_documents(
    document: object, write: Writing, seed: int
) -> None:
    chosen = random.Random(seed)
    text = write(document)
    for _ in range(chosen.randint(0, 2)):
        at = chosen.randint(0, len(text))
        piece = chosen.choice(
            ['"', "\\", ",", ":", "{", "]", "1", " ", "\t", '"a":1,', "\\u0000", ""]
        )
        text = text[:at] + piece + text[at + chosen.randint(0, 1) :]
    try:
        strict = json_walk._decoded_strictly(text)
    except JsonInvalid:
        with pytest.raises(JsonInvalid):
            parse(text)
    else:
        assert repr(parse(text)) == repr(strict)
