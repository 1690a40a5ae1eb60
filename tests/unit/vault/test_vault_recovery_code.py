"""The recovery code as it is written and read, and what is sealed to it."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import serialization as s
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from supervisor.vault import recovery
from supervisor.vault.errors import Fault, VaultError

CODES = st.binary(min_size=32, max_size=32).map(bytearray)
VAULT = "0123456789abcdef" * 2


def refusal(text: bytes) -> Fault:
    with pytest.raises(VaultError) as caught:
        recovery.read_code(bytearray(text))
    return caught.value.fault


@given(CODES)
def test_code_survives_paper(code: bytearray) -> None:
    spelt = recovery.spell(code)
    assert len(spelt) == 76
    assert [len(group) for group in spelt.split(b"-")] == [8] * 8 + [4]
    assert recovery.read_code(spelt) == code
    assert recovery.read_code(bytearray(spelt.upper().replace(b"-", b" "))) == code


@given(CODES, st.integers(0, 75), st.sampled_from("cbdefghijklnrtuv"))
def test_one_wrong_letter_is_noticed(code: bytearray, at: int, letter: str) -> None:
    """All but one in 65,536 of the wrong ones, which then are RECOVERY_CODE_WRONG."""
    spelt = bytes(recovery.spell(bytearray(code)))
    changed = spelt[:at] + letter.encode() + spelt[at + 1 :]
    if changed == spelt:
        return
    try:
        assert recovery.read_code(bytearray(changed)) != code
    except VaultError as error:
        assert error.fault is Fault.RECOVERY_CODE_TYPO


def test_known_spelling() -> None:
    """The code of a paper that was written years ago must be read for ever."""
    spelt = recovery.spell(bytearray(range(32)))
    assert spelt.startswith(b"cccbcdce-cfcgchci-cjckclcn-crctcucv-bcbbbdbe")
    assert recovery.read_code(spelt) == bytes(range(32))


@given(st.binary(max_size=120))
def test_noise_is_a_typo(noise: bytes) -> None:
    assert refusal(noise) is Fault.RECOVERY_CODE_TYPO


def test_only_the_private_half_opens_it() -> None:
    code, other = recovery.new_code(), recovery.new_code()
    vmk = bytearray(b"m" * 32)
    to = recovery.recipient(recovery.CODE, "code", recovery.code_public(code))
    wrapped = (recovery.wrapped(to, vmk, VAULT),)
    key = recovery.private_key(recovery.spell(code))
    assert recovery.unwrap(wrapped, key, VAULT) == vmk
    assert recovery.wrapped(to, vmk, VAULT).ct != wrapped[0].ct  # a fresh key every time
    for recipients, who, vault, fault in (
        ((), key, VAULT, Fault.RECOVERY_ABSENT),
        (wrapped, recovery.private_key(recovery.spell(other)), VAULT, Fault.RECOVERY_CODE_WRONG),
        (wrapped, key, "0" * 32, Fault.TAMPERED),
    ):
        with pytest.raises(VaultError) as caught:
            recovery.unwrap(recipients, who, vault)
        assert caught.value.fault is fault


def test_keys_in_pem_are_x25519() -> None:
    for key, good in ((X25519PrivateKey.generate(), True), (Ed25519PrivateKey.generate(), False)):
        plain = s.NoEncryption()
        private = key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, plain)
        public = key.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo)
        if good:
            own = recovery.public_of(recovery.private_key(bytearray(private)))
            assert recovery.public_key(bytearray(public)) == own
            continue
        with pytest.raises(VaultError) as caught:
            recovery.private_key(bytearray(private))
        assert caught.value.fault is Fault.RECOVERY_CODE_TYPO
        with pytest.raises(VaultError) as caught:
            recovery.public_key(bytearray(public))
        assert caught.value.fault is Fault.PUBLIC_KEY
