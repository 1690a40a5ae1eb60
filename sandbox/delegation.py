"""Where in the cgroup v2 tree this process may make cgroups of its own.

Under systemd that is the subtree which a service or scope was given with Delegate=, marked by an
extended attribute (systemd's CGROUP_DELEGATION); elsewhere the top of the tree. Imports nothing
but os: the daemon asks before the launcher is forked, which is copied at every launch.
"""

from __future__ import annotations

import os

_MARKS = ("trusted.delegate", "user.delegate")


def mount_point(mountinfo: str = "/proc/self/mountinfo") -> str | None:
    """The first cgroup2 mount (on a hybrid host not /sys/fs/cgroup itself), or None. proc(5)."""
    with open(mountinfo) as lines:
        for line in lines:
            fields, _, rest = line.partition(" - ")
            if rest.startswith("cgroup2 "):
                return fields.split()[4]
    return None


def own_cgroup() -> str | None:
    """The directory of the caller's cgroup, or None where no cgroup2 is mounted. cgroups(7)."""
    mount = mount_point()
    if mount is None:
        return None
    with open("/proc/self/cgroup") as lines:
        for line in lines:
            if line.startswith("0::"):
                return (mount + line[3:].rstrip("\n")).rstrip("/")
    return None


def delegated_subtree() -> str | None:
    """The caller's cgroup, or the one above it, if its service manager gave it away."""
    own = own_cgroup()
    for path in (own, os.path.dirname(own)) if own else ():
        for mark in _MARKS:
            try:
                if os.getxattr(path, mark) == b"1":
                    return path
            except OSError:  # no such mark, or nobody marks cgroups here
                continue
    return None


def systemd_runs() -> bool:
    """Whether systemd manages this machine, the top of the cgroup tree with it. sd_booted(3)."""
    return os.path.isdir("/run/systemd/system")
