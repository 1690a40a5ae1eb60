"""A18-A24: other ids, capabilities, keys, and what only the machine's owner may do."""

from __future__ import annotations

import platform
from collections.abc import Iterator

from tests.attacks.attempts.attempt import Attempt

assert platform.machine() == "x86_64"  # the numbers below
EMPTY_PATH = (0, 0, 0, 0, 0x1000)
CAPABILITIES = "capabilities"

# name, number, harmless arguments ("*" is a bad pointer, "0*" one to zeros), the answer to root.
MACHINE: tuple[tuple[str, int, tuple[str, ...], str], ...] = (
    ("init_module", 175, ("*", "8", "*"), "EFAULT|ENOEXEC"),
    ("finit_module", 313, ("-1", "*", "0"), "EBADF|EFAULT"),
    ("delete_module", 176, ("*", "0"), "EFAULT"),
    ("kexec_load", 246, ("0", "0", "0", "0xffff"), "EINVAL"),
    ("kexec_file_load", 320, ("-1", "-1", "0", "0", "0xffff"), "EINVAL|EBADF"),
    ("reboot", 169, ("0", "0", "0", "0"), "EINVAL"),
    ("swapon", 167, ("*", "0"), "EFAULT"),
    ("swapoff", 168, ("*",), "EFAULT"),
    ("settimeofday", 164, ("*", "0"), "EFAULT"),
    ("clock_settime", 227, ("0", "*"), "EFAULT"),
    ("clock_adjtime", 305, ("0", "*"), "EFAULT"),
    ("adjtimex", 159, ("*",), "EFAULT"),
    ("syslog", 103, ("10", "0", "0"), r"returned \d+"),
    ("acct", 163, ("*",), "EFAULT"),
    ("quotactl", 179, ("0x800002", "*", "0", "*"), "EFAULT|EINVAL"),
    ("quotactl_fd", 443, ("-1", "0x800002", "0", "*"), "EBADF|EINVAL"),
    ("sethostname", 170, ("*", "1"), "EFAULT"),
    ("setdomainname", 171, ("*", "1"), "EFAULT"),
    ("iopl", 172, ("3",), r"returned 0"),
    ("ioperm", 173, ("0", "1", "1"), r"returned 0"),
    ("modify_ldt", 154, ("0", "*", "0"), r"returned 0"),
)
# The same for calls that ordinary users may make, so that the filter alone refuses them.
PERSONALITIES = {"READ_IMPLIES_EXEC": 0x400000, "ADDR_NO_RANDOMIZE": 0x40000}


def attempts() -> Iterator[Attempt]:
    """In the order of the entries."""
    yield from _ids()
    yield from _keys()
    yield from _modes()
    for call, number, words, works in (
        ("bpf", 321, ("5", "0*", "48"), "E2BIG|EINVAL"),
        ("bpf", 321, ("18", "0*", "32"), "E2BIG|EFAULT|EINVAL"),
        ("bpf", 321, ("0", "0*", "48"), "EINVAL"),
        ("perf_event_open", 298, ("0*", "0", "-1", "-1", "0"), r"returned \d+|ENOENT|EOPNOTSUPP"),
        ("userfaultfd", 323, ("0",), r"returned \d+"),
    ):
        what = {"5": " PROG_LOAD", "18": " BTF_LOAD"}.get(words[0], "")
        what = what if call == "bpf" and what else " MAP_CREATE" if call == "bpf" else ""
        yield Attempt(
            "A23",
            f"{call}{what} is refused",
            call,
            ("call", str(number), *words),
            beneath="EPERM|EACCES",
            layer=CAPABILITIES,
            works=works,
            lacks="ENOSYS",
            critical=True,
        )
    for call, number, words, works in MACHINE:
        yield Attempt(
            "A24",
            f"{call} is refused",
            call,
            ("call", str(number), *words),
            beneath="EPERM",
            layer=CAPABILITIES,
            works=works,
            lacks="ENOSYS",
            critical=call != "modify_ldt",
        )
    for name, value in PERSONALITIES.items():
        yield Attempt(
            "A24",
            f"personality {name} is refused",
            "personality",
            ("call", "135", hex(value)),
            (value,),
            beneath="EPERM",
            layer="",
        )


