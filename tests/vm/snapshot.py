"""Running machines kept on disk: memory, TPM and disk, restored in well under a second.

A snapshot is a folder beside the image: `state` (what QEMU's migration writes), `disk.qcow2` over
the layer below, `tpm/`. It is tied to QEMU's build, the accelerator and this folder's code, so
these are in its name. Made aside and renamed, never changed.

    plain       Debian, booted, idle
    installed   the packages of dist/SUITE installed on it as a user would, the service enabled
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tests.vm import accelerator, places
from tests.vm.failures import RigFailure
from tests.vm.image import Image
from tests.vm.machine import COMMAND_LINE, Machine, Start, overlay
from tests.vm.programs import need

ROOT = Path(__file__).resolve().parents[2]
SNAPSHOT_GIB = 1.5


class Snapshots:
    """The snapshots of one image, made when first asked for, held while this object lives."""

    def __init__(self, image: Image) -> None:
        self.image = image
        self.accelerator = accelerator.choose(image.kernel)
        self.start = Start(image.kernel, image.initrd, COMMAND_LINE)
        self._folder = image.path / "snapshots"
        self._folder.mkdir(exist_ok=True)
        self._ready: dict[str, Path] = {}
        self._held = [places.hold(image.path)]

    def packages(self) -> list[Path]:
        """The built packages to install. Raises RigFailure if there are none."""
        folder = ROOT / "dist" / self.image.suite
        found = sorted(folder.glob("*.deb"))
        if not found:
            raise RigFailure(
                f"there is no package in {folder.relative_to(ROOT)}.\n"
                f"  Run: make deb SUITE={self.image.suite}"
            )
        return found

    def _name(self, name: str) -> str:
        digest = hashlib.sha256(self.accelerator.encode())
        for program in ("qemu-system-x86_64", "swtpm"):
            digest.update(subprocess.run([need(program), "--version"], capture_output=True).stdout)
        for source in ("machine.py", "snapshot.py"):
            digest.update((Path(__file__).parent / source).read_bytes())
        if name == "installed":
            for package in self.packages():
                digest.update(package.name.encode() + package.read_bytes())
        return f"{name}-{digest.hexdigest()[:12]}"

    def path(self, name: str) -> Path:
        """The folder of a snapshot, which is made if it is not there."""
        if name not in self._ready:
            makers = {"plain": self._make_plain, "installed": self._make_installed}
            if name not in makers:
                raise RigFailure(f"no snapshot is called {name!r}; there are: {', '.join(makers)}")
            if name == "installed":
                self.path("plain")
            target = self._folder / self._name(name)
            with places.alone(self._folder / "lock"):
                if not target.exists():
                    places.need_space(self._folder, SNAPSHOT_GIB, "a snapshot")
                    began = time.monotonic()
                    with places.working_folder(self._folder / "new") as folder:
                        self._save(makers[name](folder), folder / "snapshot", target)
                    print(
                        f"vm: snapshot {name} made in {time.monotonic() - began:.0f} s",
                        file=sys.stderr,
                    )
                self._held.append(places.hold(target))
                places.remove_unused(self._folder, f"{name}-*")
            self._ready[name] = target
        return self._ready[name]

    def restore(self, name: str, folder: Path, serial: int | None = None) -> Machine:
        """A machine in `folder` that goes on from the snapshot; running, unless this raises."""
        machine = self.asleep(name, folder)
        try:
            machine.resume(self.path(name) / "state", serial)
        except BaseException:
            machine.stop()
            raise
        return machine

    def asleep(self, name: str, folder: Path) -> Machine:
        """A machine in `folder` with the snapshot's disk and TPM, off."""
        base = self.path(name)
        overlay(base / "disk.qcow2", "qcow2", folder / "disk.qcow2")
        shutil.copytree(base / "tpm", folder / "tpm")
        return Machine(folder, folder / "disk.qcow2", self.start, self.accelerator)

    def _make_plain(self, folder: Path) -> Machine:
        disk = overlay(self.image.disk, "raw", folder / "disk.qcow2")
        machine = Machine(folder, disk, self.start, self.accelerator)
        try:
            machine.boot()
            # Not --wait alone: a failed unit is a fault of the image and would spoil every test.
            machine.run("systemctl is-system-running --wait", timeout=180)
        except BaseException:
            machine.stop()
            raise
        return machine

    def _make_installed(self, folder: Path) -> Machine:
        machine = self.restore("plain", folder)
        try:
            for package in self.packages():
                machine.put(f"/root/packages/{package.name}", package)
            install = "apt-get install --yes ./*.deb"
            machine.run(
                f"cd /root/packages && DEBIAN_FRONTEND=noninteractive {install}", timeout=300
            )
            machine.run("systemctl enable --now anchorhold", timeout=300)
            machine.run("rm -r /root/packages && systemctl is-active anchorhold")
        except BaseException:
            machine.stop()
            raise
        return machine

    def _save(self, machine: Machine, new: Path, target: Path) -> None:
        try:
            new.mkdir()
            machine.save(new / "state")
        finally:
            machine.stop()
        shutil.move(machine.disk, new / "disk.qcow2")
        shutil.move(machine.folder / "tpm", new / "tpm")
        for file in (new / "state", new / "disk.qcow2"):
            file.chmod(0o444)
        new.rename(target)

    def close(self) -> None:
        """Let go of what others may want to remove."""
        while self._held:
            os.close(self._held.pop())
