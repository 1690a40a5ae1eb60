"""Nothing that a workload wrote moves the operator's cursor or changes what is read."""

import argparse
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.cli.terminal import harmless, size
from supervisor.cli.token import lifetime


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ü ✓\tx\n", "plain ü ✓\tx\n"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\x9b31m", "\\x9b31m"),
        ("a\rb\x08c\x7f", "a\\x0db\\x08c\\x7f"),
        ("evil\u202etxt.exe", "evil\\u202etxt.exe"),
        ("\ud800", "\\ud800"),
    ],
)
def test_control_characters_become_visible(text: str, shown: str) -> None:
    assert harmless(text) == shown


@given(st.text(st.characters()))
def test_no_control_character_is_left(text: str) -> None:
    left = {c for c in harmless(text) if unicodedata.category(c) == "Cc"} - {"\n", "\t"}
    assert left == set()
    harmless(text).encode("utf-8")


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, None), (0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (17 << 20, "17.0 MiB"),
     (3 << 30, "3.0 GiB")],
)  # fmt: skip
def test_sizes(count: int | None, text: str | None) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("text", "seconds"), [("900", 900), ("30s", 30), ("15m", 900), ("12h", 43200), ("7d", 604800)]
)
def test_lifetimes(text: str, seconds: int) -> None:
    assert lifetime(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "-1", "1w", "1.5h", "m", "1 h", "1\n", "9999999999"])
def test_bad_lifetimes(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        lifetime(text)
