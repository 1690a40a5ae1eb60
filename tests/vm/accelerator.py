"""KVM or TCG: /dev/kvm proves nothing, a kernel that boots does.

On some machines `-cpu host` aborts QEMU, on others the guest hangs in its first instructions. So
a kernel is booted without a disk; reaching its complaint about that is the proof. The verdict holds
until this machine boots again.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from pathlib import Path

from tests.vm import places
from tests.vm.programs import need, tied

TRIAL_SECONDS = 8.0
PROOF = "Unable to mount root fs"


def _record() -> Path:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return places.cache() / f"accelerator-{boot}"


def known() -> tuple[str, str] | None:
    """The verdict since this machine booted: the accelerator and why; None before a trial."""
    record = _record()
    if not record.exists():
        return None
    name, _, why = record.read_text().partition(": ")
    return name, why


def choose(kernel: Path) -> str:
    """`kvm` where `kernel` boots with it, else `tcg`."""
    if (verdict := known()) is None:
        why = trial(kernel)
        verdict = ("tcg", why) if why else ("kvm", "a trial boot worked")
        for old in places.cache().glob("accelerator-*"):
            old.unlink(missing_ok=True)
        _record().write_text(": ".join(verdict))
    return verdict[0]


def trial(kernel: Path, device: str = "/dev/kvm", seconds: float = TRIAL_SECONDS) -> str | None:
    """Boot the kernel under KVM; why that does not work, None if it does."""
    if not os.access(device, os.R_OK | os.W_OK):
        return f"no {device}" if not Path(device).exists() else f"no access to {device}"
    with tempfile.TemporaryDirectory() as folder:
        console = Path(folder) / "console"
        command = [
            *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none"),
            *("-no-reboot", "-machine", "q35,accel=kvm", "-cpu", "host", "-smp", "2", "-m", "512"),
            *("-kernel", str(kernel), "-append", "console=ttyS0 panic=-1 root=/dev/none"),
            *("-serial", f"file:{console}"),
        ]
        need(command[0])
        began = time.monotonic()
        process = subprocess.Popen(tied(command), stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
        try:
            _, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            _, errors = process.communicate()
            return f"a trial boot with KVM hung for {seconds:g} s"
        if console.exists() and PROOF in console.read_text(errors="replace"):
            return None
        last = (errors.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        return f"a trial boot with KVM ended after {time.monotonic() - began:.1f} s: {last[:120]}"
