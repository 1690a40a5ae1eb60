"""Which boot states stay approved, and what a prediction may say."""

from __future__ import annotations

import dataclasses
import json

import pytest

from supervisor.vault import approvals, counter, policy
from supervisor.vault.document import APPROVALS_MAX
from supervisor.vault.errors import Fault, VaultError
from supervisor.vault.header import Approval, Nv, SealedTo, Wrap

SIGNER, POINT = policy.new_key()
A, B, C = (bytes([n]) * 32 for n in (1, 2, 3))


def state(value: bytes, kind: str = approvals.CURRENT) -> Approval:
    return approvals.unsigned("note", kind, [value])


NV = Nv(counter.FIRST, 10)


def sealed(*states: Approval) -> SealedTo:
    wrap = Wrap(bytes(12), bytes(48))
    head = ("tpm", "absent", 0x81000001, b"n" * 34, b"priv", b"pub", POINT)
    return SealedTo(*head, NV, (7,), (7,), wrap, states)


def test_signed_approvals_hold_for_their_generation_only() -> None:
    signed = approvals.signed(sealed(state(A), state(B, "predicted")), SIGNER, 5)
    approvals.check(signed)
    assert {approval.gen for approval in signed.approvals} == {5}
    later = approvals.signed(signed, SIGNER, 6)
    approvals.check(later)
    assert [a.digest for a in later.approvals] != [a.digest for a in signed.approvals]
    stale = dataclasses.replace(signed.approvals[0], gen=6)
    for changed in (stale, dataclasses.replace(signed.approvals[0], r=bytes(32))):
        with pytest.raises(VaultError) as caught:
            approvals.check(dataclasses.replace(signed, approvals=(changed,)))
        assert caught.value.fault is Fault.TAMPERED


def test_other_counter_or_base_is_another_policy() -> None:
    signed = approvals.signed(sealed(state(A)), SIGNER, 5)
    for nv in (Nv(counter.FIRST, 11), Nv(counter.FIRST + 1, 10), None, Nv(counter.FIRST, -6)):
        with pytest.raises(VaultError) as caught:
            approvals.check(dataclasses.replace(signed, nv=nv))
        assert caught.value.fault is Fault.TAMPERED


def test_policy_of_nothing_is_never_made() -> None:
    with pytest.raises(ValueError):
        policy.boot_state([], [], None, 0)
    assert policy.boot_state([], [], b"name", 1) != policy.boot_state([], [], b"name", 2)


def test_matching_names_the_pcr_that_changed() -> None:
    have = sealed(state(A), state(B, "predicted"))
    assert approvals.matching(have, (B,)).kind == "predicted"
    with pytest.raises(VaultError) as caught:
        approvals.matching(have, (C,))
    assert caught.value.fault is Fault.PCR_CHANGED
    assert caught.value.detail == f"PCR 7: {A.hex()} -> {C.hex()}"


def test_state_left_behind_is_forgotten_and_open_predictions_stay() -> None:
    have = sealed(state(A), state(B, "predicted"), state(C, "predicted"))
    kept = approvals.wanted(have, have.approvals[0])
    assert [(a.pcr[0], a.kind) for a in kept] == [
        (A, "current"), (B, "predicted"), (C, "predicted"),
    ]  # fmt: skip
    booted = approvals.wanted(have, have.approvals[1])
    assert [(a.pcr[0], a.kind) for a in booted] == [(B, "current"), (C, "predicted")]


def test_oldest_prediction_makes_room() -> None:
    states: tuple[Approval, ...] = (state(A),)
    for number in range(20):
        states = approvals.with_prediction(states, state(bytes([100 + number]) * 32, "predicted"))
    assert len(states) == APPROVALS_MAX
    assert states[0].pcr == (A,)
    assert [a.pcr[0][0] for a in states[1:]] == list(range(113, 120))
    assert approvals.with_prediction(states, state(A, "predicted")) == states


@pytest.mark.parametrize(
    "values",
    [
        b"",
        b"[]",
        b"{",
        {},
        {"7": A.hex()[:-1]},
        {"7": 7},
        {"7": A.hex(), "11": A.hex()},
        {"11": A.hex()},
        {"7": "00" * 32},
        {"7": "ff" * 32},
        {"7": "\u0661" * 64},
    ],
)
def test_bad_predictions_are_refused(values: object) -> None:
    raw = values if isinstance(values, bytes) else json.dumps(values).encode()
    with pytest.raises(VaultError) as caught:
        approvals.read_prediction(raw, (7,))
    assert caught.value.fault is Fault.PREDICTION
    assert approvals.read_prediction(json.dumps({"7": A.hex().upper()}).encode(), (7,)) == (A,)


def test_notes_are_plain_lines() -> None:
    for bad in ("", "x" * 81, "two\nlines", "caf\u00e9"):
        with pytest.raises(VaultError) as caught:
            approvals.unsigned(bad, approvals.CURRENT, [A])
        assert caught.value.fault is Fault.USAGE


@pytest.mark.parametrize(
    "expected, value, row",
    [
        (7, 7, counter.State.CURRENT),
        (7, 6, counter.State.PENDING),
        (7, 8, counter.State.ROLLBACK),
        (7, 9, counter.State.ROLLBACK),
        (7, 5, counter.State.BEHIND),
    ],
)
def test_table_of_the_counter(expected: int, value: int, row: counter.State) -> None:
    assert counter.state(expected, value) is row
