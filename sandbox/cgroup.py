"""The cgroups of all workloads, and one workload's leaf among them: freeze, kill, remove.

Source: the kernel's Documentation/admin-guide/cgroup-v2.rst. Python's cgroupspy knows only v1.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Collection
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from sandbox import cgroup_events, delegation, limits, usage
from sandbox.errors import SandboxError
from sandbox.plan import Limits

# Seconds after which the kill is repeated: a process may be cloned into the cgroup after the first.
_AGAIN = 0.1


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
    if wanted := found & {"memory", "pids", "cpu", "io", "cpuset"}:
        (path / "cgroup.subtree_control").write_text(" ".join(f"+{c}" for c in sorted(wanted)))
    return found


class Slice:
    """The parent of all workload cgroups. It holds no process of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last = 0
        path.mkdir(exist_ok=True)
        self._clear()  # of a supervisor that was killed
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
        self._clear()
        self.path.rmdir()

    def _clear(self) -> None:
        leaves = [Leaf(path) for path in self.path.glob("cell-*")]
        for leaf in leaves:  # all at once, and only then wait for each
            leaf.kill()
        for leaf in leaves:
            leaf.destroy()


class Leaf:
    """One workload's cgroup.

    `kill` and `freeze` ask the kernel and return at once; `empty` and `still` wait for it to be
    done. `destroy` and `remove` do both and take the cgroup away: the one blocks, the other is for
    the event loop. Waits raise SandboxError `cgroup_timeout`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def id(self) -> int:
        """The kernel's cgroup id, as eBPF sees it (the inode number of the directory)."""
        return self.path.stat().st_ino

    def apply(self, wanted: Limits, waived: Collection[str]) -> list[str]:
        """Write the limits and read them back; controllers in `waived` may be absent.

        Returns the limits that are not in force. Raises SandboxError `limit_not_applied`.
        """
        return limits.apply(self.path, wanted, waived)

    def open(self) -> int:
        """A directory fd for CLONE_INTO_CGROUP."""
        return os.open(self.path, os.O_DIRECTORY | os.O_RDONLY | os.O_CLOEXEC)

    def processes(self) -> list[int]:
        """The pids in the leaf, host view."""
        return [int(pid) for pid in (self.path / "cgroup.procs").read_text().split()]

    @property
    def out_of_memory(self) -> bool:
        """Whether the kernel killed in it because of memory.max; False where that is waived."""
        return bool(usage.events(self.path, "memory.events").get("oom_kill"))

    def freeze(self) -> None:
        """Stop every task; `still` waits until the kernel says that it did."""
        self._ask("cgroup.freeze", "1")

    def thaw(self) -> None:
        """Undo freeze."""
        self._ask("cgroup.freeze", "0")

    @property
    def frozen(self) -> bool:
        """Whether every task in it is stopped."""
        return cgroup_events.says(self.path, "frozen", "1")

    async def still(self, timeout: float = 2.0) -> None:
        """Wait until every task in it is stopped."""
        await cgroup_events.reached(self.path, "frozen", "1", timeout)

    def kill(self) -> None:
        """Kill every task, safe against concurrent forks (cgroup.kill, 5.14)."""
        self._ask("cgroup.kill", "1")

    async def empty(self, timeout: float = 5.0) -> None:
        """Wait until no task is left."""
        await cgroup_events.reached(self.path, "populated", "0", timeout)

    def destroy(self, timeout: float = 5.0) -> None:
        """Kill what runs and remove the leaf, if it is still there. An empty one costs no
        descriptor: it can be removed also where none is left."""
        deadline = time.monotonic() + timeout
        while not self._taken_away(deadline):
            self.kill()
            with suppress(SandboxError):
                cgroup_events.wait(self.path, "populated", "0", _AGAIN)

    async def remove(self, timeout: float = 5.0) -> None:
        """`destroy` without holding up the event loop."""
        deadline = time.monotonic() + timeout
        while not self._taken_away(deadline):
            self.kill()
            with suppress(SandboxError):
                await self.empty(_AGAIN)

    def _taken_away(self, deadline: float) -> bool:
        try:
            self.path.rmdir()
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            if time.monotonic() > deadline:
                message = f"{self.path.name} could not be emptied"
                raise SandboxError("cgroup_timeout", message) from error
            return False
        return True

    def _ask(self, file: str, value: str) -> None:
        try:
            (self.path / file).write_text(value)
        except OSError as error:  # a cgroup that was removed has nothing in it to stop
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                raise
