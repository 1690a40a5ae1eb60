"""Thin wrappers for the system calls that Python 3.11 lacks, one each, for x86-64.

Every wrapper raises OSError with the path or object it was called on. Imports are few on purpose:
this module is loaded in the zygote, and each import there is memory and start-up time.
"""

from __future__ import annotations

import ctypes
import os
import struct

_libc = ctypes.CDLL(None, use_errno=True)
# PyDLL keeps the GIL across the call: a fork must not let another Python thread in.
_libc_gil = ctypes.PyDLL(None, use_errno=True)
_libc.prctl.argtypes = [ctypes.c_int, *(ctypes.c_ulong,) * 4]

# x86-64 numbers; those added since 2019 are the same on every architecture.
_NR_CAPSET, _NR_PIVOT_ROOT, _NR_KEYCTL, _NR_SECCOMP, _NR_EXECVEAT = 126, 155, 250, 317, 322
_NR_RT_SIGACTION = 13
_NR_OPEN_TREE, _NR_MOVE_MOUNT, _NR_FSOPEN, _NR_FSCONFIG, _NR_FSMOUNT = 428, 429, 430, 431, 432
_NR_CLONE3, _NR_CLOSE_RANGE, _NR_OPENAT2 = 435, 436, 437
_NR_MOUNT_SETATTR = 442
_NR_LANDLOCK_CREATE, _NR_LANDLOCK_ADD, _NR_LANDLOCK_RESTRICT = 444, 445, 446

CLONE_NEWTIME = 0x80
CLONE_NEWNS = 0x20000
CLONE_NEWCGROUP = 0x2000000
CLONE_NEWUTS = 0x4000000
CLONE_NEWIPC = 0x8000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_PIDFD = 0x1000
CLONE_CLEAR_SIGHAND = 0x100000000
CLONE_INTO_CGROUP = 0x200000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REC, MS_PRIVATE, MS_SLAVE = 0x4000, 1 << 18, 1 << 19
MNT_DETACH = 2
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC = 1, 2, 4, 8
MOUNT_ATTR_NOSYMFOLLOW = 0x200000

AT_FDCWD = -100
_AT_RECURSIVE, _AT_EMPTY_PATH = 0x8000, 0x1000
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH = 0x4
RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH, RESOLVE_IN_ROOT = 2, 4, 8, 16


def _call(what: str | bytes | None, number: int, *args: object) -> int:
    result: int = _libc.syscall(ctypes.c_long(number), *args)
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)
    return result


def _check(what: str | None, result: int) -> int:
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)
    return result


def clone3(flags: int, cgroup_fd: int) -> tuple[int, int]:
    """Fork into new namespaces and into the cgroup `cgroup_fd`; (pid, pidfd), pid 0 in the child.

    clone3(2); Linux 5.7 for CLONE_INTO_CGROUP. The caller must have one thread.
    """
    pidfd = ctypes.c_int(-1)
    arguments = struct.pack(
        "=11Q", flags | CLONE_PIDFD | CLONE_INTO_CGROUP, ctypes.addressof(pidfd),
        0, 0, 17, 0, 0, 0, 0, 0, cgroup_fd,
    )  # fmt: skip
    buffer = ctypes.create_string_buffer(arguments, len(arguments))
    ctypes.pythonapi.PyOS_BeforeFork()
    pid: int = _libc_gil.syscall(ctypes.c_long(_NR_CLONE3), buffer, ctypes.c_size_t(len(arguments)))
    code = ctypes.get_errno()
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
        return 0, -1
    ctypes.pythonapi.PyOS_AfterFork_Parent()
    if pid == -1:
        raise OSError(code, os.strerror(code), "clone3")
    return pid, pidfd.value


def unshare(flags: int) -> None:
    """unshare(2)."""
    _check("unshare", _libc.unshare(ctypes.c_int(flags)))


def setns(fd: int, kind: int) -> None:
    """setns(2)."""
    _check("setns", _libc.setns(ctypes.c_int(fd), ctypes.c_int(kind)))


