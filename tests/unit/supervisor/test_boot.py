"""What is told of how the machine was started, from files as the kernel would show them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from supervisor import boot

GUID = "8be4df61-93ca-11d2-aa0d-00e098032b8c"


def variable(root: Path, name: str, content: bytes) -> None:
    folder = root / "sys/firmware/efi/efivars"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}-{GUID}").write_bytes(b"\6\0\0\0" + content)


@pytest.mark.parametrize(("content", "state"), [(b"\1", "on"), (b"\0", "off"), (b"", "off")])
def test_secure_boot_is_what_its_variable_says(tmp_path: Path, content: bytes, state: str) -> None:
    assert boot.secure_boot(tmp_path) == "no EFI variable SecureBoot"
    variable(tmp_path, "SecureBoot", content)
    assert boot.secure_boot(tmp_path) == state


def test_a_unified_kernel_image_leaves_a_variable(tmp_path: Path) -> None:
    variable(tmp_path, "SecureBoot", b"\1")
    assert not boot.unified_kernel(tmp_path)
    variable(tmp_path, "StubInfo", b"s\0")
    assert boot.unified_kernel(tmp_path)


def disk(sys: Path, name: str, number: str, uuid: str = "", below: tuple[str, ...] = ()) -> None:
    """A block device in sysfs: its number, its device mapper uuid, what it lies on."""
    device = sys / "devices" / name
    (device / "slaves").mkdir(parents=True)
    (sys / "dev/block").mkdir(parents=True, exist_ok=True)
    (sys / "dev/block" / number).symlink_to(device)
    for each in below:
        (device / "slaves" / each).symlink_to(sys / "devices" / each)
    if uuid:
        (device / "dm").mkdir()
        (device / "dm/uuid").write_text(f"{uuid}\n")


@pytest.mark.parametrize(
    ("uuid", "below", "verdict"),
    [
        ("", (), False),
        ("CRYPT-LUKS2-0123-root", (), True),
        ("CRYPT-PLAIN-root", (), False),
        ("LVM-abc", ("luks",), True),
        ("LVM-abc", ("luks", "plain"), False),
        ("LVM-abc", ("plain",), False),
    ],
)
def test_only_what_lies_on_luks_alone_is_called_encrypted(
    tmp_path: Path, uuid: str, below: tuple[str, ...], verdict: bool
) -> None:
    there = tmp_path.stat().st_dev
    if not os.major(there):
        pytest.skip("the temporary directory is on a file system without a device of its own")
    disk(tmp_path, "plain", "8:1")
    disk(tmp_path, "luks", "253:9", "CRYPT-LUKS2-0123-pv")
    disk(tmp_path, "root", f"{os.major(there)}:{os.minor(there)}", uuid, below)
    assert boot.encrypted(str(tmp_path), tmp_path) is verdict
