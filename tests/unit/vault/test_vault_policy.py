"""Policy digests and approvals; that a TPM computes the same is proven in tests/host/vault."""

from __future__ import annotations

import hashlib

from supervisor.vault import policy


def test_selection_is_the_bit_map_of_the_specification() -> None:
    assert policy.selection([7]).hex() == "00000001000b03800000"
    assert policy.selection([0, 11, 23]).hex() == "00000001000b03010880"


def test_policy_pcr_follows_the_formula() -> None:
    inner = hashlib.sha256(bytes(32) + b"\x01" * 32).digest()
    parts = bytes(32) + bytes.fromhex("0000017f") + policy.selection([7, 11]) + inner
    assert policy.policy_pcr([7, 11], [bytes(32), b"\x01" * 32]) == hashlib.sha256(parts).digest()


def test_only_the_policy_key_approves() -> None:
    key, point = policy.new_key()
    _, other_point = policy.new_key()
    digest = bytes(range(32))
    r, s = policy.approve(key, digest)
    assert policy.is_approved(point, digest, r, s)
    assert not policy.is_approved(other_point, digest, r, s)
    assert not policy.is_approved(point, bytes(32), r, s)
    assert not policy.is_approved(point, digest, s, r)
    assert not policy.is_approved(point, digest, bytes(32), bytes(32))
    assert not policy.is_approved(bytes(64), digest, r, s)  # not a point of the curve
    assert policy.policy_authorize(point) != policy.policy_authorize(other_point)
    assert len(policy.public_area(point)) == 88
