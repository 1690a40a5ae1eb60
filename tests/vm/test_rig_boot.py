"""Measured boots: firmware, unified kernel images, Secure Boot, and a TPM that remembers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.vm.failures import MachineFailed
from tests.vm.machine import COMMAND_LINE, Machine

ZEROS = "0x" + "0" * 64
PCR = "pcr:sha256:11"
# A secret that the TPM gives out only while PCR 11 (what the stub measured) is as it is now.
SEAL = """
tpm2_createprimary -Q -C o -c primary
tpm2_startauthsession -S session && tpm2_policypcr -Q -S session -l sha256:11 -L policy
tpm2_flushcontext session
printf secret | tpm2_create -Q -C primary -i - -L policy -u public -r private
sync
"""
UNSEAL = f"""
tpm2_createprimary -Q -C o -c primary && tpm2_load -Q -C primary -u public -r private -c sealed
tpm2_unseal -c sealed -p {PCR}
"""


def pcr(machine: Machine, number: int) -> str:
    """One SHA-256 register."""
    return machine.run(f"tpm2_pcrread sha256:{number} | tail -n 1").stdout.split()[-1]


def test_a_direct_boot_measures_nothing_and_may_have_another_command_line(
    cold: Callable[..., Machine],
) -> None:
    machine = cold("plain", command_line=COMMAND_LINE + " rig.extra")
    assert "rig.extra" in machine.run("cat /proc/cmdline").stdout
    assert pcr(machine, 11) == ZEROS


def test_a_changed_command_line_changes_what_the_tpm_gives_out(
    cold: Callable[..., Machine], unified: Callable[..., Path]
) -> None:
    image = unified(signed=False)
    machine = cold("plain", firmware="ovmf", kernel=image)
    assert {pcr(machine, 7), pcr(machine, 11)}.isdisjoint({ZEROS})
    machine.run(SEAL)
    machine.power_cut()
    machine.boot()
    assert machine.run(UNSEAL).stdout == "secret"
    machine.power_off()
    machine.boot(kernel=unified(COMMAND_LINE + " rig.extra", signed=False))
    assert "rig.extra" in machine.run("cat /proc/cmdline").stdout
    refused = machine.run(UNSEAL, check=False)
    assert refused.exit != 0
    assert "secret" not in refused.stdout
    assert "policy check failed" in refused.stderr


def test_secure_boot_takes_a_signed_image_and_refuses_an_unsigned_one(
    cold: Callable[..., Machine], unified: Callable[..., Path]
) -> None:
    machine = cold("plain", firmware="secure-boot", kernel=unified())
    state = machine.get("/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c")
    assert state[-1] == 1
    assert {pcr(machine, 7), pcr(machine, 11)}.isdisjoint({ZEROS})
    machine.power_off()
    with pytest.raises(MachineFailed, match="did not come up"):
        machine.boot(seconds=60, kernel=unified(signed=False))
    since = machine.console().rpartition("Power down")[2]
    assert "Linux version" not in since
    # The same firmware, disk and kernel; only the signature is missing. It tries the network next.
    assert "Start PXE" in since, since
