"""The host as it was: what an attempt could have changed without saying so, compared afterwards."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.attacks.scene import LIBRARY, Scene

_SYSCTLS = (
    "kernel/core_pattern", "kernel/modprobe", "kernel/hostname", "kernel/domainname",
    "kernel/sysrq", "kernel/randomize_va_space", "vm/overcommit_memory",
    "vm/memfd_noexec", "user/max_user_namespaces", "net/ipv4/ip_forward",
)  # fmt: skip
_SETTLE = 3.0  # seconds; whoever else uses this machine may mount something meanwhile


def _file(path: Path) -> object:
    status = path.lstat()
    seen = (status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, status.st_size)
    names = os.listxattr(path, follow_symlinks=False)
    attributes = tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in names)
    content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
    return seen, attributes, content


def _lines(path: str, *columns: int) -> object:
    lines = Path(path).read_text().splitlines()
    return sorted(tuple(line.split()[c] for c in columns) for line in lines if line.split())


class Canary:
    """Snapshots of one scene's host."""

    def __init__(self, scene: Scene) -> None:
        self._folders = [scene.place.programs, scene.place.folder]
        house = scene.house
        self._pids = {
            "sentinel": scene.others.sentinel.pid,
            "supervisor": house.pid,
            "zygote": house.child("zygote"),
        }

    def snapshot(self) -> dict[str, object]:
        """Everything by its name."""
        seen: dict[str, object] = {}
        for folder in self._folders:
            for path in sorted(folder.iterdir()):
                if not path.is_dir():
                    seen[f"file {path.name}"] = _file(path)
        seen["file of a library"] = _file(Path(LIBRARY).resolve())
        for name in _SYSCTLS:
            path = Path("/proc/sys") / name
            if path.exists():
                seen[f"sysctl {name}"] = path.read_text()
        # Not what is mounted below /tmp: builders of images do that.
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        fields = [tuple(line.split()[4:6]) for line in mounts]
        seen["mounts"] = sorted(pair for pair in fields if not pair[0].startswith("/tmp/"))
        seen["links"] = _lines("/proc/net/dev", 0)
        seen["routes"] = _lines("/proc/net/route", 0, 1, 2)
        return seen

    def alive(self) -> dict[str, object]:
        """Processes that must go on, each with who traces it and whether it is stopped."""
        found: dict[str, object] = {}
        for name, pid in self._pids.items():
            status = Path(f"/proc/{pid}/status").read_text()
            state = psutil.Process(pid).status()
            tracer = status.partition("TracerPid:")[2].split()[0]
            found[name] = (pid, tracer, state in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE))
        return found

    def changed(
        self, before: dict[str, object], take: Callable[[], dict[str, object]]
    ) -> list[str]:
        """What differs for longer than a moment."""
        end = time.monotonic() + _SETTLE
        while True:
            after = take()
            names = [n for n in {*before, *after} if before.get(n) != after.get(n)]
            if not names or time.monotonic() > end:
                return [f"{n}: {before.get(n)} -> {after.get(n)}" for n in sorted(names)]
            time.sleep(0.1)


def planted(volume: Path) -> list[str]:
    """Set-id bits and device nodes below a workload's volume, as the host sees them."""
    found = []
    for path in volume.rglob("*"):
        mode = path.lstat().st_mode
        special = stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
        if path.name != "setuid" and (special or mode & (stat.S_ISUID | stat.S_ISGID)):
            found.append(f"{path.name}: mode {mode:o}")
    return found
