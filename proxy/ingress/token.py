"""Tokens: a JWT (RFC 7519) in compact form, signed with Ed25519 and nothing else.

One algorithm, one key type, one set of claims: what a general library leaves open (RFC 8725) does
not exist here, and its import would cost more memory than the rest of the gateway.
"""

from __future__ import annotations

import base64
import binascii
import re
import time
from collections.abc import Callable
from typing import Annotated, Literal

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from ..errors import ConfigError
from .config import Config
from .refusal import Refusal

TOKEN_MAX = 4096
_COMPACT = re.compile(rb"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")
_Time = Annotated[int, msgspec.Meta(ge=0, lt=1 << 40)]


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The JOSE header; no other member is accepted (``crit``, ``jwk``, ``jku``, ``b64`` ...)."""

    alg: Literal["EdDSA"]
    kid: str
    typ: Literal["JWT"]


class Claims(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The claims: issuer, client name, the one workload, and times in seconds since 1970."""

    iss: str
    sub: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}\Z")]
    aud: str
    iat: _Time
    exp: _Time
    jti: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{1,64}\Z")]


class Verifier:
    """Checks tokens against the public keys of the configuration; `now` returns Unix seconds."""

    def __init__(self, config: Config, now: Callable[[], float] = time.time) -> None:
        self._issuer = config.issuer
        self._prefix = config.audience_prefix
        self._lifetime = config.limits.token_lifetime
        self._now = now
        self._keys = {}
        for key in config.keys:
            try:
                self._keys[key.kid] = Ed25519PublicKey.from_public_bytes(_decode(key.x.encode()))
            except ValueError:
                message = f"keys: {key.kid!r} is not a raw Ed25519 public key in base64url."
                raise ConfigError(message) from None

    def check(self, token: bytes, workload: str) -> Claims:
        """Return the claims of a valid token for `workload`.

        Raises Refusal: 401 for a token that is not valid here and now, 403 for a valid one that is
        for another workload. The messages never quote the token.
        """
        parts = _COMPACT.fullmatch(token) if len(token) <= TOKEN_MAX else None
        if parts is None:
            raise _invalid("malformed_token", "The token is not a signed JWT in compact form")
        try:
            header = msgspec.json.decode(_decode(parts[1]), type=Header)
            signature = _decode(parts[3])
        except (ValueError, msgspec.DecodeError):
            raise _invalid("token_header", "The token's header is not accepted") from None
        key = self._keys.get(header.kid)
        if key is None:
            raise _invalid("unknown_key", "The token is signed by a key that is not known here")
        try:
            key.verify(signature, parts[1] + b"." + parts[2])
        except InvalidSignature:
            raise _invalid("bad_signature", "The token's signature is wrong") from None
        try:
            claims = msgspec.json.decode(_decode(parts[2]), type=Claims)
        except (ValueError, msgspec.DecodeError):
            raise _invalid("token_claims", "The token's claims are not accepted") from None
        self._in_force(claims)
        if claims.aud != self._prefix + workload:
            raise Refusal(
                403,
                "wrong_workload",
                "The token is for another workload; issue one for this protocol's workload.",
            )
        return claims

    def _in_force(self, claims: Claims) -> None:
        now = self._now()
        if claims.iss != self._issuer:
            raise _invalid("wrong_issuer", "The token is from another issuer")
        if claims.iat > now:
            raise _invalid("token_from_future", "The token was issued in the future; check clocks")
        if claims.exp <= now:
            raise _invalid("token_expired", "The token has expired")
        if claims.exp - claims.iat > self._lifetime:
            raise _invalid("token_lifetime", "The token is valid for longer than allowed")


def _invalid(code: str, why: str) -> Refusal:
    return Refusal(401, code, f"{why}; issue a new one with `anchorhold token issue`.")


def _decode(text: bytes) -> bytes:
    """Strict base64url without padding; ValueError for any other spelling of the same bytes."""
    try:
        data = base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4))
    except binascii.Error as error:
        raise ValueError("not base64url") from error
    if base64.urlsafe_b64encode(data).rstrip(b"=") != text:
        raise ValueError("not canonical base64url")
    return data
