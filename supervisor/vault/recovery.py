"""Opening without the TPM: the recovery code, and other recipients with an X25519 key.

The code is 256 random bits, the private half of an X25519 key whose public half is in the header:
each commit seals the fresh master key to it without the code. It is written in the 16 letters that
lie in one place on every Latin keyboard layout ("modhex"), in groups of eight, with two bytes of
SHA-256 as a checksum.
"""

from __future__ import annotations

import hashlib

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from . import crypto
from .errors import Fault, VaultError
from .header import Recipient

CODE, HOST, BACKUP = "code", "host", "backup"
TEXT_MAX = 4096  # of a typed code or a PEM key, in bytes
_ALPHABET = "cbdefghijklnrtuv"
_GROUP = 8
_CHECKSUM = 2
_INFO = b"vault/recovery"


def new_code() -> bytearray:
    """256 fresh random bits."""
    return crypto.random_key()


def spell(code: bytearray) -> bytearray:
    """The code as a person writes it down: 76 characters."""
    raw = code + hashlib.sha256(code).digest()[:_CHECKSUM]
    letters = bytearray()
    for byte in raw:
        if letters and (len(letters) + 1) % (_GROUP + 1) == 0:
            letters += b"-"
        letters += (_ALPHABET[byte >> 4] + _ALPHABET[byte & 15]).encode()
    crypto.wipe(raw)
    return letters


def read_code(text: bytearray) -> bytearray:
    """The code out of what was typed; case, spaces and hyphens do not matter.

    Raises RECOVERY_CODE_TYPO.
    """
    raw = bytearray()
    half: int | None = None
    for byte in text:
        letter = chr(byte).lower()
        if letter in "- \t\r\n":
            continue
        value = _ALPHABET.find(letter)
        if value < 0:
            crypto.wipe(raw)
            raise VaultError(Fault.RECOVERY_CODE_TYPO, "a letter that no code has")
        if half is None:
            half = value
        else:
            raw.append(half << 4 | value)
            half = None
    code, checksum = raw[: crypto.KEY], raw[crypto.KEY :]
    crypto.wipe(raw)
    if half is not None or len(code) != crypto.KEY or len(checksum) != _CHECKSUM:
        crypto.wipe(code)
        raise VaultError(Fault.RECOVERY_CODE_TYPO, "it has 68 letters")
    if hashlib.sha256(code).digest()[:_CHECKSUM] != checksum:
        crypto.wipe(code)
        raise VaultError(Fault.RECOVERY_CODE_TYPO, "the checksum does not fit")
    return code


def private_key(text: bytearray) -> X25519PrivateKey:
    """The private key in a typed code, or in PEM. Raises RECOVERY_CODE_TYPO."""
    if not text.lstrip().startswith(b"-----BEGIN"):
        code = read_code(text)
        try:
            return _from_code(code)
        finally:
            crypto.wipe(code)
    frozen = bytes(text)
    try:
        key = load_pem_private_key(frozen, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise VaultError(Fault.RECOVERY_CODE_TYPO, "the PEM text is no private key") from None
    finally:
        crypto.wipe(frozen)
    if not isinstance(key, X25519PrivateKey):
        raise VaultError(Fault.RECOVERY_CODE_TYPO, "the private key is not X25519")
    return key


def _from_code(code: bytearray) -> X25519PrivateKey:
    frozen = bytes(code)
    try:
        return X25519PrivateKey.from_private_bytes(frozen)
    finally:
        crypto.wipe(frozen)


def public_of(key: X25519PrivateKey) -> bytes:
    """The 32 bytes of the public half."""
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def code_public(code: bytearray) -> bytes:
    """The public half of a code."""
    return public_of(_from_code(code))


def public_key(pem: bytearray) -> bytes:
    """The 32 bytes of an X25519 public key in PEM. Raises PUBLIC_KEY."""
    try:
        key = load_pem_public_key(bytes(pem))
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise VaultError(Fault.PUBLIC_KEY) from None
    if not isinstance(key, X25519PublicKey):
        raise VaultError(Fault.PUBLIC_KEY, "not X25519")
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)


def recipient(kind: str, name: str, public: bytes) -> Recipient:
    """Someone new; the next commit gives them the master key."""
    return Recipient(kind, name, public, bytes(crypto.KEY), bytes(crypto.KEY + crypto.TAG))


def wrapped(to: Recipient, vmk: bytearray, vault_id: str) -> Recipient:
    """`to` with this master key, sealed to a fresh ephemeral key. Raises PUBLIC_KEY."""
    ephemeral = X25519PrivateKey.generate()
    epk = public_of(ephemeral)
    try:
        shared = ephemeral.exchange(X25519PublicKey.from_public_bytes(to.pub))
    except ValueError:  # a point of small order gives the all-zero secret (RFC 7748, 6.1)
        raise VaultError(Fault.PUBLIC_KEY, to.name) from None
    key = _wrapping(shared, epk, to.pub)
    try:
        ct = crypto.seal(key, bytes(crypto.NONCE), vmk, vault_id.encode())
    finally:
        crypto.wipe(key)
    return Recipient(to.kind, to.name, to.pub, epk, ct)


def unwrap(recipients: tuple[Recipient, ...], key: X25519PrivateKey, vault_id: str) -> bytearray:
    """The master key, for whoever holds this private key.

    Raises RECOVERY_ABSENT (there is no recipient at all), RECOVERY_CODE_WRONG.
    """
    if not recipients:
        raise VaultError(Fault.RECOVERY_ABSENT)
    own = public_of(key)
    for found in recipients:
        if found.pub != own:
            continue
        vmk = bytearray(crypto.KEY)
        try:
            shared = key.exchange(X25519PublicKey.from_public_bytes(found.epk))
            wrapping = _wrapping(shared, found.epk, own)
            crypto.open_into(wrapping, bytes(crypto.NONCE), found.ct, vault_id.encode(), vmk)
        except (crypto.ForgedError, ValueError):
            raise VaultError(Fault.TAMPERED, f"the part of recipient {found.name}") from None
        crypto.wipe(wrapping)
        return vmk
    raise VaultError(Fault.RECOVERY_CODE_WRONG)


def _wrapping(shared: bytes, epk: bytes, public: bytes) -> bytearray:
    """One key per ephemeral key, so its only nonce may be zero."""
    secret = bytearray(shared)
    crypto.wipe(shared)
    try:
        return crypto.derive(secret, _INFO + epk + public)
    finally:
        crypto.wipe(secret)
