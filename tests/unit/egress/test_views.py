"""The views of a text: where each character came from, and how much is looked into."""

from __future__ import annotations

import base64
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.egress.guard import KeyGuard
from proxy.egress.keys import KeyRing
from proxy.egress.redaction import rules, views
from proxy.egress.redaction.edits import Edit, Edited, disjoint
from proxy.egress.redaction.hold import HoldBack
from proxy.egress.redaction.scan import Scanner
from proxy.egress.redaction.stream import Channel
from proxy.egress.redaction.text import Masker
from proxy.egress.redaction.views import DecodeLimit, Work

from .evasions import EVASIONS
from .harness import KEY, secret_memory
from .samples import SECRETS

BOOK = rules.load()
SCANNER = Scanner(BOOK)
HOLD = HoldBack(BOOK)
GUARD = KeyGuard(KeyRing())


def readings(text: str) -> list[str]:
    return [view.text for view, _ in SCANNER.views(text, Work())]


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=30), st.lists(st.tuples(st.integers(0, 30), st.integers(0, 4)), max_size=5))
def test_every_character_knows_where_it_came_from(text: str, cuts: list[tuple[int, int]]) -> None:
    edits = disjoint(
        [Edit(a, min(a + n, len(text)), "<>"[: n % 3]) for a, n in cuts if a + n <= len(text)]
    )
    edited = Edited(text, edits)
    for position, character in enumerate(edited.text):
        start, end = edited.before(position)
        replaced = any(edit.start == start and edit.end == end for edit in edits)
        assert text[start:end] == character or replaced
        assert edited.after(start) <= position


def test_a_value_inside_a_run_costs_only_its_own_groups() -> None:
    secret = SECRETS["github-token"]
    run = base64.b64encode(f"first words, {secret}, and last words".encode()).decode()
    masked = Masker(SCANNER, GUARD, "standard").text(f"a {run} b")
    head, tail = masked[2:-2].split("[REDACTED:github-token]")
    assert base64.b64decode(head).startswith(b"first words")
    assert base64.b64decode(tail).endswith(b"last words")


def test_layers_are_undone_one_after_the_other() -> None:
    plain = "Plain words, which nobody would want to hide"
    inner = base64.b64encode(plain.encode()).decode()
    assert readings(inner)[-1] == plain
    assert readings(inner.encode().hex()) == [inner.encode().hex(), inner, plain]


def test_too_many_layers_are_refused_and_five_are_read() -> None:
    text = SECRETS["github-token"]
    for _ in range(views.OPENED_MAX):
        text = base64.b64encode(text.encode()).decode()
    assert Masker(SCANNER, GUARD, "standard").text(text) == "[REDACTED:github-token]"
    with pytest.raises(DecodeLimit):
        Masker(SCANNER, GUARD, "standard").text(base64.b64encode(text.encode()).decode())


def test_the_work_of_one_request_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "RUNS_MAX", 3)
    run = base64.b64encode(b"Plain words, which nobody hides").decode()
    masker = Masker(SCANNER, GUARD, "standard")
    for _ in range(3):
        assert masker.text(f"see {run} now") == f"see {run} now"
    with pytest.raises(DecodeLimit):
        masker.text(f"see {run} now")


def test_plain_text_has_one_view_only() -> None:
    text = "Dear team, the meeting of 2026-11-23 is moved to 10:30 in room 4.12 (see page 3)."
    assert readings(text) == [text]


@pytest.mark.parametrize("evasion", EVASIONS)
def test_a_key_in_use_is_found_in_every_disguise(evasion: str) -> None:
    ring = KeyRing()
    fd = secret_memory({"model": KEY[3:]})  # without the beginning that a rule would know
    ring.load(fd)
    os.close(fd)
    guard = KeyGuard(ring)
    guard.refresh()
    text = f"see {EVASIONS[evasion](f'here: {KEY[3:]} is it')} now"
    masker = Masker(SCANNER, guard, "standard")
    masked = masker.text(text)
    assert "[REDACTED:live-key]" in masked and masker.tally.live_keys >= 1
    channel = Channel(Masker(SCANNER, guard, "standard"), HOLD)
    passed = "".join(channel.feed(text[n : n + 9]) for n in range(0, len(text), 9))
    assert "[REDACTED:live-key]" in passed + channel.flush()
    other = KeyGuard(KeyRing())
    assert "live-key" not in Masker(SCANNER, other, "standard").text(text), "the control: no key"