def sethostname(name: str) -> None:
    """sethostname(2), in the caller's UTS namespace."""
    raw = name.encode()
    _check("sethostname", _libc.sethostname(raw, ctypes.c_size_t(len(raw))))


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """mount(2)."""
    _check(
        target,
        _libc.mount(
            source.encode(), target.encode(), kind.encode() if kind else None,
            ctypes.c_ulong(flags), data.encode() if data else None,
        ),
    )  # fmt: skip


def umount2(target: str, flags: int) -> None:
    """umount2(2)."""
    _check(target, _libc.umount2(target.encode(), ctypes.c_int(flags)))


def pivot_root(new: str, old: str) -> None:
    """pivot_root(2)."""
    _call(new, _NR_PIVOT_ROOT, new.encode(), old.encode())


def open_tree(directory: int, path: str, recursive: bool = True) -> int:
    """A detached copy of the mount tree at `path` as a file descriptor. open_tree(2), 5.2."""
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC
    flags |= _AT_RECURSIVE if recursive else 0
    flags |= 0 if path else _AT_EMPTY_PATH
    return _call(path, _NR_OPEN_TREE, directory, path.encode(), ctypes.c_uint(flags))


def mount_setattr(fd: int, set_: int, clear: int = 0, recursive: bool = True) -> None:
    """Set and clear mount attributes of the mount `fd`. mount_setattr(2), 5.12."""
    attributes = struct.pack("=4Q", set_, clear, 0, 0)
    flags = _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    _call(
        "mount_setattr", _NR_MOUNT_SETATTR, fd, b"", ctypes.c_uint(flags),
        attributes, ctypes.c_size_t(len(attributes)),
    )  # fmt: skip


def move_mount(fd: int, directory: int, name: str) -> None:
    """Attach the detached mount `fd` at `name` in `directory`; a symbolic link there is not
    followed. move_mount(2), 5.2."""
    flags = ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH)
    _call(name, _NR_MOVE_MOUNT, fd, b"", directory, name.encode(), flags)


def new_filesystem(kind: str, options: dict[str, str | None], attributes: int) -> int:
    """A new, detached file system `kind` as a mount fd. fsopen(2), fsconfig(2), fsmount(2), 5.2."""
    context = _call(kind, _NR_FSOPEN, kind.encode(), ctypes.c_uint(1))
    try:
        for key, value in options.items():
            # FSCONFIG_SET_FLAG 0, SET_STRING 1, CMD_CREATE 6
            raw = None if value is None else value.encode()
            _call(
                f"{kind}:{key}",
                _NR_FSCONFIG,
                context,
                0 if raw is None else 1,
                key.encode(),
                raw,
                0,
            )
        _call(kind, _NR_FSCONFIG, context, 6, None, None, 0)
        return _call(kind, _NR_FSMOUNT, context, ctypes.c_uint(1), ctypes.c_uint(attributes))
    finally:
        os.close(context)


def openat2(directory: int, path: str, flags: int, resolve: int) -> int:
    """openat2(2), 5.6; always close-on-exec. `path` may begin with /: it is below `directory`."""
    how = struct.pack("=3Q", flags | os.O_CLOEXEC, 0, resolve)
    below = path.lstrip("/").encode() or b"."
    return _call(path, _NR_OPENAT2, directory, below, how, ctypes.c_size_t(len(how)))


def close_range(first: int, last: int = 0xFFFFFFFF) -> None:
    """close_range(2), 5.9."""
    _call(
        "close_range", _NR_CLOSE_RANGE, ctypes.c_uint(first), ctypes.c_uint(last), ctypes.c_uint(0)
    )


def close_all_but(*keep: int) -> None:
    """Close every descriptor above 2 that is not among `keep`."""
    first = 3
    for fd in sorted(keep):
        if first < fd:
            close_range(first, fd - 1)
        first = fd + 1
    close_range(first)


