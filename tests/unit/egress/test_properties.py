"""What must hold for any text: streamed as finished, twice as once, and the harmless untouched.

Hypothesis prints how to repeat a failure; its examples are bounded so that the tier stays fast.
"""

from __future__ import annotations

import base64
import itertools
import random
import string

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.egress.guard import KeyGuard
from proxy.egress.keys import KeyRing
from proxy.egress.redaction import rules
from proxy.egress.redaction.hold import HoldBack
from proxy.egress.redaction.scan import Scanner
from proxy.egress.redaction.stream import Channel
from proxy.egress.redaction.text import Masker

from .evasions import EVASIONS
from .samples import SECRETS

BOOK = rules.load()
SCANNER = Scanner(BOOK)
HOLD = HoldBack(BOOK)
GUARD = KeyGuard(KeyRing())
# Kinds whose values nothing around them can lengthen or hide.
PLAIN = ("openai-key", "aws-access-key-id", "github-token", "slack-token", "google-api-key")
# Forms that may be put on top of one another; the others are made of what the first ones leave.
LAYERS = ("E14 base64", "E14 base64 URL-safe", "E15 percent", "E16 entities, decimal", "E17 hex")

secrets = st.sampled_from([SECRETS[kind] for kind in PLAIN])
disguises = st.sampled_from(sorted(EVASIONS))
words = st.lists(
    st.text(string.ascii_lowercase, min_size=1, max_size=9), min_size=1, max_size=6
).map(" ".join)
# Text in which no rule finds anything: letters of several scripts, and a few signs.
harmless = st.text("etaoin shrdlu, ÄÖÜ äöü прст λμν 漢字\n.;!?", max_size=200)


def finished(text: str) -> str:
    return Masker(SCANNER, GUARD, "standard").text(text)


def split(text: str, cuts: list[int]) -> str:
    channel = Channel(Masker(SCANNER, GUARD, "standard"), HOLD)
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    passed = [channel.feed(text[a:b]) for a, b in itertools.pairwise(places)]
    return "".join(passed) + channel.flush()


cuts = st.lists(st.integers(0, 4096), max_size=12)


@settings(max_examples=150, deadline=None)
@given(words, secrets, disguises, words, cuts)
def test_a_disguised_secret_split_anywhere_never_comes_through(
    before: str, secret: str, disguise: str, after: str, places: list[int]
) -> None:
    hidden = EVASIONS[disguise](secret)
    text = f"{before} {hidden} {after}"
    for masked in (finished(text), split(text, places)):
        assert "[REDACTED:" in masked
        assert hidden not in masked and secret not in masked


@settings(max_examples=100, deadline=None)
@given(secrets, st.lists(st.sampled_from(LAYERS), min_size=1, max_size=4))
def test_layers_of_encodings_are_undone_in_any_order(secret: str, layers: list[str]) -> None:
    hidden = secret
    for layer in layers:
        hidden = EVASIONS[layer](hidden)
    masked = finished(f"see {hidden} now")
    assert "[REDACTED:" in masked and hidden not in masked


@settings(max_examples=100, deadline=None)
@given(words, secrets, disguises, words)
def test_masking_twice_changes_nothing_more(
    before: str, secret: str, disguise: str, after: str
) -> None:
    once = finished(f"{before} {EVASIONS[disguise](secret)} {after}")
    assert finished(once) == once


@settings(max_examples=150, deadline=None)
@given(harmless, cuts)
def test_harmless_text_passes_byte_for_byte(text: str, places: list[int]) -> None:
    assert finished(text) == text
    assert split(text, places) == text


def test_random_bytes_in_base64_pass() -> None:
    for seed in range(300):
        data = random.Random(seed).randbytes(600)  # noise, no secret
        text = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        assert finished(text) == text
