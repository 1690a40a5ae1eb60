"""The cgroups of all workloads, and one workload's leaf among them: limits, freeze, kill.

Source: the kernel's Documentation/admin-guide/cgroup-v2.rst. Python's cgroupspy knows only v1.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from sandbox import delegation
from sandbox.errors import SandboxError
from sandbox.plan import Limits


def find_mount(mountinfo: str = "/proc/self/mountinfo") -> Path:
    """The cgroup2 mount point. Raises SandboxError `cgroup2_missing`."""
    if (mount := delegation.mount_point(mountinfo)) is None:
        raise SandboxError(
            "cgroup2_missing",
            "no cgroup v2 hierarchy is mounted",
            "boot with systemd.unified_cgroup_hierarchy=1, or mount cgroup2 on /sys/fs/cgroup",
        )
    return Path(mount)


def make_room(name: str) -> Path:
    """Where the slice of all workloads belongs; `name` is for a tree that nobody else manages.

    In a delegated subtree all processes in its root, which are ours, move to `main` first: a
    cgroup that holds processes gives no controllers to those below it.
    """
    given = delegation.delegated_subtree()
    if given is None:
        return find_mount() / name
    root = Path(given)
    main = root / "main"
    main.mkdir(exist_ok=True)
    while pids := (root / "cgroup.procs").read_text().split():
        for pid in pids:
            with suppress(ProcessLookupError):
                (main / "cgroup.procs").write_text(pid)
    _enable_controllers(root)
    return root / "workloads"


def _enable_controllers(path: Path) -> frozenset[str]:
    """Let the cgroups below `path` have the controllers that it has itself; their names."""
    found = frozenset((path / "cgroup.controllers").read_text().split())
    if wanted := found & {"memory", "pids", "cpu", "io"}:
        (path / "cgroup.subtree_control").write_text(" ".join(f"+{c}" for c in sorted(wanted)))
    return found


def limit_files(limits: Limits) -> dict[str, str]:
    """The controller files and the values that `limits` asks for."""
    files: dict[str, str] = {}
    if limits.memory is not None:
        files["memory.max"] = str(limits.memory)
        files["memory.swap.max"] = "0"
        files["memory.oom.group"] = "1"
    if limits.pids is not None:
        files["pids.max"] = str(limits.pids)
    if limits.cpu is not None:
        files["cpu.max"] = f"{round(limits.cpu * 100_000)} 100000"
    return files


class Slice:
    """The parent of all workload cgroups. It holds no process of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last = 0
        path.mkdir(exist_ok=True)
        for left in path.glob("cell-*"):  # of a supervisor that was killed
            Leaf(left).destroy()
        self.controllers = _enable_controllers(path)

    def leaf(self) -> Leaf:
        """A new, empty leaf cgroup. It is numbered, not named: it exists before its workload is
        known, and no policy's text ever becomes a path."""
        while True:
            self._last += 1
            path = self.path / f"cell-{self._last}"
            try:
                path.mkdir()
            except FileExistsError:
                continue
            return Leaf(path)

    def remove(self) -> None:
        """Remove the slice and every leaf in it; kills what still runs there."""
        for path in self.path.glob("cell-*"):
            Leaf(path).destroy()
        self.path.rmdir()


class Leaf:
    """One workload's cgroup."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def id(self) -> int:
        """The kernel's cgroup id, as eBPF sees it (the inode number of the directory)."""
        return self.path.stat().st_ino

    def apply(self, limits: Limits, waived: frozenset[str]) -> list[str]:
        """Write the limits and read them back; controllers in `waived` may be absent.

        Returns the limits that are not in force. Raises SandboxError `limit_not_applied`.
        """
        missing = []
        for name, value in limit_files(limits).items():
            target = self.path / name
            if not target.exists():
                if name.split(".")[0] not in waived:
                    raise SandboxError(
                        "limit_not_applied",
                        f"{name}: this host has no cgroup v2 {name.split('.')[0]} controller",
                        "boot with a pure cgroup v2 tree, or waive it by name in the host file",
                    )
                missing.append(name)
                continue
            target.write_text(value)
            if (found := target.read_text().strip()) != value:
                raise SandboxError(
                    "limit_not_applied", f"{name}: wrote {value}, kernel says {found}"
                )
        for name in ("cgroup.max.descendants", "cgroup.max.depth"):
            (self.path / name).write_text("0")
        return missing

    def open(self) -> int:
        """A directory fd for CLONE_INTO_CGROUP."""
        return os.open(self.path, os.O_DIRECTORY | os.O_RDONLY | os.O_CLOEXEC)

    def processes(self) -> list[int]:
        """The pids in the leaf, host view."""
        return [int(pid) for pid in (self.path / "cgroup.procs").read_text().split()]

    @property
    def out_of_memory(self) -> bool:
        """Whether the kernel killed in it because of memory.max; False where that is waived."""
        events = self.path / "memory.events"
        if not events.exists():
            return False
        return dict(line.split() for line in events.read_text().splitlines())["oom_kill"] != "0"

    def _event(self, name: str) -> str:
        for line in (self.path / "cgroup.events").read_text().splitlines():
            key, value = line.split()
            if key == name:
                return value
        raise SandboxError("cgroup_event", f"{self.path}/cgroup.events has no {name}")

    def _wait(self, name: str, value: str, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while self._event(name) != value:
            if time.monotonic() > deadline:
                raise SandboxError("cgroup_timeout", f"{self.path.name}: {name} is not {value}")
            time.sleep(0.001)

    def freeze(self, timeout: float = 2.0) -> None:
        """Stop every task and wait until the kernel says so."""
        (self.path / "cgroup.freeze").write_text("1")
        self._wait("frozen", "1", timeout)

    @property
    def frozen(self) -> bool:
        """Whether every task in it is stopped."""
        return self._event("frozen") == "1"

    def thaw(self) -> None:
        """Undo freeze."""
        (self.path / "cgroup.freeze").write_text("0")

    def kill(self, timeout: float = 5.0) -> None:
        """Kill every task, safe against concurrent forks (cgroup.kill, 5.14); wait until empty."""
        (self.path / "cgroup.kill").write_text("1")
        self._wait("populated", "0", timeout)

    def destroy(self, timeout: float = 5.0) -> None:
        """Kill what runs and remove the leaf, if it is still there. An empty one costs no
        descriptor: it can be removed also where none is left."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                self.path.rmdir()
            except FileNotFoundError:
                return
            except OSError:  # EBUSY: something runs in it, or the last task is still being reaped
                if time.monotonic() > deadline:
                    raise
                self.kill(timeout)
                time.sleep(0.001)
            else:
                return
