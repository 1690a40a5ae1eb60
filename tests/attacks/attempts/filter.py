"""A25-A29: ways around the system call filter, and memory that becomes code.

None is critical by itself: where there is no filter, there is nothing to get around.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.attacks.attempts.attempt import Attempt

EMPTY_PATH = (0, 0, 0, 0, 0x1000)
RWX, RX = 7, 5


def attempts() -> Iterator[Attempt]:
    """In the order of the entries."""
    for name, number, works in (
        ("getpid", 20, r"returned \d+"), ("open", 5, "EFAULT"), ("socketcall", 102, "E.*"),
        ("mount", 21, "E.*"), ("execve", 11, "EFAULT"),
    ):  # fmt: skip
        yield Attempt(
            "A25",
            f"int 0x80: {name} is killed",
            name,
            ("gate32", str(number), "0"),
            works=works,
            lacks="SIGSEGV|ENOSYS",
            foreign=True,
        )
    for name, number in {"getpid": 39, "open": 2, "ptrace": 521, "execve": 520}.items():
        yield Attempt(
            "A26",
            f"x32: {name} is killed",
            name,
            ("x32", str(number)),
            works="returned .*|ENOSYS|EFAULT|ESRCH",
            foreign=True,
        )
    yield Attempt(
        "A27",
        "a 32-bit program does not run",
        "exit",
        ("execute", "{programs}/exit32"),
        works="exit 42",
        lacks="ENOEXEC",
        comm="exit32",
        foreign=True,
    )
    for act, works in {
        "io-uring-setup": r"returned \d+",
        "io-uring-enter": "EBADF",
        "io-uring-register": "EBADF|EINVAL",
    }.items():  # fmt: skip
        yield Attempt(
            "A28",
            f"{act} is refused",
            act.replace("-", "_"),
            (act,),
            works=works,
            lacks="ENOSYS|EPERM",
            beneath="EPERM",
            layer="",
        )
    yield Attempt(
        "A29",
        "first task, thread and child have the same filters",
        "clone",
        ("tasks",),
        (17,),
        beneath=r"returned 0: Seccomp=2 filters=[12]",
        layer="seccomp",
        works="returned 0: Seccomp=0 filters=0",
    )
    yield Attempt(
        "A29",
        "no listener is added",
        "seccomp",
        ("listener",),
        (1, 8),
        beneath="EPERM",
        layer="",
    )
    yield Attempt("A29", "no filter is added", "seccomp", ("filter",), (1,), works="EFAULT")
    yield Attempt(
        "A29",
        "no filter is added by prctl",
        "prctl",
        ("filter-by-prctl",),
        (22, 2),
        works="EFAULT",
    )
    yield Attempt(
        "A29",
        "written memory does not become code",
        "mprotect",
        ("written-code",),
        (0, 0, RX),
        beneath="EACCES|returned 0",
        layer="MDWE unless jit",
        works="returned 0",
    )
    yield Attempt(
        "A29",
        "no memory is writable code",
        "mmap",
        ("writable-code",),
        (0, 0, RWX),
        beneath="EACCES|returned 0",
        layer="MDWE unless jit",
        works="returned 0",
    )
