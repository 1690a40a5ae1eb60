"""Our ChaCha20-Poly1305 and HKDF give what the libraries' own give, and wiping wipes."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

from supervisor.vault import crypto

KEYS = st.binary(min_size=32, max_size=32)
NONCES = st.binary(min_size=12, max_size=12)


@given(KEYS, NONCES, st.binary(max_size=300), st.binary(max_size=100))
def test_same_as_the_library(key: bytes, nonce: bytes, plain: bytes, aad: bytes) -> None:
    sealed = crypto.seal(bytearray(key), nonce, plain, aad)
    assert sealed == ChaCha20Poly1305(key).encrypt(nonce, plain, aad)
    out = bytearray(len(plain))
    assert crypto.open_into(bytearray(key), nonce, sealed, aad, out) == len(plain)
    assert out == plain


def test_rfc_8439_section_2_8_2() -> None:
    key = bytearray(range(0x80, 0xA0))
    nonce = bytes.fromhex("070000004041424344454647")
    aad = bytes.fromhex("50515253c0c1c2c3c4c5c6c7")
    plain = (
        b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the "
        b"future, sunscreen would be it."
    )
    sealed = crypto.seal(key, nonce, plain, aad)
    assert sealed[:8].hex() == "d31a8d34648e60db"
    assert sealed[-16:].hex() == "1ae10b594f09e26a7e902ecbd0600691"


def test_nothing_is_decrypted_before_the_tag_is_checked() -> None:
    key, nonce = bytearray(32), bytes(12)
    sealed = crypto.seal(key, nonce, b"plaintext", b"header")
    forgeries = [sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :] for at in range(25)]
    for forged in [*forgeries, sealed[:-1], sealed[:15], b""]:
        out = bytearray(9)
        with pytest.raises(crypto.ForgedError):
            crypto.open_into(key, nonce, forged, b"header", out)
        assert out == bytes(9)
    with pytest.raises(crypto.ForgedError):
        crypto.open_into(key, nonce, sealed, b"Header", bytearray(9))


@given(KEYS, st.binary(min_size=1, max_size=20))
def test_derive_is_hkdf(key: bytes, info: bytes) -> None:
    expected = HKDF(hashes.SHA256(), 32, None, info).derive(key)
    assert crypto.derive(bytearray(key), info) == expected


def test_keys_survive_their_own_use() -> None:
    """Intermediate copies are wiped; the caller's key must not be."""
    key = crypto.random_key()
    kept = bytes(key)
    crypto.seal(key, bytes(12), b"plain", b"")
    crypto.derive(key, b"info")
    assert key == kept
    assert key != crypto.random_key()


def test_wipe() -> None:
    array, frozen, single = bytearray(b"secret"), bytes(bytearray(b"secret")), b"x"
    crypto.wipe(array, frozen, single, b"")
    assert array == bytes(6)
    assert frozen == bytes(6)
    assert single == b"x"  # shared by the whole interpreter
