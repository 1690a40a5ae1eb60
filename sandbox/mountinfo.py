"""A workload's mount table, read from outside and compared with its plan.

Sources: proc(5) for the fields of mountinfo, tmpfs(5) and the kernel's proc.rst for the options.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sandbox.plan import Bind, Device, SandboxPlan, Tmpfs

Stat = Callable[[str], os.stat_result]


@dataclass(frozen=True, slots=True)
class Entry:
    """One line: where, the mount's own flags, whether it propagates, the file system's options."""

    target: str
    flags: frozenset[str]
    propagates: bool
    options: frozenset[str]


def parse(text: str) -> list[Entry]:
    """The lines of a mountinfo file, in its order."""
    return [_entry(line) for line in text.splitlines()]


def _entry(line: str) -> Entry:
    fields = line.split(" ")
    dash = fields.index("-")
    target = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), fields[4])
    return Entry(
        target,
        frozenset(fields[5].split(",")),
        any(":" in field for field in fields[6:dash]),
        frozenset(fields[dash + 3].split(",")),
    )


def differences(plan: SandboxPlan, entries: list[Entry], inside: Stat) -> list[str]:
    """What is not as planned, each with its target; an empty list if all is.

    Stricter flags than planned are no difference. `inside` is lstat in the workload's root.
    """
    found = {entry.target: entry for entry in entries}
    wrong = [f"{entry.target} propagates" for entry in entries if entry.propagates]
    if len(found) != len(entries):
        wrong.append("two mounts on one target")
    expected = dict(_expected(plan, inside))
    for target, (flags, options) in expected.items():
        entry = found.get(target)
        if entry is None:
            wrong.append(f"{target} is missing")
        elif lacking := [*(flags - entry.flags), *(options - entry.options)]:
            wrong.append(f"{target} lacks {','.join(sorted(lacking))}")
    wrong += [
        f"{entry.target} is not planned"
        for entry in entries
        if entry.target not in expected and not _inside_bind(plan, entry)
    ]
    for mount in plan.mounts:
        if isinstance(mount, Device):
            status = inside(mount.path)
            number = os.makedev(mount.major, mount.minor)
            if not stat.S_ISCHR(status.st_mode) or status.st_rdev != number:
                wrong.append(f"{mount.path} is not {mount.major}:{mount.minor}")
    return wrong


def swapped(plan: SandboxPlan, inside: Stat) -> list[str]:
    """Targets that are not what stands at their source now: it was replaced on the way.

    Only before the release; later the host may well have replaced a file.
    """
    return [
        f"{mount.target} is not {mount.source} any more"
        for mount in plan.mounts
        if isinstance(mount, Bind) and not os.path.samestat(inside(mount.target), _at(mount.source))
    ]


def _at(source: str) -> os.stat_result:
    try:
        return os.lstat(source)
    except FileNotFoundError:
        return os.stat_result((0,) * 10)


def _expected(plan: SandboxPlan, inside: Stat) -> Iterator[tuple[str, tuple[set[str], set[str]]]]:
    """(target, (flags, file system options)) of every mount."""
    bare = {"nosuid", "nodev", "noexec"}
    yield "/", ({"ro", *bare}, set())
    yield "/proc", (bare, {"hidepid=ptraceable", "subset=pid"})
    for mount in plan.mounts:
        if isinstance(mount, Device):
            yield mount.path, ({"ro", "nosuid", "noexec"}, set())
        elif isinstance(mount, Tmpfs):
            # The kernel counts in pages and prints in KiB.
            size = f"size={-(-mount.size // 4096) * 4}k"
            yield mount.target, (bare, {size, f"nr_inodes={mount.inodes}"})
        elif isinstance(mount, Bind):
            yield mount.target, (_bind_flags(mount, inside), set())


def _bind_flags(mount: Bind, inside: Stat) -> set[str]:
    flags = {"nosuid", "nodev"}
    flags |= set() if "exec" in mount.access else {"noexec"}
    if "write" not in mount.access:
        flags.add("ro")
    elif stat.S_ISDIR(inside(mount.target).st_mode):
        flags.add("nosymfollow")
    return flags


def _inside_bind(plan: SandboxPlan, entry: Entry) -> bool:
    """A mount that came along below a bound directory must carry that bind's restrictions."""
    return any(
        isinstance(mount, Bind)
        and entry.target.startswith(mount.target + "/")
        and ("ro" in entry.flags or "write" in mount.access)
        and ("noexec" in entry.flags or "exec" in mount.access)
        and {"nosuid", "nodev"} <= entry.flags
        for mount in plan.mounts
    )
