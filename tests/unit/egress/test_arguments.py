"""Tool arguments in pieces: JSON stays JSON, and no cut lets anything through."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.egress.config import Redaction
from proxy.egress.guard import KeyGuard
from proxy.egress.keys import KeyRing
from proxy.egress.redaction import arguments, rules
from proxy.egress.redaction.actions import Treatment, treat
from proxy.egress.redaction.arguments import ArgumentsChannel, TextChannel, open_channel
from proxy.egress.redaction.hold import HoldBack
from proxy.egress.redaction.json_walk import rewrite
from proxy.egress.redaction.placeholders import Pseudonyms
from proxy.egress.redaction.scan import ScanFailed, Scanner
from proxy.egress.redaction.text import Masker

from .samples import SECRETS

BOOK = rules.load()
SCANNER = Scanner(BOOK)
HOLD = HoldBack(BOOK)
GUARD = KeyGuard(KeyRing())
MAIL = "jane.doe@example.org"


def masker(treatment: Treatment | str = "standard", *, sent: bool = False) -> Masker:
    return Masker(SCANNER, GUARD, treatment, sent=sent)


def through(pieces: Iterable[str], channel: TextChannel | None = None) -> str:
    channel = channel or ArgumentsChannel(masker(), HOLD)
    return "".join(map(channel.feed, pieces)) + channel.flush()


def whole(text: str) -> object:
    """What the finished document becomes."""
    return json.loads(rewrite(text, masker().text))


DOCUMENTS = [
    {"query": f"use {SECRETS['openai-key']} now", "n": 3, "deep": {"a": [SECRETS["github-token"]]}},
    {"db_password": "hunter2-Xy!", "name": "hunter2-Xy!", "list": ["a", None, True, 1.5e-7, []]},
    {"card": 4111111111111111, "cards": [4111111111111111, 12], "at": 1699999999},
    {SECRETS["stripe-key"]: {"x": "y"}, 'ü\n"q" \\ /': "z\t😀 ü", "": ""},
    {"pem": SECRETS["private-key"], "jwt": SECRETS["jwt"], "mail": "call +49 30 12345678"},
    [SECRETS["aws-access-key-id"], {}, [[]], "plain"],
    "just " + SECRETS["npm-token"],
    4111111111111111,
]


@pytest.mark.parametrize("document", DOCUMENTS)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_every_cut_gives_what_the_finished_document_becomes(
    document: object, ascii_only: bool
) -> None:
    text = json.dumps(document, ensure_ascii=ascii_only)
    expected = whole(text)
    for secret in SECRETS.values():
        assert secret not in json.dumps(expected, ensure_ascii=False)
    step = max(1, len(text) // 120)  # long ones not at every cut
    for n in range(0, len(text) + 1, step):
        assert json.loads(through([text[:n], text[n:]])) == expected
    assert json.loads(through(text)) == expected


def test_clean_arguments_pass_byte_for_byte_and_at_once() -> None:
    text = '{ "city" : "Z\\u00fcrich \\/ \\ud83d\\ude00",\n\t"days":[1, -2.50e+3,null] , "t":true}'
    assert through([text]) == text
    assert json.loads(through(text)) == json.loads(text)
    channel = ArgumentsChannel(masker(), HOLD)
    assert channel.feed('{"city": "Bern and ') == '{"city": "Bern and '
    assert not channel.pending


def test_escaped_letter_by_letter_in_pieces() -> None:
    secret = SECRETS["github-token"]
    text = '{"a": "' + "".join(f"\\u{ord(c):04x}" for c in secret) + '"}'
    for size in (1, 2, 5, 7):
        pieces = [text[n : n + size] for n in range(0, len(text), size)]
        assert through(pieces) == '{"a": "[REDACTED:github-token]"}'


def test_half_a_pair_and_a_backslash_before_its_letters() -> None:
    for text in ('{"a": "x\\ud83dx \\ud83d"}', '{"a": "\\\\ud83d"}', '{"a": "\\ud83d\\n"}'):
        for n in range(len(text) + 1):
            assert json.loads(through([text[:n], text[n:]])) == json.loads(text)


def test_telling_keys_hold_their_value_and_only_theirs() -> None:
    channel = ArgumentsChannel(masker(), HOLD)
    assert channel.feed('{"password": "hunt') == '{"password": "'
    assert channel.pending
    assert channel.feed('er2-Xy!", "note": "hun?') == '[REDACTED:password]", "note": "hun?'
    assert channel.feed(' ter2-Xy!"}') + channel.flush() == ' ter2-Xy!"}'
    long = '{"keywords": "' + "w " * arguments.WHOLE_MAX
    with pytest.raises(ScanFailed, match="longer than"):
        through([long[:-1]])
    assert json.loads(through(['{"key": "', "w " * 1000, '"}'])) == {"key": "w " * 1000}


def test_masked_keys_do_not_collide() -> None:
    text = json.dumps({SECRETS["openai-key"]: 1, SECRETS["openai-key"] + "b": 2})
    expected = {"[REDACTED:openai-key]": 1, "[REDACTED:openai-key]-2": 2}
    assert json.loads(through(text)) == expected
    assert whole(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "use {} please",
        "{{'key': '{}'}}",
        '{{"a": 1}} then {}',
        '{{"a": {}}}',
        '{{"a": "b\n{}"}}',
        '{{"a": "\\x {}"}}',
        '{{"a" "{}"}}',
        '{{"a": "{}',
        '{{"password": "\\q {}',
        '["x", {}',
        "[1}} {}",
        "tru {}",
        "-{}",
    ],
)
def test_what_is_not_json_is_masked_as_text(text: str) -> None:
    for kind in ("openai-key", "card-number", "phone-number"):
        broken = text.format(SECRETS[kind])
        for pieces in (
            [broken],
            list(broken),
            [broken[: len(broken) // 2], broken[len(broken) // 2 :]],
        ):
            passed = through(pieces)
            assert SECRETS[kind] not in passed and "REDACTED" in passed
    assert through(list(text.format("nothing"))).startswith(text.format("nothing")[:5])


def test_cut_off_arguments_end_masked() -> None:
    for document in DOCUMENTS[:3]:
        text = json.dumps(document)
        for n in range(len(text)):
            passed = through([text[:n]])
            assert not any(secret in passed for secret in SECRETS.values())
            assert "4111111111111111" not in passed


def test_dropped_arguments_keep_nothing() -> None:
    for begun in (
        '{"a": "' + SECRETS["openai-key"],
        '{"password": "x',
        "[411111111111",
        "use sk-abc",
    ):
        channel = ArgumentsChannel(masker(), HOLD)
        channel.feed(begun)
        assert channel.pending
        channel.drop()
        assert channel.flush() == ""


def test_nesting_is_bounded() -> None:
    deep = "[" * 64 + "]" * 64
    assert through(deep) == deep
    assert through("[" * 5000 + SECRETS["openai-key"]).endswith("[REDACTED:openai-key]")


def test_placeholders_are_put_back_only_where_the_policy_names_arguments() -> None:
    def channel(*places: str, place: str) -> tuple[TextChannel, str]:
        said = Redaction("m", 1, "email", None, "pseudonymise", frozenset(places), None)  # type: ignore[arg-type]  # literals
        treatment = treat(BOOK, "standard", [said], Pseudonyms())
        name = masker(treatment, sent=True).text(MAIL)
        return open_channel(masker(treatment), HOLD, place), name  # type: ignore[arg-type]  # a literal

    for places, place, restored in [
        (("text",), "text", True),
        (("text",), "tool-arguments", False),
        (("tool-arguments",), "tool-arguments", True),
        (("tool-arguments",), "text", False),
        ((), "text", False),
    ]:
        one, name = channel(*places, place=place)
        text = json.dumps({"to": [f'"{name}" <x>'], "password": f"p {name.lower()}", "n": 1})
        wanted = text.replace(name, MAIL).replace(name.lower(), MAIL) if restored else text
        assert through(list(text), one) == wanted


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from(list(SECRETS.values())),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(max_size=6) | st.sampled_from(["password", "api_key", SECRETS["npm-token"]]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@settings(max_examples=250, deadline=None)
@given(values, st.booleans(), st.sampled_from([None, 1]), st.integers(0, 2**32))
def test_pieces_of_any_document_give_what_the_whole_gives(
    document: object, ascii_only: bool, indent: int | None, seed: int
) -> None:
    text = json.dumps(document, ensure_ascii=ascii_only, indent=indent)
    cuts = sorted(random.Random(seed).choices(range(len(text) + 1), k=6))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    once = through(pieces)
    assert json.loads(once) == whole(text)
    assert json.loads(through([once])) == json.loads(once), "a second pass changes nothing"


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=60), st.sampled_from(list(SECRETS.values())), st.integers(0, 2**32))
def test_any_text_at_all_is_masked(noise: str, secret: str, seed: int) -> None:
    chosen = random.Random(seed)
    at = chosen.randint(0, len(noise))
    text = f"{noise[:at]} {secret} {noise[at:]}"
    if secret in masker().text(text):
        return  # the text around took its border away; the finished text shows the same
    cuts = sorted(chosen.choices(range(len(text) + 1), k=4))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert secret not in through(pieces)
