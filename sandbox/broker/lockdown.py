"""What the broker and its resolver give up before they read the first byte.

The broker keeps one capability, CAP_SYS_ADMIN, because setns(2) asks for it, and a filter that
leaves that capability nothing to do but setns(2) into network namespaces: no open, no fork, no
exec, no mount, no signal. The resolver keeps nothing.
"""

from __future__ import annotations

import os
import resource

from sandbox import credentials, syscalls

_CLONE_NEW = 0x7E020080  # every CLONE_NEW* flag of clone(2)
_PROT_EXEC = 4
_NS_GET_NSTYPE, _FIONBIO, _FIONREAD, _FIOCLEX = 0xB703, 0x5421, 0x541B, 0x5451
_WORD = 0xFFFF_FFFF

# What a Python process needs to keep running without opening anything.
_INTERPRETER = (
    "read", "write", "close", "brk", "munmap", "mremap", "madvise", "futex", "getpid", "gettid",
    "getuid", "clock_gettime", "getrandom", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn",
    "sigaltstack", "restart_syscall", "exit", "exit_group", "fstat", "newfstatat", "lseek", "fcntl",
)  # fmt: skip
_SOCKETS = (
    "connect", "bind", "listen", "sendto", "sendmsg", "recvfrom", "recvmsg", "getsockopt",
    "setsockopt", "getsockname", "getpeername", "socketpair",
)  # fmt: skip
_BROKER = (*_INTERPRETER, *_SOCKETS, "epoll_wait", "epoll_pwait", "epoll_ctl")
_RESOLVER = (
    *_INTERPRETER, *_SOCKETS, "sendmmsg", "recvmmsg", "poll", "ppoll", "alarm", "setitimer",
    "prlimit64", "setrlimit", "stat", "statx", "access", "faccessat2", "readlink", "readlinkat",
    "getdents64", "pread64", "uname", "getppid", "geteuid", "getgid", "getegid", "set_robust_list",
    "rseq", "nanosleep", "clock_nanosleep", "wait4", "statfs", "gettimeofday", "time", "getcwd",
)  # fmt: skip


def compile_filter(who: str) -> bytes:
    """The BPF of `who` ("broker" or "resolver"), compiled in a short-lived child.

    A child, so that libseccomp and the plan's dataclasses never stay in the broker's memory.
    Raises OSError when the child fails (its traceback is on stderr).
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(reader)
            program = _build(who)
            with os.fdopen(writer, "wb") as pipe:
                pipe.write(program)
            status = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        program = pipe.read()
    _, status = os.waitpid(pid, 0)
    if status or not program:
        raise OSError(f"the seccomp filter of the {who} could not be compiled")
    return program


def _build(who: str) -> bytes:
    import sys

    if "/usr/lib/python3/dist-packages" not in sys.path:
        sys.path.append("/usr/lib/python3/dist-packages")  # Debian's libseccomp bindings
    from sandbox import seccomp
    from sandbox.plan import ArgTest, SeccompSpec, SyscallRule

    def rule(call: str, index: int, value: int, mask: int = _WORD) -> SyscallRule:
        return SyscallRule(call, "allow", (ArgTest(index, "masked_eq", value, mask),))

    def plain(calls: tuple[str, ...]) -> list[SyscallRule]:
        return [SyscallRule(call, "allow") for call in calls]

    no_code = [rule("mmap", 2, 0, _PROT_EXEC), rule("mprotect", 2, 0, _PROT_EXEC)]
    families = [rule("socket", 0, family) for family in (1, 2, 10)]  # UNIX, INET, INET6
    # compile_filters adds the launcher's execveat unless a rule with the same test stands here.
    no_exec = SyscallRule("execveat", "EPERM", (ArgTest(4, "masked_eq", 0x1000, _WORD),))
    if who == "broker":
        rules = [
            *plain(_BROKER),
            *no_code,
            *families,
            no_exec,
            rule("setns", 1, syscalls.CLONE_NEWNET),
            rule("ioctl", 1, _NS_GET_NSTYPE),
            rule("ioctl", 1, _FIONBIO),
        ]
    else:
        read_only = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC
        rules = [
            # libc may load a name service module: code may be mapped here, but only from files
            # that the resolver cannot write.
            *plain((*_RESOLVER, "mmap", "mprotect")),
            *families,
            no_exec,
            rule("openat", 2, 0, read_only),
            rule("open", 1, 0, read_only),
            rule("clone", 0, 0, _CLONE_NEW),
            *(rule("ioctl", 1, request) for request in (_FIONREAD, _FIONBIO, _FIOCLEX)),
        ]
    (program,) = seccomp.compile_filters(SeccompSpec(tuple(rules)))
    return program


def leave_files() -> None:
    """An own mount namespace whose root is an empty, read-only tmpfs."""
    syscalls.unshare(syscalls.CLONE_NEWNS | syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWUTS)
    syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC | syscalls.MS_RDONLY
    syscalls.mount("empty", "/tmp", "tmpfs", flags, "size=4k,mode=555")  # noqa: S108 - mount point
    os.chdir("/tmp")  # noqa: S108 - the mount point just made
    syscalls.pivot_root(".", ".")
    syscalls.umount2(".", syscalls.MNT_DETACH)
    os.chdir("/")


def limit(files: int, memory: int, processes: int) -> None:
    """No core, no files written, no locked memory; bounds on descriptors, bytes, processes."""
    for what, bound in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_NOFILE, files),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_NPROC, processes),
    ):
        hard = resource.getrlimit(what)[1]  # raising a limit would need CAP_SYS_RESOURCE
        bound = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        resource.setrlimit(what, (bound, bound))


def last_capability() -> int:
    """The highest capability number of this kernel."""
    with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as file:  # noqa: PTH123 - few imports
        return int(file.read())


def drop_to(uid: int, keep: tuple[str, ...], last: int, parent: int, program: bytes) -> None:
    """Become `uid` with the capabilities `keep` and no other, for ever; then load `program`.

    `last` is last_capability(), read while /proc is there. `parent` is the pid that must still be
    the parent: the uid change clears PDEATHSIG, and a parent that died in between goes unnoticed.
    """
    os.setgroups([])
    credentials.drop_bounding(0, last)
    credentials.lock_securebits()
    credentials.clear_ambient()
    credentials.become(uid, uid)
    kept = credentials.mask(keep)
    syscalls.capset(kept, kept, 0)
    credentials.die_with_parent()
    credentials.not_dumpable()
    if os.getppid() != parent:
        os._exit(1)
    credentials.no_new_privileges()
    syscalls.seccomp_load(program)
