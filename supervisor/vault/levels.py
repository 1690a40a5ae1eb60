"""Threat levels: what the vault stops on this machine, and what it does not. Standard library only.

Never say "TPM protected" alone: every view that mentions protection shows the level and both
sentences. T3 (measured boot chain and disk encryption) is not claimed by this release.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Level:
    """A threat level: its code, what it stops, and what it does not stop."""

    code: str
    stops: str
    does_not_stop: str


SOFTWARE = Level(
    "T0",
    "a leak of the vault file alone",
    "a software TPM protects nothing against root: whoever reads the disk has its state too",
)
UNBOUND = Level(
    "T1",
    "a stolen or discarded disk, a leaked backup, the file moved to another machine",
    "theft of the whole machine, an evil maid, an interposer on the TPM bus, root while it runs",
)
SECURE_BOOT = Level(
    "T2",
    "what T1 stops; booting with other Secure Boot keys or with Secure Boot off",
    "any system signed by the same authority, a changed initrd or root file system where /boot is "
    "unsigned and the disk is not encrypted, root while the machine runs",
)


def level(*, software: bool, pcrs: Sequence[int], secure_boot: bool) -> Level:
    """The level of a vault bound to `pcrs`. PCR 7 says something only where Secure Boot is on."""
    if software:
        return SOFTWARE
    return SECURE_BOOT if secure_boot and 7 in pcrs else UNBOUND
