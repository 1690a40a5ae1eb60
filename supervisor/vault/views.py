"""What the vault tells of itself, as JSON. Nothing here is secret, and nothing is unsealed."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from typing import Any

from . import approvals, levels, sealing, store, vault
from .access import Descriptors
from .errors import Fault, VaultError
from .header import VERSION, Header, SealedTo
from .recovery import CODE
from .tpm import Facts, Tpm, connected

Result = dict[str, Any]


def public_keys(header: Header) -> Result:
    """The public keys in a header: of tokens, of the audit log, of signers of policies."""
    return {
        "keys": [dataclasses.asdict(key) for key in header.keys],
        "audit": [dataclasses.asdict(key) for key in header.audit],
        "trust": [dataclasses.asdict(key) for key in header.trust],
    }


def header_result(header: Header) -> Result:
    """What the header says."""
    return {
        "id": header.id,
        "format": header.v,
        "generation": header.gen,
        "date": header.date,
        "pcrs": list(header.tpm.pcrs) if header.tpm else [],
        "wanted_pcrs": list(header.tpm.wanted) if header.tpm else [],
        "recovery": {
            "code": any(r.kind == CODE for r in header.recovery),
            "confirmed": header.recovery_confirmed,
            "recipients": [
                {"name": r.name, "kind": r.kind} for r in header.recovery if r.kind != CODE
            ],
        },
        "pin": header.pin is not None,
        "key_file": header.file is not None,
    } | public_keys(header)


def level_result(header: Header, facts: Facts | None, options: argparse.Namespace) -> Result:
    """The threat level, from the header and what is known of this machine."""
    found = levels.level(
        software=facts is None or facts.software,
        pcrs=header.tpm.pcrs if header.tpm else (),
        secure_boot=options.secure_boot,
        uki=options.uki,
        disk_encrypted=options.disk_encrypted,
        key_file=header.file is not None,
    )
    return {"level": dataclasses.asdict(found)}


def whole(header: Header, tpm: Tpm | None, options: argparse.Namespace) -> Result:
    """Header, TPM and level after a verb that enrolled or bound."""
    facts = tpm.facts() if tpm else None
    shown = _facts_result(facts, header) if facts else None
    return header_result(header) | {"tpm": shown} | level_result(header, facts, options)


def _facts_result(facts: Facts, header: Header | None) -> Result:
    sealed = header.tpm if header else None
    return dataclasses.asdict(facts) | {
        "srk_name": sealed.srk_name.hex() if sealed else None,
        "ek": sealed.ek if sealed else None,
    }


def status(options: argparse.Namespace, descriptors: Descriptors) -> Result:
    """What can be told without unsealing: vault, TPM, counter, PCRs, threat level.

    A vault or TPM that would not open is reported as `problem`, the name of the fault.
    """
    result: Result = dict.fromkeys(
        ("vault", "tpm", "level", "counter", "approval", "upgrade", "problem")
    )
    result |= {"detail": "", "pcrs": [], "approvals": [], "waivers": []}
    header: Header | None = None
    try:
        with store.locked(options.dir, write=False) as directory:
            header = vault.load(directory).header
            result["vault"] = header_result(header)
        _about_file(result, header, options)
        if header.file is None:
            with connected(options.tpm, options.backend) as tpm:
                _about_tpm(result, header, tpm, options)
    except VaultError as error:
        result["problem"], result["detail"] = error.fault.name, error.detail
        if error.fault is Fault.VAULT_ABSENT:
            with contextlib.suppress(VaultError), connected(options.tpm, options.backend) as tpm:
                result["tpm"] = _facts_result(tpm.facts(), None)
    return result


def _about_file(result: Result, header: Header, options: argparse.Namespace) -> None:
    if header.v != VERSION:
        result["upgrade"] = (
            "written by an earlier release, without rollback counter: an older copy would not be "
            "noticed; the next change of a key adds the counter"
        )
    if header.file is not None:
        result["waivers"].append("file-key")
        result |= level_result(header, None, options)
        if not options.allow_key_file:
            raise VaultError(Fault.KEY_FILE_REFUSED)


def _about_tpm(result: Result, header: Header, tpm: Tpm, options: argparse.Namespace) -> None:
    facts = tpm.facts()
    result["tpm"] = _facts_result(facts, header)
    result |= level_result(header, facts, options)
    if facts.software:
        result["waivers"].append("software-tpm")
    if header.pin and not facts.lockout_auth_set:
        result["waivers"].append("pin-rate-limit")
    sealed = sealing.check_sealed(header)
    result["approvals"] = _approvals(sealed)
    approvals.check(sealed)
    key = tpm.storage_key(sealed.srk_name, options.srk_name)
    result["counter"] = {"value": None, "generation": header.gen, "state": "absent"}
    if stand := sealing.standing(header, tpm, key):
        result["counter"] |= {"value": stand.value, "state": stand.state.value}
    found = tpm.read_pcrs(sealed.pcrs, key, software=facts.software)
    result["pcrs"] = _pcrs(sealed, found)
    if stand:
        stand.check()
    approval = approvals.matching(sealed, found)
    result["approval"] = {"note": approval.note, "gen": approval.gen}
    if header.pin and facts.in_lockout:
        raise tpm.lockout()
    if header.pin:
        raise VaultError(Fault.PIN_NEEDED)


def _approvals(sealed: SealedTo) -> list[Result]:
    return [
        {
            "note": approval.note,
            "kind": approval.kind,
            "gen": approval.gen,
            "pcr": {
                str(pcr): value.hex() for pcr, value in zip(sealed.pcrs, approval.pcr, strict=True)
            },
        }
        for approval in sealed.approvals
    ]


def _pcrs(sealed: SealedTo, found: tuple[bytes, ...]) -> list[Result]:
    """Each bound PCR: its value now, and the values that some approval has for it."""
    shown = []
    for at, (pcr, now) in enumerate(zip(sealed.pcrs, found, strict=True)):
        expected = list(dict.fromkeys(approval.pcr[at].hex() for approval in sealed.approvals))
        shown.append(
            {
                "pcr": pcr,
                "now": now.hex(),
                "approved": now.hex() in expected,
                "expected": expected,
            }
        )
    return shown