def loopback_up() -> None:
    """SIOCSIFFLAGS IFF_UP on `lo` of the caller's network namespace. netdevice(7)."""
    fd = _check("lo", _libc.socket(2, 2 | os.O_CLOEXEC, 0))
    try:
        request = ctypes.create_string_buffer(struct.pack("=16sH22x", b"lo", 0x1 | 0x40), 40)
        _check("lo", _libc.ioctl(fd, ctypes.c_ulong(0x8914), request))
    finally:
        os.close(fd)


def execveat(fd: int, argv: list[bytes], environment: list[bytes]) -> None:
    """execveat(2) of the file behind `fd`; returns only by raising."""
    arguments = (ctypes.c_char_p * (len(argv) + 1))(*argv, None)
    variables = (ctypes.c_char_p * (len(environment) + 1))(*environment, None)
    _call(argv[0], _NR_EXECVEAT, fd, b"", arguments, variables, ctypes.c_int(_AT_EMPTY_PATH))


def prctl(option: int, *args: int) -> int:
    """prctl(2) with unsigned long arguments, missing ones 0."""
    result: int = _libc.prctl(option, *args, *(0,) * (4 - len(args)))
    return result if result != -1 else _check(f"prctl {option}", -1)


def prctl_each(option: int, values: list[int]) -> None:
    """prctl(2) with each of `values` as second argument."""
    call = _libc.prctl  # forty of them in every launch
    for value in values:
        if call(option, value, 0, 0, 0) == -1:
            _check(f"prctl {option} {value}", -1)


def default_signals() -> None:
    """Every signal back to its default, also 32 and 33, which glibc keeps to itself and does not
    let a program reset although it may have inherited them ignored. rt_sigaction(2)."""
    default = bytes(32)  # struct sigaction of the kernel: SIG_DFL, no flags, empty mask
    for number in range(1, 65):
        if number not in (9, 19):  # SIGKILL and SIGSTOP
            _call(f"signal {number}", _NR_RT_SIGACTION, number, default, None, ctypes.c_size_t(8))


def join_session_keyring() -> int:
    """A fresh anonymous session keyring; its serial number. keyctl(2)."""
    return _call("keyring", _NR_KEYCTL, 1, None, 0, 0, 0)


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """Set the caller's capability sets, each a 64-bit mask. capset(2), version 3."""
    header = struct.pack("=Ii", 0x20080522, 0)
    low, high = 0xFFFFFFFF, 32
    data = struct.pack(
        "=6I", effective & low, permitted & low, inheritable & low,
        effective >> high, permitted >> high, inheritable >> high,
    )  # fmt: skip
    _call("capset", _NR_CAPSET, header, data)


def seccomp_load(program: bytes) -> None:
    """Load one compiled filter (struct sock_filter[]). seccomp(2), SECCOMP_SET_MODE_FILTER."""
    instructions = ctypes.create_string_buffer(program, len(program))
    fprog = struct.pack("=H6xQ", len(program) // 8, ctypes.addressof(instructions))
    _call("seccomp", _NR_SECCOMP, ctypes.c_uint(1), ctypes.c_uint(0), fprog)


def landlock_abi() -> int:
    """The kernel's Landlock ABI version; 0 where Landlock is absent or off. landlock(7)."""
    try:
        return _call("landlock", _NR_LANDLOCK_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint(1))
    except OSError:
        return 0


def landlock_create(attributes: bytes) -> int:
    """A ruleset fd. landlock_create_ruleset(2)."""
    size = ctypes.c_size_t(len(attributes))
    return _call("landlock", _NR_LANDLOCK_CREATE, attributes, size, ctypes.c_uint(0))


def landlock_add(ruleset: int, kind: int, rule: bytes, name: str) -> None:
    """Add a rule: kind 1 path_beneath, 2 net_port. landlock_add_rule(2)."""
    _call(name, _NR_LANDLOCK_ADD, ruleset, ctypes.c_int(kind), rule, ctypes.c_uint(0))


def landlock_restrict(ruleset: int) -> None:
    """Put the caller under the ruleset. landlock_restrict_self(2)."""
    _call("landlock", _NR_LANDLOCK_RESTRICT, ruleset, ctypes.c_uint(0))
