"""Tokens are what the gateway accepts: checked with a library that is not ours."""

from __future__ import annotations

import base64
import hashlib
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from vault_scene import Helper

from supervisor.vault.errors import Fault


def public_key(status: Any) -> Ed25519PublicKey:
    raw = base64.urlsafe_b64decode(status["vault"]["keys"][0]["x"] + "=")
    assert hashlib.sha256(raw).hexdigest()[:16] == status["vault"]["keys"][0]["kid"]
    return Ed25519PublicKey.from_public_bytes(raw)


def issue(vault: Helper) -> Any:
    options = ("--client", "alice", "--workload", "adapter.rest", "--lifetime", "3600")
    return vault.ok("token", *options).json


def test_token_carries_the_claims_of_the_contract(vault: Helper) -> None:
    status = vault.ok("status").json
    first, second = issue(vault), issue(vault)
    claims = jwt.decode(
        first["token"],
        public_key(status),
        algorithms=["EdDSA"],
        audience="adapter.rest",
        issuer="anchorhold",
        options={"require": ["iss", "sub", "aud", "iat", "exp", "jti"]},
    )
    assert set(claims) == {"iss", "sub", "aud", "iat", "exp", "jti"}
    assert claims == first["claims"]
    assert claims["sub"] == "alice"
    assert claims["exp"] - claims["iat"] == 3600
    assert abs(claims["iat"] - time.time()) < 60
    assert claims["jti"] != second["claims"]["jti"]
    head = jwt.get_unverified_header(first["token"])
    assert head == {"alg": "EdDSA", "kid": status["vault"]["keys"][0]["kid"], "typ": "JWT"}


def test_token_of_another_vault_is_not_accepted(vault: Helper) -> None:
    token = issue(vault)["token"]
    own = public_key(vault.ok("status").json)
    vault.file.unlink()
    vault.ok("init")
    other = public_key(vault.ok("status").json)
    options: Any = {"algorithms": ["EdDSA"], "audience": "adapter.rest"}
    with pytest.raises(jwt.InvalidSignatureError):
        jwt.decode(token, other, **options)
    assert jwt.decode(token, own, **options)


@pytest.mark.parametrize(
    "client, workload, lifetime",
    [("", "adapter.rest", "1"), ("a b", "adapter.rest", "1"), ("alice", "x" * 64, "1")]
    + [("alice", "adapter.rest", seconds) for seconds in ("0", "-1", "31536001")],
)
def test_senseless_tokens_are_refused(
    vault: Helper, client: str, workload: str, lifetime: str
) -> None:
    claims = (f"--client={client}", f"--workload={workload}", f"--lifetime={lifetime}")
    assert vault.run("token", *claims).fault is Fault.TOKEN_CLAIM