def _ids() -> Iterator[Attempt]:
    for where, path in {"image": "{programs}/setuid", "volume": "{scratch}/setuid"}.items():
        yield Attempt(
            "A18", f"a set-uid program of the {where} gives no id", "execveat",
            ("execute", path), EMPTY_PATH,
            beneath=r"returned 0: euid=[1-9]\d* egid=[1-9]\d* CapEff=0+" if where == "image"
            else "EACCES",
            layer="nosuid, no_new_privs" if where == "image" else "noexec, Landlock",
            works="returned 0: euid=0 .* CapEff=0*[1-9a-f][0-9a-f]*", control="nobody",
            critical=True,
        )  # fmt: skip
    yield Attempt(
        "A18",
        "a program's own capabilities are not gained",
        "execveat",
        ("execute", "{programs}/capable"),
        EMPTY_PATH,
        beneath=r"returned 0: euid=[1-9]\d* egid=[1-9]\d* CapEff=0+",
        layer="nosuid, no_new_privs",
        works=r"returned 0: euid=\d+ .* CapEff=0+2000",
        control="nobody",
        critical=True,
    )
    for call in ("setresuid", "setresgid", "setuid", "setgroups"):
        yield Attempt(
            "A19",
            f"{call} to root is refused",
            call,
            (call,),
            beneath="EPERM|EINVAL",
            layer="user namespace",
            works="returned 0",
            critical=True,
        )
    yield Attempt(
        "A20",
        "capset raises nothing",
        "capset",
        ("capset",),
        beneath="EPERM",
        layer=CAPABILITIES,
        works="returned 0",
        critical=True,
    )
    yield Attempt(
        "A20",
        "no ambient capability is raised",
        "prctl",
        ("ambient",),
        (47, 2, 21),
        beneath="EPERM",
        layer="securebits",
        works="returned 0",
        critical=True,
    )
    yield Attempt(
        "A20",
        "the bounding set is empty",
        "prctl",
        ("bounding-set",),
        (23,),
        beneath="returned 0",
        layer=CAPABILITIES,
        works=r"returned [1-9]\d*",
    )
    yield Attempt(
        "A20",
        "securebits stay locked",
        "prctl",
        ("securebits",),
        (28, 0),
        beneath="EPERM",
        layer=CAPABILITIES,
        works="returned 0",
        critical=True,
    )


def _keys() -> Iterator[Attempt]:
    for what, operation, keyring in (
        ("the session keyring is not named", "0", "-3"),
        ("the user keyring is not read", "11", "-4"),
        ("SESSION_TO_PARENT is refused", "18", "0"),
    ):
        yield Attempt(
            "A21",
            what,
            "keyctl",
            ("keyctl", operation, keyring),
            (int(operation),),
            beneath="EPERM|EACCES|ENOKEY|EINVAL",
            layer="own keyring",
            control="shell",
            critical=operation == "18",
        )
    yield Attempt("A21", "no key is added", "add_key", ("add-key",), beneath="EPERM", layer="")
    yield Attempt(
        "A21",
        "no key is asked for",
        "request_key",
        ("request-key",),
        beneath="EPERM",
        layer="",
        works="EFAULT",
    )
    yield Attempt(
        "A21",
        "the root directory is not listed",
        "openat",
        ("list-root",),
        beneath="EACCES",
        layer="Landlock",
    )


def _modes() -> Iterator[Attempt]:
    for act, call, at in (
        ("chmod", "chmod", 1), ("fchmod", "fchmod", 1), ("fchmodat", "fchmodat", 2),
        ("fchmodat2", "#452", 2),
    ):  # fmt: skip
        yield Attempt(
            "A22",
            f"{act} sets no set-uid bit",
            call,
            (act, "{scratch}/modes"),
            (*(0,) * at, 0o6755),
            beneath="EPERM",
            layer="",
            lacks="ENOSYS",
        )
    yield Attempt(
        "A22",
        "no file is created set-uid",
        "openat",
        ("create-setuid", "{scratch}/created"),
        (0, 0, 0o101, 0o6755),
        beneath="EPERM",
        layer="",
    )
    yield Attempt(
        "A22",
        "no file is given to root",
        "chown",
        ("chown", "{scratch}/given"),
        beneath="EPERM",
        layer="user namespace",
        critical=True,
    )
    yield Attempt(
        "A22",
        "no extended attribute is set",
        "setxattr",
        ("setxattr", "{scratch}/attribute"),
        beneath="EPERM|EACCES",
        layer="",
    )
