"""Approvals: the boot states in which the vault opens, each signed by K_pol for one generation.

A commit signs all that are still wanted for its own generation: the state that is booted now, and
states that are expected. Those of older generations die when the counter moves.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from . import counter, policy
from .document import APPROVALS_MAX
from .errors import Fault, VaultError
from .header import Approval, SealedTo

CURRENT, PREDICTED = "current", "predicted"
PREDICTION_MAX = 4096  # bytes
_NOTE = re.compile("[ -~]{1,80}")


def unsigned(note: str, kind: str, values: Sequence[bytes]) -> Approval:
    """A state that the next commit shall approve. Raises USAGE for a note that is no plain line."""
    if not _NOTE.fullmatch(note):
        raise VaultError(Fault.USAGE, "a note is 1 to 80 printable ASCII characters")
    return Approval(note, kind, 1, tuple(values), bytes(32), bytes(32), bytes(32))


def digest(sealed: SealedTo, approval: Approval) -> bytes:
    """The policy digest that this approval is about."""
    if sealed.nv is None:  # version 1 had no counter
        return policy.boot_state(sealed.pcrs, approval.pcr, None, 0)
    name = counter.name(sealed.nv.index, sealed.pol_pub)
    bound = approval.gen + sealed.nv.base
    if not 0 <= bound < 2**63:
        raise VaultError(Fault.TAMPERED, "the counter's base is out of range")
    return policy.boot_state(sealed.pcrs, approval.pcr, name, bound)


def signed(sealed: SealedTo, signer: ec.EllipticCurvePrivateKey, gen: int) -> SealedTo:
    """`sealed` with all its approvals signed for generation `gen`."""
    made = []
    for approval in sealed.approvals:
        approval = dataclasses.replace(approval, gen=gen)
        what = digest(sealed, approval)
        r, s = policy.approve(signer, what)
        made.append(dataclasses.replace(approval, digest=what, r=r, s=s))
    return dataclasses.replace(sealed, approvals=tuple(made))


def check(sealed: SealedTo) -> None:
    """Raises TAMPERED where an approval does not fit its values or is not K_pol's.

    Nothing here is a secret check: it gives a clear error before the TPM's unspecific one.
    """
    for approval in sealed.approvals:
        if approval.digest != digest(sealed, approval):
            raise VaultError(Fault.TAMPERED, "an approval does not fit its PCR values")
        if not policy.is_approved(sealed.pol_pub, approval.digest, approval.r, approval.s):
            raise VaultError(Fault.TAMPERED, "an approval has no valid signature")


def matching(sealed: SealedTo, found: tuple[bytes, ...]) -> Approval:
    """The approval for these PCR values. Raises PCR_CHANGED, naming old and new values."""
    for approval in sealed.approvals:
        if approval.pcr == found:
            return approval
    changes = [
        f"PCR {pcr}: {old.hex()} -> {new.hex()}"
        for pcr, old, new in zip(sealed.pcrs, sealed.approvals[0].pcr, found, strict=True)
        if old != new
    ]
    raise VaultError(Fault.PCR_CHANGED, ", ".join(changes))


def wanted(
    sealed: SealedTo, matched: Approval, *, predictions: bool = True
) -> tuple[Approval, ...]:
    """What the next commit keeps: the state booted now, first, and open predictions."""
    now = dataclasses.replace(matched, kind=CURRENT)
    kept = [a for a in sealed.approvals if a.kind == PREDICTED and a.pcr != matched.pcr]
    return (now, *(kept if predictions else ()))


def with_prediction(approved: tuple[Approval, ...], new: Approval) -> tuple[Approval, ...]:
    """`approved` and a prediction; the oldest prediction makes room where there is none."""
    now, *predictions = [a for a in approved if a.kind == CURRENT or a.pcr != new.pcr]
    if new.pcr == now.pcr:
        return (now, *predictions)
    return (now, *[*predictions, new][-(APPROVALS_MAX - 1) :])


def read_prediction(raw: bytes, pcrs: tuple[int, ...]) -> tuple[bytes, ...]:
    """PCR values out of `{"7": "hex", ...}`: every bound PCR, no other. Raises PREDICTION."""
    try:
        values: Any = json.loads(raw)
    except (ValueError, RecursionError):
        raise VaultError(Fault.PREDICTION, "not JSON") from None
    if not isinstance(values, dict) or set(values) != {str(pcr) for pcr in pcrs}:
        raise VaultError(Fault.PREDICTION, f"bound are PCRs {', '.join(map(str, pcrs)) or 'none'}")
    found = []
    for pcr in pcrs:
        value = values[str(pcr)]
        if not isinstance(value, str) or not re.fullmatch("[0-9a-fA-F]{64}", value, re.ASCII):
            raise VaultError(Fault.PREDICTION, f"PCR {pcr} is not 64 hex digits")
        found.append(bytes.fromhex(value))
    if any(value in (bytes(32), b"\xff" * 32) for value in found):
        raise VaultError(Fault.PREDICTION, "no measured PCR is all 00 or all FF")
    return tuple(found)
