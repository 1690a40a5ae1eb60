"""What a machine with UEFI firmware boots: one file with kernel, initrd and command line (a UKI).

systemd's stub measures each part into PCR 11 before it starts the kernel. Secure Boot accepts it
when it is signed with the key that Debian's ovmf package ships, enrolled, for tests.
"""

from __future__ import annotations

import struct
import subprocess
import tempfile
from pathlib import Path

from tests.vm.failures import RigFailure
from tests.vm.image import Image
from tests.vm.programs import need

STUB = Path("/usr/lib/systemd/boot/efi/linuxx64.efi.stub")
SNAKEOIL = Path("/usr/share/ovmf")


def _there(path: Path, package: str) -> Path:
    if not path.exists():
        raise RigFailure(f"{path} is missing (Debian package {package}).")
    return path


def _layout(stub: bytes) -> tuple[int, int, int]:
    """Of a PE32+ file: image base, section alignment, end of the last section."""
    header = struct.unpack_from("<I", stub, 0x3C)[0]
    sections, optional = (struct.unpack_from("<H", stub, header + at)[0] for at in (6, 20))
    base = struct.unpack_from("<Q", stub, header + 24 + 24)[0]
    alignment = struct.unpack_from("<I", stub, header + 24 + 32)[0]
    end = 0
    for number in range(sections):
        size, address = struct.unpack_from("<II", stub, header + 24 + optional + 40 * number + 8)
        end = max(end, address + size)
    return base, alignment, end


def unified_image(image: Image, command_line: str, target: Path) -> Path:
    """An unsigned UKI of the image's kernel and initrd."""
    stub = _there(STUB, "systemd-boot-efi")
    base, alignment, end = _layout(stub.read_bytes()[:4096])
    with tempfile.TemporaryDirectory() as folder:
        words = Path(folder) / "command-line"
        words.write_bytes(command_line.encode() + b"\0")
        parts = {
            "osrel": image.os_release,
            "cmdline": words,
            "initrd": image.initrd,
            "linux": image.kernel,
        }
        options = []
        for name, path in parts.items():
            end = -(-end // alignment) * alignment
            options += ["--add-section", f".{name}={path}"]
            options += ["--change-section-vma", f".{name}={base + end:#x}"]
            end += path.stat().st_size
        subprocess.run(
            [need("objcopy"), *options, str(stub), str(target)], check=True, capture_output=True
        )
    return target


def signed(unsigned: Path, target: Path) -> Path:
    """The same image with the test key's signature."""
    certificate = _there(SNAKEOIL / "PkKek-1-snakeoil.pem", "ovmf")
    with tempfile.TemporaryDirectory() as folder:
        key = Path(folder) / "key"
        subprocess.run(
            [
                *(need("openssl"), "rsa", "-passin", "pass:snakeoil"),
                *("-in", str(_there(SNAKEOIL / "PkKek-1-snakeoil.key", "ovmf")), "-out", str(key)),
            ],
            check=True,
            capture_output=True,
        )
        subprocess.run(
            [
                *(need("sbsign"), "--key", str(key), "--cert", str(certificate)),
                *("--output", str(target), str(unsigned)),
            ],
            check=True,
            capture_output=True,
        )
    return target
