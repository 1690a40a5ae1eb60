"""The detectors by themselves: every kind, every split, and the properties that must hold."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.egress.guard import KeyGuard
from proxy.egress.keys import KeyRing
from proxy.egress.redaction import rules
from proxy.egress.redaction.hold import CAP, HoldBack
from proxy.egress.redaction.json_walk import JsonInvalid, parse, rewrite
from proxy.egress.redaction.scan import Scanner
from proxy.egress.redaction.stream import Channel
from proxy.egress.redaction.text import Masker

from .harness import secret_memory
from .samples import IN_CONTEXT, SECRETS, draw

BOOK = rules.load()
SCANNER = Scanner(BOOK)
HOLD = HoldBack(BOOK)
GUARD = KeyGuard(KeyRing())


def masker(redact: str = "standard") -> Masker:
    return Masker(SCANNER, GUARD, redact)


def mask(text: str, redact: str = "standard") -> str:
    return masker(redact).text(text)


def in_pieces(pieces: list[str], redact: str = "standard") -> str:
    channel = Channel(masker(redact), HOLD)
    return "".join(map(channel.feed, pieces)) + channel.flush()


@pytest.mark.parametrize("kind", SECRETS)
def test_each_kind_is_masked_wherever_it_stands(kind: str) -> None:
    secret = SECRETS[kind]
    for text in ("{}", "see {} now", "({})", '"{}"', "a\n{}\nb", "ö{} ü", "x={},"):
        assert mask(text.format(secret)) == text.format(f"[REDACTED:{kind}]")


@pytest.mark.parametrize(("kind", "text", "secret"), IN_CONTEXT)
def test_secret_known_by_its_context_is_masked(kind: str, text: str, secret: str) -> None:
    assert mask(text.format(secret)) == text.format(f"[REDACTED:{kind}]")


@pytest.mark.parametrize(
    ("text", "secret"),
    [("hello {} there", secret) for secret in SECRETS.values()]
    + [(text, secret) for _, text, secret in IN_CONTEXT],
)
def test_split_at_every_point_gives_the_same_as_whole(text: str, secret: str) -> None:
    whole = text.format(secret)
    expected = mask(whole)
    assert secret not in expected
    for n in range(len(whole) + 1):
        assert in_pieces([whole[:n], whole[n:]]) == expected
    assert in_pieces(list(whole)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "commit 3f786850e387550fdab836ed7e6dc881de23001b",
        "id 123e4567-e89b-12d3-a456-426614174000",
        "The meeting is on 2026-11-23 at 10:30, room 4.12, order 12345678901234.",
        "sha512-" + "Ab1/" * 22,
        "token usage: prompt_tokens 12, completion tokens: 34",
        "Write to jane.doe@example.org, please",
        "version 1.2.3-rc4+build.567, price 1,234,567.89",
        "password: ********, api_key=<your-api-key>, token=${TOKEN}",
        "He said: the secret is simple kindness",
        "https://example.org/a/b?c=d#e and mailto:x@example.org",
    ],
)
def test_ordinary_text_passes_unchanged(text: str) -> None:
    assert mask(text) == text
    assert in_pieces(list(text)) == text


def test_mail_address_is_masked_only_where_the_policy_says_so() -> None:
    text = "ask jane.doe@example.org now"
    assert mask(text, "standard") == text
    assert mask(text, "strict") == "ask [REDACTED:email-address] now"
    assert in_pieces(list(text), "strict") == "ask [REDACTED:email-address] now"
    assert mask("call " + SECRETS["phone-number"], "secrets") == "call +49 30 12345678"


def test_ordinary_words_are_not_held_back() -> None:
    channel = Channel(masker(), HOLD)
    assert channel.feed("Hello there, how are you ") == "Hello there, how are you "
    assert channel.feed("my good friend? ") == "my good friend? "


def test_nothing_is_held_beyond_the_cap() -> None:
    channel = Channel(masker(), HOLD)
    fed = out = 0
    for piece in ["sk-", *["z"] * 2000]:
        fed += len(piece)
        out += len(channel.feed(piece))
        assert fed - out <= CAP + 3


@pytest.mark.parametrize(
    ("unit", "end"),
    [
        ("key=", "<\n"),
        ("password=", "<\n"),
        ("token: ", "<\n"),
        ("1", "x\n"),
        ("1 (2) 3-", "x\n"),
        ("+49", "x\n"),
        ("AB12 C3", "-\n"),
        ("-----B", "x\n"),
    ],
)
@pytest.mark.parametrize("redact", ["standard", "strict"])
def test_time_grows_with_the_text_and_not_with_its_square(unit: str, end: str, redact: str) -> None:
    def seconds(size: int) -> float:
        text = (unit * size)[:size] + end
        best = float("inf")
        for _ in range(3):
            channel = Channel(masker(redact), HOLD)
            before = time.process_time()
            channel.feed(text)
            channel.flush()
            best = min(best, time.process_time() - before)
        return best

    # Four times the text: 4 times as long if linear, 16 times if quadratic. Two milliseconds are
    # the clock's own noise.
    assert seconds(16384) <= 8 * seconds(4096) + 0.002


def test_endless_token_is_masked_to_its_end() -> None:
    head, body, _ = SECRETS["jwt"].split(".")
    token = f"{head}.{body}{draw(3000)}.{draw(800)}"
    assert in_pieces([f"t {token[:50]}", *token[50:], " end"]) == "t [REDACTED:jwt] end"


def test_key_block_without_end_is_masked_on() -> None:
    block = SECRETS["private-key"].partition("-----END")[0]
    for text in (block, block.replace("\n", "\\n"), block.replace("\n", "\r\n")):
        assert in_pieces(list(f"here: {text}")) == "here: [REDACTED:private-key]"
        assert mask(f"here: {text}") == "here: [REDACTED:private-key]"


def test_dropped_channel_keeps_nothing() -> None:
    channel = Channel(masker(), HOLD)
    channel.feed("key " + SECRETS["openai-key"])
    assert channel.pending
    channel.drop()
    assert channel.flush() == ""


@pytest.mark.parametrize("before", ["57 ", "x57-", SECRETS["openai-key"] + "57 "])
def test_a_card_behind_other_digits_is_masked(before: str) -> None:
    text = f"{before}4111 1111 1111 1111"
    assert "4111" not in mask(text) and "4111" not in in_pieces([text])
    assert "4112" in mask(f"{before}4112 1111 1111 1111"), "the control: a wrong check digit"


def test_a_phone_number_before_a_card_is_masked_in_a_stream_too() -> None:
    text = "+49 30 12345678 4111 1111 1111 1111"
    assert in_pieces([text]) == in_pieces(list(text)) == mask(text)
    assert "1234" not in mask(text) and "4111" not in mask(text)


pieces_of_text = st.lists(
    st.one_of(
        st.text(max_size=12),
        st.sampled_from([*SECRETS.values(), *(c.format(s) for _, c, s in IN_CONTEXT)]),
        st.sampled_from(['password="', "token: ", "+1 ", "-----BEGIN ", "://a:", "@x", " ", "\n"]),
    ),
    max_size=8,
)


@settings(max_examples=150, deadline=None)
@given(pieces_of_text)
def test_masking_twice_changes_nothing_more(parts: list[str]) -> None:
    once = mask("".join(parts))
    assert mask(once) == once


@settings(max_examples=150, deadline=None)
@given(pieces_of_text, st.randoms(use_true_random=False))
def test_no_split_lets_a_whole_secret_through(parts: list[str], random: object) -> None:
    text = " ".join(parts)
    cuts = sorted(random.choices(range(len(text) + 1), k=6))  # type: ignore[attr-defined]
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    passed, whole = in_pieces(pieces), mask(text)
    for secret in SECRETS.values():
        if secret not in whole:
            assert secret not in passed


documents = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from(list(SECRETS.values())),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(documents, st.booleans(), st.sampled_from([None, 2]))
def test_rewritten_json_is_valid_clean_and_of_the_same_shape(
    document: object, ascii_only: bool, indent: int | None
) -> None:
    text = json.dumps(document, ensure_ascii=ascii_only, indent=indent)
    once = rewrite(text, masker().text)
    after = parse(once)
    assert _shape(after) == _shape(document)
    assert rewrite(once, masker().text) == once
    for secret in SECRETS.values():
        assert secret not in json.dumps(after)
    if not any(s in json.dumps(document, ensure_ascii=False) for s in SECRETS.values()) and (
        once == text
    ):
        assert after == document


def _shape(value: object) -> object:
    if isinstance(value, dict):
        return [_shape(item) for item in value.values()]
    if isinstance(value, list):
        return [_shape(item) for item in value]
    return int if isinstance(value, int) and not isinstance(value, bool) else type(value)


def test_unknown_fields_keys_and_escapes_are_visited() -> None:
    secret = SECRETS["github-token"]
    escaped = "".join(f"\\u{ord(c):04x}" for c in secret)
    text = f'{{"{secret}": 1, "x": [{{"y": "a\\n{escaped}"}}], "z": "\\ud800 {secret}"}}'
    masked = rewrite(text, masker().text)
    assert masked == (
        '{"[REDACTED:github-token]": 1, "x": [{"y": "a\\n[REDACTED:github-token]"}],'
        ' "z": "\\ud800 [REDACTED:github-token]"}'
    )


def test_value_behind_a_telling_key_is_masked() -> None:
    text = json.dumps({"db_password": "hunter2-Xy!", "name": "hunter2-Xy!"})
    assert json.loads(rewrite(text, masker().text)) == {
        "db_password": "[REDACTED:password]",
        "name": "hunter2-Xy!",
    }


def test_card_as_a_number_stays_a_number() -> None:
    text = '{"card": 4111111111111111, "created": 1699999999, "f": 4111111111111111.5}'
    assert rewrite(text, masker().text) == text.replace("4111111111111111,", "0,")


@pytest.mark.parametrize("bad", ['{"a":1,"a":2}', "[NaN]", "[" * 65 + "]" * 65, "[" * 9999, "{]"])
def test_json_is_read_strictly(bad: str) -> None:
    with pytest.raises(JsonInvalid):
        parse(bad)
    assert parse("[" * 64 + "]" * 64)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[rule]]\nid='a'\ngroup='g'\npattern='('\nkeywords=['a']", "rule 1 (a)"),
        ("[[rule]]\nid='a'\ngroup='g'\npattern='a'", "keyword"),
        ("[[rule]]\nid='a'\npattern='a'", "group is missing"),
        ("[[rule]]\nid='a'\ngroup='g'\npattern='a'\nkeywords=['a']\nfoo=1", "unknown field foo"),
        ("[[rule]]\nid='a'\ngroup='g'\npattern='a'\nkeywords=['a']\ncheck='x'", "no check"),
        ("x = [", "broken.toml"),
        ("", "no rules"),
    ],
)
def test_broken_rule_file_is_named(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "broken.toml").write_text(text)
    with pytest.raises(rules.RulesInvalid, match=says.replace("(", r"\(").replace(")", r"\)")):
        rules.load(tmp_path)


def test_every_rule_can_mask_what_it_detects() -> None:
    for rule in BOOK.rules:
        assert "secret" in rule.confirm.groupindex or rule.confirm.groups == 0 or rule.check
        assert mask(rule.placeholder) == rule.placeholder


def ring_of(*keys: str) -> KeyRing:
    ring = KeyRing()
    fd = secret_memory({f"key-{n}": key for n, key in enumerate(keys)})
    ring.load(fd)
    os.close(fd)
    return ring


@pytest.mark.parametrize(
    "keys",
    [
        ("local-model-key-0001", "local-model-key-0002"),
        ("0001-local-model-key", "0002-local-model-key"),
        ("local-model-key", "local-model-key-0002"),
        ("the-very-same-key-twice", "the-very-same-key-twice"),
    ],
)
def test_every_key_is_masked_also_where_keys_look_alike(keys: tuple[str, str]) -> None:
    guard = KeyGuard(ring_of(*keys))
    guard.refresh()
    for key in keys:
        assert guard.mask(f"a {key} b") == ("a [REDACTED:live-key] b", 1)
        for n in range(1, len(key)):
            assert guard.holds(f"a {key[:n]}") == 2, "an unfinished key is held back"
            channel = Channel(Masker(SCANNER, guard, "standard"), HOLD)
            parts = channel.feed(f"a {key[:n]}"), channel.feed(f"{key[n:]} b"), channel.flush()
            # Where one key begins another, the rest of the longer one may follow its mask.
            assert keys[0] not in "".join(parts) and keys[1] not in "".join(parts)
    assert guard.mask("no local key") == ("no local key", 0)
