"""The answer of a resolver child is hostile input to the broker."""

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.broker import resolver

FOUR = b"\x04" + bytes([93, 184, 216, 34]) + bytes(12)
SIX = b"\x06" + socket.inet_pton(socket.AF_INET6, "2606:4700::1111")


def test_both_families_are_read() -> None:
    assert resolver.unpack(b"\x02" + FOUR + SIX) == [
        (socket.AF_INET, bytes([93, 184, 216, 34])),
        (socket.AF_INET6, SIX[1:]),
    ]


def test_no_address_is_an_empty_answer() -> None:
    assert resolver.unpack(b"\0") == []


@pytest.mark.parametrize(
    "answer",
    [b"", b"\x01", b"\x02" + FOUR, b"\x01" + FOUR + b"x", b"\x01\x05" + bytes(16),
     b"\x01\x04" + b"\x01" * 16, b"\x11" + FOUR * 17],
)  # fmt: skip
def test_malformed_answers_are_refused(answer: bytes) -> None:
    with pytest.raises(ValueError, match="malformed"):
        resolver.unpack(answer)


@given(st.binary(max_size=300))
def test_any_bytes_give_addresses_or_an_error(answer: bytes) -> None:
    try:
        found = resolver.unpack(answer)
    except ValueError:
        return
    assert all(len(raw) == (4 if family == socket.AF_INET else 16) for family, raw in found)
