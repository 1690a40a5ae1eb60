"""Threat levels: what the vault stops on this machine, and what it does not. Standard library only.

Never say "TPM protected" alone: every view that mentions protection shows the level and both
sentences. The level follows from facts; nothing can claim one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MEASURED_CHAIN = frozenset({7, 11, 15})


@dataclass(frozen=True, slots=True)
class Level:
    """A threat level: its code, what it stops and does not stop, why it holds, what is next."""

    code: str
    stops: str
    does_not_stop: str
    reasons: tuple[str, ...] = ()
    next: str | None = None


_KEY_FILE = (
    "T0",
    "a leak of the vault file alone",
    "whoever reads the disk has the key file too; root while the machine runs",
)
_SOFTWARE = (
    "T0",
    "a leak of the vault file alone",
    "a software TPM protects nothing against root: whoever reads the disk has its state too",
)
_UNBOUND = (
    "T1",
    "a stolen or discarded disk, a leaked backup, the file moved to another machine",
    "theft of the whole machine, an evil maid, an interposer on the TPM bus, root while it runs",
)
_SECURE_BOOT = (
    "T2",
    "what T1 stops; booting with other Secure Boot keys or with Secure Boot off",
    "any system signed by the same authority, a changed initrd or root file system where /boot is "
    "unsigned and the disk is not encrypted, root while the machine runs",
)
_MEASURED = (
    "T3",
    "what T2 stops; an evil maid; a changed kernel, initrd or command line",
    "an interposer that resets the TPM and replays the PCRs, key extraction from firmware TPMs "
    "(without a PIN), faults of the TPM's firmware, root while the machine runs",
)


def level(
    *,
    software: bool,
    pcrs: Sequence[int],
    secure_boot: bool,
    uki: bool = False,
    disk_encrypted: bool = False,
    key_file: bool = False,
) -> Level:
    """The level of a vault bound to `pcrs`. PCR 7 says something only where Secure Boot is on.

    `uki`: a signed unified kernel image was booted. `disk_encrypted`: the root file system is on
    LUKS. `key_file`: there is no TPM at all.
    """
    if key_file:
        return Level(
            *_KEY_FILE,
            ("the vault is opened by a key file on the same disk (waiver file-key)",),
            "enable the TPM in the firmware, then: anchorhold keys rotate",
        )
    if software:
        return Level(
            *_SOFTWARE,
            ("the TPM says itself that it is software (waiver software-tpm)",),
            "use a hardware or firmware TPM, then: anchorhold keys recover",
        )
    bound = f"bound to PCRs {', '.join(map(str, pcrs))}" if pcrs else "bound to no PCR"
    facts = (
        "sealed to a TPM",
        bound,
        "Secure Boot is on" if secure_boot else "Secure Boot is off",
        "a signed unified kernel image was booted" if uki else "no unified kernel image",
        "the root file system is encrypted" if disk_encrypted else "the root file system is plain",
    )
    if not (secure_boot and 7 in pcrs):
        steps = [] if secure_boot else ["switch Secure Boot on in the firmware"]
        steps += ["confirm the recovery code, then: anchorhold keys rebind --pcrs 7"]
        return Level(*_UNBOUND, facts, "; ".join(steps))
    if not (uki and disk_encrypted and set(pcrs) >= MEASURED_CHAIN):
        steps = [] if uki else ["boot a signed unified kernel image"]
        steps += [] if disk_encrypted else ["put the root file system on LUKS"]
        steps += ["anchorhold keys rebind --pcrs 7,11,15"]
        return Level(*_SECURE_BOOT, facts, "; ".join(steps))
    return Level(*_MEASURED, facts)
