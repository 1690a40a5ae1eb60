"""Unified kernel images: kernel, initrd and command line in one file that firmware boots.

Debian 12's systemd has no ukify, so objcopy puts the sections behind those of the stub. Signed with
the "snakeoil" key of Debian's ovmf package, which its test variables have enrolled.
"""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

from tests.vm.image import Image
from tests.vm.machine import COMMAND_LINE
from tests.vm.programs import need

STUB = Path("/usr/lib/systemd/boot/efi/linuxx64.efi.stub")
KEYS = Path("/usr/share/ovmf")


def _layout(stub: bytes) -> tuple[int, int, int]:
    """A PE file's image base, section alignment and the end of its last section (in memory)."""
    header = struct.unpack_from("<I", stub, 0x3C)[0]
    count, optional = (struct.unpack_from("<H", stub, header + at)[0] for at in (6, 20))
    base = struct.unpack_from("<Q", stub, header + 24 + 24)[0]
    alignment = struct.unpack_from("<I", stub, header + 24 + 32)[0]
    table = header + 24 + optional
    sizes = (struct.unpack_from("<II", stub, table + 40 * number + 8) for number in range(count))
    return base, alignment, max(size + start for size, start in sizes)


def build(image: Image, target: Path, command_line: str = COMMAND_LINE) -> Path:
    """Write an unsigned unified kernel image of the guest's kernel."""
    line = target.with_suffix(".cmdline")
    line.write_text(command_line + "\0")
    base, alignment, end = _layout(STUB.read_bytes())
    sections = {
        ".osrel": image.os_release,
        ".cmdline": line,
        ".initrd": image.initrd,
        # Last: the kernel unpacks itself over what follows it.
        ".linux": image.kernel,
    }
    words = []
    for name, content in sections.items():
        start = -(-end // alignment) * alignment
        words += ["--add-section", f"{name}={content}"]
        words += ["--change-section-vma", f"{name}={base + start:#x}"]
        end = start + content.stat().st_size
    subprocess.run([need("objcopy"), *words, str(STUB), str(target)], check=True)
    return target


def sign(unsigned: Path, target: Path) -> Path:
    """Sign an image for the firmware's test key."""
    key = target.with_suffix(".key")
    secret = KEYS / "PkKek-1-snakeoil.key"
    subprocess.run(
        [need("openssl"), "rsa", "-in", str(secret), "-passin", "pass:snakeoil", "-out", str(key)],
        check=True,
        capture_output=True,
    )
    certificate = KEYS / "PkKek-1-snakeoil.pem"
    words = ["--key", str(key), "--cert", str(certificate), "--output", str(target)]
    subprocess.run([need("sbsign"), *words, str(unsigned)], check=True, capture_output=True)
    return target
