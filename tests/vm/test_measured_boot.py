"""A vault bound to how the machine booted: UEFI, Secure Boot, and one signed file, the UKI.

PCR 7 holds whose signatures the firmware accepts, PCR 11 what was in the UKI. The TPM is swtpm, so
nothing here says anything about a chip; that the vault itself says so is part of what is tested.
One machine is installed as a user would do it, and carried through all of the boots in their order.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.vm import firmware
from tests.vm.failures import MachineFailed
from tests.vm.machine import COMMAND_LINE, Machine
from tests.vm.snapshot import Snapshots

# A busy machine takes four times as long as a quiet one.
BOOT, START = 400, 300
GATEWAY = "http://127.0.0.1:8443"
MAIL = Path(__file__).resolve().parents[2] / "supervisor/demo/mail/ordinary.eml"
APPROVED, CHANGED = COMMAND_LINE, COMMAND_LINE + " audit=0"


@pytest.fixture
def kernels(snapshots: Snapshots, tmp_path: Path) -> Callable[[str], Path]:
    """Signed kernel images by their command line."""

    def make(command_line: str) -> Path:
        unsigned = firmware.unified_image(snapshots.image, command_line, tmp_path / "unsigned.efi")
        name = f"{command_line.replace(' ', '_').replace('/', '_')}.efi"
        return firmware.signed(unsigned, tmp_path / name)

    return make


def status(machine: Machine) -> dict[str, Any]:
    """Of the service, once it is up."""
    machine.wait("systemctl is-active --quiet anchorhold", START)
    found: dict[str, Any] = json.loads(machine.run("anchorhold status --json", timeout=120).stdout)
    return found


def install(machine: Machine, packages: list[Path]) -> None:
    """The packages, the host file with both PCRs, and only then the service with its vault."""
    for package in packages:
        machine.put(f"/root/packages/{package.name}", package)
    machine.run(
        "cd /root/packages && DEBIAN_FRONTEND=noninteractive apt-get install --yes ./*.deb",
        timeout=600,
    )
    edit = "s/^pcrs = .*/pcrs = [7, 11]/"
    machine.run(f"sed -i '{edit}' /etc/anchorhold/host.toml && test ! -e /var/lib/anchorhold/*")
    machine.run("systemctl enable --now anchorhold", timeout=START)


def pcrs(machine: Machine) -> dict[int, str]:
    """The SHA-256 values of PCR 7 and 11."""
    machine.run("tpm2_pcrread -T device:/dev/tpmrm0 -o /tmp/pcrs sha256:7,11", timeout=120)
    data = machine.get("/tmp/pcrs").hex()
    assert len(data) == 128
    return {7: data[:64], 11: data[64:]}


def ask(machine: Machine, token: str) -> tuple[int, str]:
    """One message through the gateway: HTTP status and the answer."""
    done = machine.run(
        f"curl -s -w '\\n%{{http_code}}' --max-time 200 -H 'Authorization: Bearer {token}'"
        f" -H 'Content-Type: application/json' --data-binary @- {GATEWAY}/rest/messages",
        stdin=json.dumps({"workflow": "email_management", "content": MAIL.read_text()}),
        timeout=240,
    )
    body, _, code = done.stdout.rpartition("\n")
    return int(code), body


def test_vault_opens_in_the_approved_boot_state_and_in_no_other(
    cold: Callable[..., Machine], kernels: Callable[[str], Path], snapshots: Snapshots
) -> None:
    approved, changed = kernels(APPROVED), kernels(CHANGED)
    machine = cold("plain", firmware="secure-boot", kernel=approved, boot=False)
    machine.boot(BOOT)
    install(machine, snapshots.packages())

    # Bound to both, in use, and no claim that a software TPM were more than one.
    values = pcrs(machine)
    assert not {"00" * 32, "ff" * 32} & set(values.values())
    code = machine.run("anchorhold keys recovery-code", timeout=120).stdout
    machine.run("anchorhold keys confirm-recovery", stdin=code, timeout=120)
    found = status(machine)
    assert (found["state"], found["degraded"]) == ("running", [])
    assert found["tpm"]["level"] == "T0" and found["tpm"]["pcrs"] == [7, 11]
    assert "software TPM" in found["tpm"]["note"]
    assert "T0, bound to PCR 7, 11" in machine.run("anchorhold status", timeout=120).stdout
    doctor = machine.run("anchorhold doctor", timeout=240).stdout
    (line,) = (line for line in doctor.splitlines() if "secure-boot" in line)
    assert " on" in line, doctor
    machine.run("anchorhold keys add practice", stdin=secrets.token_hex(20), timeout=120)
    token = machine.run(
        "anchorhold token issue --client laptop --workload adapter.rest --lifetime 12h", timeout=120
    ).stdout.strip()
    status_code, body = ask(machine, token)
    assert status_code == 200, body

    # Positive control of all that follows: the same state again, and nobody at the keyboard.
    machine.reboot(BOOT)
    assert pcrs(machine) == values
    assert status(machine)["degraded"] == []
    assert machine.run("anchorhold keys list", timeout=120).stdout == "practice\n"
    status_code, body = ask(machine, token)
    assert status_code == 200, body

    # Another command line, signed as well: the firmware boots it, the vault stays shut.
    machine.power_off()
    machine.boot(BOOT, kernel=changed)
    assert "audit=0" in machine.run("cat /proc/cmdline").stdout
    now = pcrs(machine)
    assert now[7] == values[7] and now[11] != values[11]
    found = status(machine)
    (gap,) = found["degraded"]
    assert gap["guarantee"] == "vault" and "PCR_CHANGED" in gap["why"]
    assert f"PCR 11: {values[11]} -> {now[11]}" in gap["why"] and "PCR 7" not in gap["why"]
    said = machine.run("anchorhold status", timeout=120).stdout
    assert "PCR 11" in said and f"to do: {gap['fix']}" in said and gap["fix"]
    refused = machine.run("anchorhold keys list", timeout=120, check=False)
    assert refused.exit == 20 and "PCR_CHANGED" in refused.stderr
    status_code, body = ask(machine, token)
    assert status_code == 503 and json.loads(body)["error"]["code"] == "vault_locked"
    # The recovery code opens it once, for those who know why it booted so.
    by_code = "anchorhold keys unlock --recovery --accept-stale"
    machine.run(by_code, stdin=code, timeout=120)
    status_code, body = ask(machine, token)
    assert status_code == 200, body
    machine.run("systemctl is-active --quiet anchorhold")

    # Nothing was lost: the old kernel image opens it again.
    machine.power_off()
    machine.boot(BOOT, kernel=approved)
    assert pcrs(machine) == values
    assert status(machine)["degraded"] == []
    assert machine.run("anchorhold keys list", timeout=120).stdout == "practice\n"
    status_code, body = ask(machine, token)
    assert status_code == 200, body


def test_firmware_refuses_an_unsigned_kernel(
    cold: Callable[..., Machine], snapshots: Snapshots, tmp_path: Path
) -> None:
    unsigned = firmware.unified_image(snapshots.image, APPROVED, tmp_path / "unsigned.efi")
    machine = cold("plain", firmware="secure-boot", kernel=unsigned, boot=False)
    with pytest.raises(MachineFailed, match="did not come up"):
        machine.boot(seconds=90)
    assert "Linux version" not in machine.console() and "systemd" not in machine.console()
    machine.stop()
    # The same file, signed, on the same machine: it was the signature.
    machine.boot(BOOT, kernel=firmware.signed(unsigned, tmp_path / "signed.efi"))
    variable = machine.run("od -An -tx1 /sys/firmware/efi/efivars/SecureBoot-*").stdout
    assert variable.split()[-1] == "01"
