"""The layout that the egress proxy reads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.vault import entries

NAMES = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=63)


@given(st.dictionaries(NAMES, st.binary(max_size=50), max_size=8))
def test_round_trip(values: dict[str, bytes]) -> None:
    views = {name: memoryview(value) for name, value in values.items()}
    out = bytearray(entries.size_of(views))
    assert entries.write(views, memoryview(out)) == len(out)
    assert {name: bytes(view) for name, view in entries.read(memoryview(out)).items()} == values


def test_bytes_of_the_contract() -> None:
    out = bytearray(4 + 2 + 1 + 2 + 3)
    entries.write({"a": memoryview(b"key")}, memoryview(out))
    assert out == b"\x00\x00\x00\x01\x00\x01a\x00\x03key"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x00\x00\x00\x01",
        b"\x00\x00\x00\x00x",
        b"\x00\x00\x00\x01\x00\x01a\x00\x03ke",
        b"\xff\xff\xff\xff\x00\x01a\x00\x00",
        b"\x00\x00\x00\x02" + b"\x00\x01a\x00\x00" * 2,
        b"\x00\x00\x00\x01\x00\x01\xff\x00\x00",
    ],
)
def test_malformed_layouts_are_refused(raw: bytes) -> None:
    with pytest.raises(ValueError):
        entries.read(memoryview(raw))


@given(st.binary(max_size=64))
def test_noise_never_crashes(raw: bytes) -> None:
    try:
        found = entries.read(memoryview(raw))
    except ValueError:
        return
    assert entries.size_of(found) == len(raw)
