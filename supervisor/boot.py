"""What can be told of how this machine was started: only for the threat level that is shown.

The unlock helper cannot see these facts. None of them is proof against root, who could forge them;
the TPM's policy is what decides.
"""

from __future__ import annotations

from pathlib import Path

from sandbox.errors import SandboxError
from sandbox.limits import block_devices

# What a PCR measures. TCG PC Client Platform Firmware Profile 1.06, 3.3.4, for 0 to 7; the Linux
# TPM PCR registry of the UAPI group for the others.
PCRS = {
    0: "the firmware itself",
    1: "the firmware's settings and the hardware found",
    2: "programs of plug-in cards",
    3: "settings of plug-in cards",
    4: "the boot loader that was started",
    5: "the boot loader's settings and the partition table",
    6: "what the maker of the machine chose",
    7: "Secure Boot: whether it is on, its keys (PK, KEK, db, dbx) and which of them was used",
    8: "commands and kernel command line, as GRUB saw them",
    9: "files that the boot loader or the kernel read, such as the initrd",
    10: "files measured by the kernel (IMA)",
    11: "the unified kernel image: kernel, initrd, command line; and the phase of the start",
    12: "command line and credentials added to the unified kernel image",
    13: "system extensions added to the unified kernel image",
    14: "shim's own keys (MOK)",
    15: "file systems and the identity of the machine",
    16: "nothing; it is for trying things out",
    23: "what programs of the owner measured",
}  # fmt: skip


def secure_boot(root: Path = Path("/")) -> str:
    """ "on", "off", or why it cannot be told. UEFI 2.10, 3.3: the variable SecureBoot."""
    variable = next((root / "sys/firmware/efi/efivars").glob("SecureBoot-*"), None)
    if variable is None:
        return "no EFI variable SecureBoot"
    try:
        # efivarfs: four bytes of attributes, then the value.
        return "on" if variable.read_bytes()[4:5] == b"\1" else "off"
    except OSError as error:
        return f"unreadable: {error.strerror}"


def unified_kernel(root: Path = Path("/")) -> bool:
    """Whether systemd's stub started the kernel: it leaves StubInfo behind. systemd-stub(7)"""
    return any((root / "sys/firmware/efi/efivars").glob("StubInfo-*"))


def encrypted(path: str, sys: Path = Path("/sys")) -> bool:
    """Whether every device below the file system of `path` is, or lies on, an open LUKS volume.

    False, too, where that cannot be told.
    """
    try:
        devices = block_devices(path, sys)
    except (SandboxError, OSError):
        return False
    return all(_on_luks((sys / "dev/block" / device).resolve()) for device in devices)


def _on_luks(device: Path) -> bool:
    """Device mapper names its kind in the uuid; a volume of LVM lies on its slaves."""
    try:
        if (device / "dm/uuid").read_text().startswith("CRYPT-LUKS"):
            return True
    except OSError:
        pass
    try:
        below = [slave.resolve() for slave in (device / "slaves").iterdir()]
    except OSError:
        return False
    return bool(below) and all(map(_on_luks, below))
