"""A09-A17: mounts, new namespaces, files that must stay as they are, devices.

A14 and A15 are about a start, not about a running workload: see test_start.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.attacks.attempts.attempt import NONE, Attempt

OWNER = "the mount namespace's owner"
NAMESPACES = {
    "NEWNS": 0x20000, "NEWUSER": 0x10000000, "NEWPID": 0x20000000, "NEWNET": 0x40000000,
    "NEWIPC": 0x8000000, "NEWUTS": 0x4000000, "NEWCGROUP": 0x2000000, "NEWTIME": 0x80,
}  # fmt: skip
ALL = sum(NAMESPACES.values())
EMPTY_PATH = (0, 0, 0, 0, 0x1000)


def attempts() -> Iterator[Attempt]:
    """In the order of the entries."""
    own = {"beneath": "EPERM", "layer": OWNER, "control": "mounts", "critical": True}
    for kind, options in {
        "proc": "", "sysfs": "", "tmpfs": "", "cgroup2": "",
        "overlay": "lowerdir=/usr:/etc",
    }.items():  # fmt: skip
        yield Attempt(
            "A09", f"no {kind} is mounted", "mount", ("mount", kind, "/tmp", options), **own
        )
    yield Attempt("A09", "no bind mount", "mount", ("bind", "/proc", "/tmp"), **own)
    for path, works in {"/proc": r"returned 0", "/proc/sys": "EINVAL|returned 0"}.items():
        yield Attempt(
            "A10",
            f"{path} is not unmounted",
            "umount2",
            ("unmount", path),
            **{**own, "works": works, "beneath": "EPERM|ENOENT"},
        )
    yield Attempt("A10", "the root does not become writable", "mount", ("remount", "/"), **own)
    yield Attempt("A10", "the root is not changed", "chroot", ("chroot", "/"), **own)
    yield Attempt(
        "A10",
        "the root is not swapped",
        "pivot_root",
        ("pivot-root", "/"),
        **{**own, "works": "EBUSY|EINVAL"},
    )
    for act, call, words, works in (
        ("fsopen", "fsopen", ("tmpfs",), r"returned \d+"),
        ("fsconfig", "fsconfig", (), "EBADF|EINVAL"),
        ("fsmount", "fsmount", (), "EBADF"),
        ("fspick", "fspick", ("/",), r"returned \d+"),
        ("open-tree", "open_tree", ("/",), r"returned \d+"),
        ("open-tree-attr", "#467", ("/",), r"returned \d+|EINVAL"),
        ("move-mount", "move_mount", (), "EBADF"),
        ("mount-setattr", "mount_setattr", ("/",), "returned 0"),
    ):
        yield Attempt(
            "A11",
            f"{act} is refused",
            call,
            (act, *words),
            **{**own, "works": works, "lacks": "ENOSYS"},
        )
    for name, flag in {**NAMESPACES, "every namespace": ALL}.items():
        yield Attempt(
            "A12",
            f"unshare of {name} is refused",
            "unshare",
            ("unshare", hex(flag)),
            (flag,),
            beneath="ENOSPC|EPERM",
            layer="namespace limits, capabilities",
            critical=True,
        )
    yield Attempt(
        "A12",
        "no other namespace is entered",
        "setns",
        ("setns",),
        beneath="EPERM",
        layer="capabilities",
        works="returned 0",
        critical=True,
    )
    # No NEWTIME: its bit is part of clone's exit signal, so that only clone3 can say it.
    by_clone = {name: flag for name, flag in NAMESPACES.items() if name != "NEWTIME"}
    for name, flag in {**by_clone, "every namespace": ALL & ~NAMESPACES["NEWTIME"]}.items():
        yield Attempt(
            "A13",
            f"no child in an own {name}",
            "clone",
            ("clone", hex(flag)),
            (flag | 17,),
            beneath="ENOSPC|EPERM",
            layer="namespace limits, capabilities",
            critical=True,
        )
    yield Attempt(
        "A13",
        "clone3, whose flags cannot be read, makes no namespace",
        "clone3",
        ("clone3", hex(ALL)),
        beneath="ENOSPC|EPERM",
        layer="namespace limits, capabilities",
        critical=True,
    )
    yield Attempt(
        "A13",
        "a plain fork works",
        "clone",
        ("clone", "0"),
        (17,),
        beneath="returned 0",
        layer=NONE,
    )
    yield from _files()
    yield from _devices()


def _files() -> Iterator[Attempt]:
    yield Attempt(
        "A16",
        "nothing is renamed from one mount into another",
        "rename",
        ("rename", "{scratch}/own", "{programs}/moved"),
        beneath="EXDEV|EACCES|EROFS",
        layer="mounts, Landlock",
        critical=True,
    )
    yield Attempt(
        "A16",
        "nothing is linked from one mount into another",
        "link",
        ("link", "{programs}/bait", "{scratch}/linked"),
        beneath="EXDEV|EACCES|EPERM",
        layer="mounts, Landlock",
        critical=True,
    )
    for act, call, words in (
        ("open-truncate", "openat", ()), ("truncate", "truncate", ()), ("unlink", "unlink", ()),
        ("rename", "rename", ("{programs}/gone",)),
    ):  # fmt: skip
        yield Attempt(
            "A16",
            f"a read-only file withstands {act}",
            call,
            (act, "{programs}/bait", *words),
            beneath="EACCES|EROFS",
            layer="Landlock, read-only mounts",
            critical=True,
        )
    for place in ("{scratch}", "/tmp"):
        yield Attempt(
            "A16",
            f"nothing written to {place.strip('{}')} is executed",
            "execveat",
            ("execute-copy", "{programs}/descriptors", f"{place}/copy"),
            EMPTY_PATH,
            beneath="EACCES",
            layer="noexec, Landlock",
            works="returned 0",
            critical=True,
        )
    yield Attempt(
        "A16",
        "nothing in a memfd is executed",
        "memfd_create",
        ("execute-memory", "{programs}/descriptors"),
        (0, 0x10),
        beneath="EACCES",
        layer="memfd_noexec",
        works="returned 0",
        critical=True,
    )
    yield Attempt(
        "A16",
        "no program is started by its path",
        "execve",
        ("execute-path", "{programs}/descriptors"),
        beneath="returned 0",
        layer=NONE,
    )


def _devices() -> Iterator[Attempt]:
    yield Attempt(
        "A17",
        "no file is opened by a guessed handle",
        "open_by_handle_at",
        ("open-by-handle", "/usr"),
        beneath="EPERM",
        layer="capabilities",
        critical=True,
    )
    yield Attempt(
        "A17",
        "no file handle is given out",
        "name_to_handle_at",
        ("name-to-handle", "/usr"),
        beneath="EPERM|EOPNOTSUPP",
        layer="capabilities",
    )
    for kind, numbers in {"b": ("8", "0"), "c": ("1", "1")}.items():
        yield Attempt(
            "A17",
            f"no device node {kind} {':'.join(numbers)} is made",
            "mknod",
            ("mknod", "{scratch}/node", kind, *numbers),
            beneath="EPERM|EACCES",
            layer="user namespace, Landlock",
            critical=True,
        )
    for name in (
        "mem", "kmsg", "sda", "vda", "fuse", "kvm", "net/tun", "vsock", "loop-control", "tty",
        "userfaultfd", "console",
    ):  # fmt: skip
        yield Attempt(
            "A17",
            f"/dev/{name} is not opened",
            "openat",
            ("open-device", f"/dev/{name}"),
            beneath="ENOENT|EACCES",
            layer="own root",
            lacks="ENOENT|ENXIO|ENODEV|EPERM|EINVAL",
            critical=True,
        )
