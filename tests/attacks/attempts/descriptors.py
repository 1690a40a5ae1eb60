"""A01-A08: inherited descriptors, and what /proc and /sys give away."""

from __future__ import annotations

from collections.abc import Iterator

from tests.attacks.attempts.attempt import Attempt

ABSENT = "ENOENT|EACCES"
UNWRITABLE = "ENOENT|EROFS|EACCES"
TRACED = "own pid namespace"
READ = "openat"


def attempts() -> Iterator[Attempt]:
    """In the order of the entries."""
    yield Attempt(
        "A01",
        "no inherited descriptor but the standard three",
        "openat",
        ("fd-list",),
        beneath="returned 0: 0 1 2",
        layer="descriptors",
        works=r"returned [1-9]\d*: 0 1 2 \d.*",
        control="leak",
        critical=True,
    )
    leaked = {"control": "leak", "layer": "descriptors", "critical": True}
    yield Attempt(
        "A02",
        "no inherited descriptor is a directory",
        "fstat",
        ("fd-directories",),
        beneath="returned 0",
        works=r"returned [1-9]\d*",
        **leaked,
    )
    yield Attempt(
        "A02",
        "no descriptor leads to its parent",
        "openat",
        ("fd-parent",),
        beneath="ENOTDIR",
        **leaked,
    )
    yield Attempt(
        "A02", "no descriptor can be entered", "fchdir", ("fd-enter",), beneath="ENOTDIR", **leaked
    )
    for what, words in {
        "root of process 1": ("open-read", "/proc/1/root{marker}"),
        "directory of process 1": ("open-read", "/proc/1/cwd/../..{marker}"),
        "root of the parent": ("parent-link", "root{marker}"),
    }.items():
        yield Attempt(
            "A03",
            f"the {what} leads to no host file",
            READ,
            words,
            beneath=ABSENT,
            layer="own root",
            control="plain" if "parent" in what else "first",
            critical=True,
        )
    yield Attempt(
        "A03",
        "no descriptors of other processes",
        "openat",
        ("foreign-fds",),
        beneath="returned 0: 0 other processes",
        layer=TRACED,
        works=r"returned [1-9]\d*: \d+ other processes",
        critical=True,
    )
    yield Attempt(
        "A04",
        "the own program is not written",
        READ,
        ("open-write", "/proc/self/exe"),
        beneath="ETXTBSY|EROFS|EACCES",
        layer="Landlock, read-only mounts",
        # Outside it is busy as well: what an attack waits for is its end.
        works="ETXTBSY",
    )
    for what, path in {"another program": "{programs}/idle", "a library": "{library}"}.items():
        yield Attempt(
            "A04",
            f"{what} of the host is not written",
            READ,
            ("open-write", path),
            beneath="EROFS|EACCES",
            layer="Landlock, read-only mounts",
            critical=True,
        )
    yield from _other_processes()
    yield from _host_files()
    yield from _own_files()


def _other_processes() -> Iterator[Attempt]:
    for what in ("supervisor", "zygote"):
        victim = f"{{{what}}}"
        yield Attempt(
            "A05",
            f"the memory of the {what} is not opened",
            READ,
            ("open-both", f"/proc/{victim}/mem"),
            beneath=ABSENT,
            layer=TRACED,
            critical=True,
        )
        for act, call, bad in (
            ("vm-write", "process_vm_writev", "EFAULT"),
            ("vm-read", "process_vm_readv", "EFAULT"),
            ("attach", "ptrace", ""),
            ("seize", "ptrace", ""),
            ("take-fd", "pidfd_getfd", ""),
            ("compare", "kcmp", ""),
        ):
            yield Attempt(
                "A05",
                f"{call} ({act}) does not reach the {what}",
                call,
                (act, victim),
                beneath="ESRCH|EPERM|EBADF",
                layer=TRACED,
                works=bad or r"returned \d+",
                critical=act != "compare",
            )


def _host_files() -> Iterator[Attempt]:
    for path in (
        "/proc/kcore", "/proc/keys", "/proc/kallsyms", "/proc/sched_debug", "/proc/timer_list",
        "/proc/iomem", "/proc/cmdline", "/sys/kernel/notes", "/sys/kernel/uevent_seqnum",
    ):  # fmt: skip
        yield Attempt(
            "A06",
            f"{path} is not read",
            READ,
            ("open-read", path),
            beneath=ABSENT,
            layer="own /proc, own root",
            lacks="ENOENT",
            critical=path == "/proc/kcore",
        )
    yield Attempt(
        "A06",
        "/proc/kmsg is not opened",
        READ,
        ("open-both", "/proc/kmsg"),
        beneath=ABSENT,
        layer="own /proc, own root",
        works=r"returned \d+|EACCES",
    )
    yield Attempt(
        "A06",
        "the environment of the host's process 1 is not read",
        READ,
        ("open-read", "/proc/1/environ"),
        beneath=r"returned \d+: HOME|EACCES",
        layer=TRACED,
        works=r"returned \d+: OUTSIDE",
        control="first",
        critical=True,
    )
    for path in (
        "/sys/firmware",
        "/sys/kernel/debug",
        "/sys/kernel/tracing",
        "/sys/kernel/security",
    ):
        yield Attempt(
            "A06",
            f"{path} is not listed",
            READ,
            ("open-directory", path),
            beneath=ABSENT,
            layer="own root",
            lacks="ENOENT",
        )
    for path in (
        "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe",
        "/proc/sys/vm/overcommit_memory", "/proc/sys/vm/drop_caches", "/proc/sysrq-trigger",
        "/proc/irq/default_smp_affinity", "/proc/acpi/wakeup", "/sys/kernel/uevent_helper",
    ):  # fmt: skip
        yield Attempt(
            "A07",
            f"{path} is not opened for writing",
            READ,
            ("open-write", path),
            beneath=UNWRITABLE,
            layer="own /proc, own root",
            lacks="ENOENT",
            critical=True,
        )


def _own_files() -> Iterator[Attempt]:
    landlock = {"beneath": "EPERM|EACCES", "layer": "Landlock"}
    yield Attempt(
        "A08",
        "the own uid map is not written",
        READ,
        ("write-text", "/proc/self/uid_map", "0 0 1"),
        control="user",
        critical=True,
        **landlock,
    )
    yield Attempt(
        "A08",
        "the own gid map is not written",
        READ,
        ("write-gid-map", "/proc/self/gid_map", "0 0 1"),
        control="user",
        critical=True,
        **landlock,
    )
    yield Attempt(
        "A08",
        "setgroups is not allowed again",
        READ,
        ("write-text", "/proc/self/setgroups", "{setgroups}"),
        control="user",
        **landlock,
    )
    yield Attempt(
        "A08",
        "the own OOM score is not lowered",
        READ,
        ("write-text", "/proc/self/oom_score_adj", "0"),
        **landlock,
    )
    for name in ("current", "exec"):
        yield Attempt(
            "A08",
            f"attr/{name} is not written",
            READ,
            ("write-text", f"/proc/self/attr/{name}", "x"),
            works=r"returned \d+|EINVAL",
            lacks="ENOENT",
            beneath="ENOENT|EPERM|EACCES|EINVAL",
            layer="Landlock",
        )
