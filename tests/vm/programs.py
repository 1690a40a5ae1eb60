"""Programs of this machine that the tier starts: found or asked for, and tied to our life."""

from __future__ import annotations

import shutil

from tests.vm.failures import RigFailure

PACKAGES = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "swtpm": "swtpm",
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "sbsign": "sbsigntool",
    "objcopy": "binutils",
    "openssl": "openssl",
}


def need(program: str) -> str:
    """The program's path, or a failure that names its package."""
    if found := shutil.which(program):
        return found
    package = PACKAGES.get(program, "util-linux")
    raise RigFailure(
        f"{program} is not installed (Debian package {package}).\n"
        "  Run as root: make vm-test, or packaging/setup.sh vm"
    )


def tied(command: list[str]) -> list[str]:
    """The command so that the kernel kills it when the thread that starts it ends, however."""
    return [need("setpriv"), "--pdeathsig", "KILL", need(command[0]), *command[1:]]
