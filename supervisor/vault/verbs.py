"""One function per verb of the unlock helper; each takes the parsed options and the descriptors.

A verb returns what goes to the descriptor `result` (never a secret), or None.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
from collections.abc import Callable

from . import audit, enrolment, entries, tokens, views
from .access import Descriptors, opened, typed
from .document import NAME
from .errors import Fault, VaultError
from .handover import hand_over
from .vault import change
from .views import Result

VALUE_MIN = 8  # the egress proxy cannot tell a shorter key from ordinary text, and masks none
VALUE_MAX = 16 * 1024

Verb = Callable[[argparse.Namespace, Descriptors], Result | None]


def _key_name(name: str) -> str:
    if not re.fullmatch(NAME, name, re.ASCII):
        raise VaultError(Fault.KEY_NAME)
    return name


def _check_value(value: bytearray) -> None:
    if not VALUE_MIN <= len(value) <= VALUE_MAX or any(not 0x20 <= byte <= 0x7E for byte in value):
        raise VaultError(Fault.KEY_VALUE)


def set_key(options: argparse.Namespace, descriptors: Descriptors) -> None:
    """Store the value read from `secret` under a name, replacing an older one but with --new."""
    name = _key_name(options.name)
    with typed(descriptors.number("secret"), VALUE_MAX) as value:
        _check_value(value)
        with opened(options, descriptors, write=True) as vault:
            values = vault.entries()
            if options.new and name in values:
                raise VaultError(Fault.NAME_TAKEN, name)
            values[name] = memoryview(value)
            change(vault, values=values)
            _handed_on(values, options, descriptors)


def remove(options: argparse.Namespace, descriptors: Descriptors) -> None:
    """Remove a key. Older copies of the file still hold it: change it at the provider too."""
    name = _key_name(options.name)
    with opened(options, descriptors, write=True) as vault:
        values = vault.entries()
        if values.pop(name, None) is None:
            raise VaultError(Fault.KEY_UNKNOWN, name)
        change(vault, values=values)
        _handed_on(values, options, descriptors)


def _handed_on(
    values: dict[str, memoryview], options: argparse.Namespace, descriptors: Descriptors
) -> None:
    """After a change: to the egress proxy, if it listens on `handover`."""
    if descriptors.has("handover"):
        with socket.socket(fileno=os.dup(descriptors.number("handover"))) as peer:
            hand_over(_visible(values), peer, allow_plain=options.allow_plain_memfd)


def list_names(options: argparse.Namespace, descriptors: Descriptors) -> Result:
    """The names of the keys without Anchorhold's own, and what else must be authenticated."""
    with opened(options, descriptors, write=False) as vault:
        return {"names": sorted(_visible(vault.entries()))} | views.public_keys(vault.header)


def unlock(options: argparse.Namespace, descriptors: Descriptors) -> None:
    """Hand keys to the egress proxy over `handover`."""
    peer = socket.socket(fileno=os.dup(descriptors.number("handover")))
    with peer, opened(options, descriptors, write=False) as vault:
        values = _visible(vault.entries())
        if options.names is not None:
            names = [_key_name(name) for name in options.names.split(",") if name]
            for name in names:
                if name not in values:
                    raise VaultError(Fault.KEY_UNKNOWN, name)
            values = {name: values[name] for name in names}
        hand_over(values, peer, allow_plain=options.allow_plain_memfd)


def token(options: argparse.Namespace, descriptors: Descriptors) -> Result:
    """Issue a token of the gateway."""
    claims = {"client": options.client, "workload": options.workload, "lifetime": options.lifetime}
    tokens.check_claims(**claims)
    with opened(options, descriptors, write=False) as vault:
        private = vault.entries().get(entries.SIGNING_KEY)
        if private is None or len(private) != 32:
            raise VaultError(Fault.TAMPERED, "the signing key is missing")
        text, signed = tokens.issue(private, vault.header.keys[0].kid, **claims)
    return {"token": text, "claims": signed}


def audit_sign(options: argparse.Namespace, descriptors: Descriptors) -> Result:
    """Sign a checkpoint of the audit log."""
    with opened(options, descriptors, write=False) as vault:
        private = vault.entries().get(entries.AUDIT_KEY)
        if private is None or len(private) != 32 or not vault.header.audit:
            raise VaultError(Fault.AUDIT_KEY_ABSENT)
        signature = audit.sign(private, options.count, options.digest)
        kid = vault.header.audit[0].kid
    return {
        "kid": kid,
        "signature": signature,
        "count": options.count,
        "digest": options.digest.hex(),
    }


def policy_verify(options: argparse.Namespace, descriptors: Descriptors) -> Result:
    """Who of the vault's signers made the signature in `secret` over a set of policies."""
    with (
        typed(descriptors.number("secret"), audit.SIGNATURE_MAX) as signature,
        opened(options, descriptors, write=False) as vault,
    ):
        return {"signer": audit.signer_of(vault.header.trust, options.digest, bytes(signature))}


def _visible(values: dict[str, memoryview]) -> dict[str, memoryview]:
    return {k: v for k, v in values.items() if not k.startswith(entries.RESERVED)}


VERBS: dict[str, Verb] = {
    "init": enrolment.init,
    "set": set_key,
    "remove": remove,
    "list": list_names,
    "status": views.status,
    "unlock": unlock,
    "token": token,
    "audit-sign": audit_sign,
    "policy-verify": policy_verify,
    "recovery-code": enrolment.recovery_code,
    "confirm-recovery": enrolment.confirm_recovery,
    "recover": enrolment.recover,
    "approve": enrolment.approve,
    "rebind": enrolment.rebind,
    "rotate": enrolment.rotate,
    "pin-set": enrolment.pin_set,
    "pin-remove": enrolment.pin_remove,
    "recipient-add": enrolment.recipient_add,
    "recipient-remove": enrolment.recipient_remove,
    "trust-add": enrolment.trust_add,
    "trust-remove": enrolment.trust_remove,
}
