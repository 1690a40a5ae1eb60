"""Signatures over checkpoints of the audit log, and the public keys of those who sign policies."""

from __future__ import annotations

import struct

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)

from .errors import Fault, VaultError
from .tokens import base64url, load_key

CONTEXT = b"anchorhold/audit/v1\0"


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
