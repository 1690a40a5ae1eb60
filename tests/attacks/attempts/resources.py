"""A38-A46: the cgroup tree, more of everything than was given, crashes.

What a cgroup controller bounds needs one of version 2; where the host has none, it is tried in the
VM tier alone (tests/vm/test_limits.py, test_cgroup_limits.py), as are the share of A43 and A44.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.attacks.attempts.attempt import Attempt

TREE = "no cgroup mount"
FIELDS = {"memlock": 8, "nofile": 7, "core": 4, "fsize": 1, "nice": 13, "rtprio": 14}


def attempts() -> Iterator[Attempt]:
    """In the order of the entries."""
    own = {"layer": TREE, "beneath": "ENOENT|EACCES|EROFS"}
    for name in ("cgroup.procs", "cgroup.kill", "cgroup.subtree_control", "memory.max"):
        yield Attempt(
            "A38",
            f"{name} of a sibling is not opened",
            "openat",
            ("open-write", f"{{leaf}}/{name}"),
            lacks="ENOENT",
            critical=True,
            **own,
        )
    yield Attempt(
        "A38",
        "cgroup.procs of the parent is not opened",
        "openat",
        ("open-write", "{leaf}/../cgroup.procs"),
        critical=True,
        **own,
    )
    yield Attempt(
        "A38", "no cgroup is made", "mkdir", ("mkdir", "{leaf}/../attack"), critical=True, **own
    )
    for name in ("release_agent", "notify_on_release"):
        yield Attempt(
            "A39",
            f"{name} of version 1 is not opened",
            "openat",
            ("open-write", f"/sys/fs/cgroup/cpu/{name}"),
            lacks="ENOENT",
            critical=True,
            **own,
        )
    yield Attempt(
        "A40",
        "a fork bomb ends at its limit",
        "clone",
        ("bomb", "100", "1"),
        (17,),
        beneath=r"EAGAIN: [12]?\d children",
        layer="pids.max",
        works="returned 100: .*",
        controller="pids",
        critical=True,
    )
    yield Attempt(
        "A41",
        "more heap than the limit is killed",
        "mmap",
        ("eat-heap", "400"),
        (0, 0, 3),
        beneath="SIGKILL",
        layer="memory.max",
        works="returned 400",
        controller="memory",
        critical=True,
    )
    yield from _amounts()
    yield Attempt(
        "A43",
        "no real-time priority",
        "sched_setscheduler",
        ("real-time",),
        beneath="EPERM",
        layer="capabilities, rlimits",
        works="returned 0",
        lacks="EPERM",
    )
    yield Attempt(
        "A43",
        "no deadline scheduling",
        "sched_setattr",
        ("deadline",),
        beneath="EPERM",
        layer="capabilities",
        works="returned 0",
        lacks="EPERM|EBUSY|ENOSYS",
    )
    yield Attempt(
        "A43",
        "no priority above others",
        "setpriority",
        ("nice",),
        beneath="EACCES|EPERM",
        layer="capabilities, rlimits",
        works="returned 0",
    )
    yield Attempt(
        "A45",
        "a sibling is not frozen",
        "openat",
        ("open-write", "{leaf}/cgroup.freeze"),
        critical=True,
        **own,
    )
    for who in ("supervisor", "zygote"):
        yield Attempt(
            "A45",
            f"the {who} is not stopped",
            "kill",
            ("stop", f"{{{who}}}"),
            beneath="ESRCH|EPERM",
            layer="own pid namespace",
            works="returned 0",
            critical=True,
        )
    yield Attempt(
        "A46",
        "a crash leaves no core file",
        "exit",
        ("crash",),
        beneath="SIGSEGV",
        layer="rlimits, not dumpable",
        works="SIGSEGV",
    )
    for name in ("core", "nofile", "memlock"):
        yield Attempt(
            "A46",
            f"the {name} limit is not raised",
            "prlimit64",
            ("raise-limit", str(FIELDS[name])),
            beneath="EPERM",
            layer="rlimits",
            works="returned 0",
            lacks="EPERM",
        )


def _amounts() -> Iterator[Attempt]:
    for act, call, arguments, words in (
        ("memory-file", "memfd_create", (), ()),
        ("new-segment", "shmget", (), ()),
        ("lock-memory", "mlock", (), ()),
        ("big-pipe", "fcntl", (0, 1031), ("1048576",)),
    ):
        yield Attempt(
            "A41",
            f"{act}: memory outside the heap is refused",
            call,
            (act, *words),
            arguments,
            beneath=r"returned \d+|EPERM|ENOMEM",
            layer="memory.max",
        )
    yield Attempt(
        "A41",
        "a socket holds no more than the system's bound",
        "setsockopt",
        ("big-socket", "67108864"),
        beneath="EPERM",
        layer="capabilities",
        works="returned 0",
    )
    yield Attempt(
        "A42",
        "a tmpfs fills up to its size",
        "write",
        ("fill-bytes", "/tmp/attack", "17"),
        beneath="ENOSPC: 1[0-6] MiB",
        layer="tmpfs size",
        works="returned 0: 17 MiB",
    )
    yield Attempt(
        "A42",
        "a tmpfs fills up to its number of files",
        "openat",
        ("fill-files", "/tmp", "300"),
        beneath=r"ENOSPC: 2\d\d files",
        layer="tmpfs inodes",
        works="returned 300: 300 files",
    )
    yield Attempt(
        "A42",
        "no file grows beyond its limit",
        "pwrite64",
        ("write-far", "{scratch}/far", "300"),
        beneath="EFBIG",
        layer="rlimits",
        works="returned 1",
    )
