"""Signatures over checkpoints of the audit log; and signers of policies, with their public keys."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterable

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)

from .errors import Fault, VaultError
from .header import Trusted
from .tokens import base64url, load_key

CONTEXT = b"anchorhold/audit/v1\0"
POLICIES = b"anchorhold/policies/v1\0"
SIGNATURE_MAX = 128  # characters; 64 bytes in base64url are 86


def checkpoint(count: int, digest: bytes) -> bytes:
    """The bytes that are signed: how many records, and the digest of their chain (32 bytes)."""
    return CONTEXT + struct.pack("!Q", count) + digest


def sign(private: memoryview, count: int, digest: bytes) -> str:
    """The Ed25519 signature over a checkpoint, in base64url."""
    return base64url(load_key(private).sign(checkpoint(count, digest)))


def signer_key(pem: bytearray) -> str:
    """The Ed25519 public key in PEM, in base64url. Raises PUBLIC_KEY."""
    try:
        key = load_pem_public_key(bytes(pem))
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise VaultError(Fault.PUBLIC_KEY) from None
    if not isinstance(key, Ed25519PublicKey):
        raise VaultError(Fault.PUBLIC_KEY, "not Ed25519")
    return base64url(key.public_bytes(Encoding.Raw, PublicFormat.Raw))


def signer_of(trust: Iterable[Trusted], digest: bytes, signature: bytes) -> str:
    """Who of `trust` signed the policies with this digest. Raises POLICIES_UNSIGNED.

    `signature`: in base64url, as it was read.
    """
    try:
        raw = base64.b64decode(signature.strip() + b"==", b"-_", validate=True)
    except ValueError:
        raise VaultError(Fault.POLICIES_UNSIGNED, "that is no signature") from None
    for signer in trust:
        public = base64.urlsafe_b64decode(signer.x + "=" * (-len(signer.x) % 4))
        try:
            Ed25519PublicKey.from_public_bytes(public).verify(raw, POLICIES + digest)
        except (InvalidSignature, ValueError):
            continue
        return signer.name
    raise VaultError(Fault.POLICIES_UNSIGNED)
