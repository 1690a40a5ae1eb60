"""Giving up what root is: groups, ids, capabilities, securebits, limits.

Sources: capabilities(7), user_namespaces(7), prctl(2). Debian's python-prctl lacks the ambient set,
MDWE and a way to clear the bounding set in one go, hence the raw options.
"""

from __future__ import annotations

import errno
import os
import signal

from sandbox import syscalls

CAPABILITIES = {
    "chown": 0, "dac_override": 1, "dac_read_search": 2, "kill": 5, "setgid": 6, "setuid": 7,
    "setpcap": 8, "net_bind_service": 10, "net_admin": 12, "sys_ptrace": 19, "sys_admin": 21,
    "sys_resource": 24, "perfmon": 38, "bpf": 39, "checkpoint_restore": 40,
}  # fmt: skip

# SECBIT_NOROOT, NO_SETUID_FIXUP, NO_CAP_AMBIENT_RAISE set, KEEP_CAPS clear, all four locked.
LOCKED_SECUREBITS = 0xEF

_PR_SET_PDEATHSIG, _PR_GET_DUMPABLE, _PR_SET_DUMPABLE = 1, 3, 4
_PR_CAPBSET_DROP, _PR_GET_SECUREBITS, _PR_SET_SECUREBITS = 24, 27, 28
_PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_SET_MDWE, _PR_GET_MDWE = 38, 47, 65, 66
_AMBIENT_RAISE, _AMBIENT_CLEAR_ALL = 2, 4


def mask(names: tuple[str, ...]) -> int:
    """The 64-bit capability mask of `names`."""
    return sum(1 << CAPABILITIES[name] for name in names)


def die_with_parent() -> None:
    """SIGKILL when the parent's thread dies. A uid change clears this: ask again after one."""
    syscalls.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def not_dumpable() -> None:
    """No ptrace, no core, /proc/PID owned by root (CVE-2016-9962)."""
    syscalls.prctl(_PR_SET_DUMPABLE, 0)


def drop_bounding(keep: int, last: int) -> None:
    """Remove every capability but `keep` from the bounding set."""
    drop = [capability for capability in range(last + 1) if not keep & (1 << capability)]
    syscalls.prctl_each(_PR_CAPBSET_DROP, drop)


def lock_securebits() -> None:
    """uid 0 means nothing any more, for ever. Needs CAP_SETPCAP, so before the capset."""
    syscalls.prctl(_PR_SET_SECUREBITS, LOCKED_SECUREBITS)


def become(uid: int, gid: int) -> None:
    """All three ids. Supplementary groups were set before."""
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def set_capabilities(keep: int) -> None:
    """Effective, permitted and inheritable = `keep`, so that an exec can carry it as ambient."""
    syscalls.capset(keep, keep, keep)


def raise_ambient(keep: int) -> None:
    """Let `keep` survive setuid and exec. Before lock_securebits, which forbids it for ever."""
    syscalls.capset((1 << 64) - 1 & _permitted(), _permitted(), keep)
    for capability in range(64):
        if keep & (1 << capability):
            syscalls.prctl(_PR_CAP_AMBIENT, _AMBIENT_RAISE, capability)


def _permitted() -> int:
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith("CapPrm:"):
                return int(line.split()[1], 16)
    raise OSError(2, "no CapPrm", "/proc/self/status")


def clear_ambient() -> None:
    """Empty the ambient set."""
    syscalls.prctl(_PR_CAP_AMBIENT, _AMBIENT_CLEAR_ALL)


def no_new_privileges() -> None:
    """No exec can add rights; seccomp and Landlock ask for it."""
    syscalls.prctl(_PR_SET_NO_NEW_PRIVS, 1)


def refuse_write_and_execute() -> None:
    """No memory may become executable after it was writable. PR_SET_MDWE came with Linux 6.3;
    before, the seccomp filter alone refuses it."""
    try:
        syscalls.prctl(_PR_SET_MDWE, 1)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise


def write_and_execute() -> int:
    """1: refused for the caller, 0: not, -1: this kernel has no PR_GET_MDWE."""
    try:
        return syscalls.prctl(_PR_GET_MDWE)
    except OSError:
        return -1


def report() -> dict[str, int]:
    """What cannot be seen from outside: the caller's own view, taken before the filter loads."""
    return {
        "securebits": syscalls.prctl(_PR_GET_SECUREBITS),
        "dumpable": syscalls.prctl(_PR_GET_DUMPABLE),
        "mdwe": write_and_execute(),
    }
