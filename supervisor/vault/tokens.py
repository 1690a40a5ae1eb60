"""Tokens of the gateway: compact JWTs (RFC 7519) signed with EdDSA over Ed25519 (RFC 8037)."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import time
from typing import cast

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from .errors import Fault, VaultError
from .header import SigningKey

ISSUER = "anchorhold"
LIFETIME_MAX = 31_536_000  # one year, in seconds
_NAME = re.compile(r"[A-Za-z0-9._-]{1,63}")


def base64url(raw: bytes) -> str:
    """Base64 for URLs without padding (RFC 7515)."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def load_key(private: bytearray | memoryview) -> Ed25519PrivateKey:
    """The key from its 32 raw bytes."""
    # The stubs say bytes; any buffer works and spares a copy that could not be wiped.
    return Ed25519PrivateKey.from_private_bytes(cast(bytes, private))


def public_key(private: bytearray | memoryview) -> SigningKey:
    """The public half of a raw private key: kid is the first 16 hex digits of its SHA-256."""
    raw = load_key(private).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return SigningKey(kid=hashlib.sha256(raw).hexdigest()[:16], x=base64url(raw))


def check_claims(client: str, workload: str, lifetime: int) -> None:
    """Raises TOKEN_CLAIM for names or a lifetime (seconds) that no token may have."""
    if not _NAME.fullmatch(client):
        raise VaultError(Fault.TOKEN_CLAIM, "client")
    if not _NAME.fullmatch(workload):
        raise VaultError(Fault.TOKEN_CLAIM, "workload")
    if not 1 <= lifetime <= LIFETIME_MAX:
        raise VaultError(Fault.TOKEN_CLAIM, "lifetime")


def issue(
    private: bytearray | memoryview, kid: str, *, client: str, workload: str, lifetime: int
) -> tuple[str, dict[str, str | int]]:
    """A token for one client and one workload, `lifetime` seconds long, and its claims."""
    now = int(time.time())
    claims: dict[str, str | int] = {
        "iss": ISSUER,
        "sub": client,
        "aud": workload,
        "iat": now,
        "exp": now + lifetime,
        "jti": os.urandom(16).hex(),
    }
    head = {"alg": "EdDSA", "kid": kid, "typ": "JWT"}
    parts = (json.dumps(part, separators=(",", ":")).encode() for part in (head, claims))
    signed = ".".join(base64url(part) for part in parts)
    signature = load_key(private).sign(signed.encode())
    return f"{signed}.{base64url(signature)}", claims
