"""The kernel answers as the simulator: the bytes that a start loads, and harmless forms of calls.

Every call is malformed or without effect, and is made with the filters and without them. What the
filters refuse must be answered otherwise without them: else nothing would show that they refused.
"""

from __future__ import annotations

import errno
import signal
import subprocess
from pathlib import Path

import pytest

from sandbox.seccomp import bpf, call_number, compile_filters
from sandbox.seccomp.text import answer_text
from tests.host.sandbox.conftest import shipped_plan

HIGH = 1 << 32
# Name and arguments; what is not given is 0. Bad descriptors, pointers and flags throughout.
CALLS: list[tuple[str, list[int]]] = [
    *((call, []) for call in ("getpid", "getuid", "gettid", "umask", "sched_yield", "getppid")),
    *((call, [-1]) for call in ("read", "close", "fstat", "dup", "lseek", "write", "getdents64")),
    *((call, []) for call in ("unshare", "process_vm_readv", "mount", "pivot_root", "chroot")),
    *((call, []) for call in ("init_module", "reboot", "open_by_handle_at", "clone3", "openat2")),
    *((call, []) for call in ("execve", "mknod", "memfd_create", "sched_getscheduler", "times")),
    *((call, [9]) for call in ("iopl", "getitimer")),
    *((call, [-1]) for call in ("ptrace", "keyctl", "bpf", "syslog", "seccomp", "pidfd_open")),
    *((call, [-1, 0, -1]) for call in ("open_tree", "mount_setattr", "#467", "vmsplice")),
    *((call, [-1, -1]) for call in ("setns", "fanotify_init", "clock_settime", "execveat")),
    *((call, [0, -1]) for call in ("fsopen", "swapon", "sethostname", "umount2", "io_uring_setup")),
    ("personality", [0xFFFFFFFF]),
    ("settimeofday", [1]),
    ("adjtimex", [1]),
    ("socket", [1, 1]),
    ("socket", [2, 1]),
    ("socket", [2, 1 | 0o2004000, 6]),
    ("socket", [10, 2, 17]),
    ("socket", [2 | HIGH, 1]),
    ("socket", [16, 3]),
    ("socket", [16 | HIGH, 3]),
    ("socket", [17, 3]),
    ("socket", [2, 3, 1]),
    ("socket", [2, 10, 0x300]),
    ("socket", [2, 2, 136]),
    ("clone", [0x10000]),
    ("clone", [0x10010000]),
    ("clone", [0x50000]),
    ("ioctl", [-1, 0x541B]),
    ("ioctl", [-1, 0x5412]),
    ("ioctl", [-1, 0x5412 | HIGH]),
    ("ioctl", [-1, 0x5421 | HIGH]),
    ("prctl", [3]),
    ("prctl", [1]),
    ("prctl", [1 | HIGH]),
    ("prctl", [22]),
    ("fcntl", [-1, 1]),
    ("fcntl", [-1, 4]),
    ("fcntl", [-1, 4 | HIGH]),
    ("mmap", [0, 4096, 3, 0x22, -1]),
    ("mmap", [0, 4096, 7, 0x22, -1]),
    ("mprotect", [0, 0, 1]),
    ("mprotect", [0, 0, 4]),
    ("openat", [-100]),
    ("openat", [-100, 0, 0o101, 0o644]),
    ("openat", [-100, 0, 0o101, 0o4755]),
    ("openat", [-100, 0, 0o101, 0o2755]),
    ("fchmod", [-1, 0o755]),
    ("fchmod", [-1, 0o4755]),
    ("mkdir", [0, 0o755]),
    ("mkdir", [0, 0o2755]),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled try_calls.c."""
    binary = tmp_path_factory.mktemp("calls") / "try_calls"
    source = Path(__file__).with_name("try_calls.c")
    subprocess.run(["gcc", "-Wall", "-Werror", "-O1", "-o", binary, source], check=True)
    return binary


def answers(program: Path, filters: list[Path], lines: list[str]) -> list[str]:
    """The kernel's answer to each line: "0", the name of an errno, or "signal N"."""
    done = subprocess.run(
        [program, *filters], input="\n".join(lines), text=True, stdout=subprocess.PIPE, timeout=60
    )
    assert done.returncode == 0
    found = done.stdout.splitlines()
    assert len(found) == len(lines)
    return [f if f == "0" or " " in f else errno.errorcode[-int(f)] for f in found]


@pytest.mark.parametrize("policy", ["executor.main", "service.swtpm"])
def test_the_kernel_answers_as_the_simulator(policy: str, program: Path, tmp_path: Path) -> None:
    programs = compile_filters(shipped_plan(tmp_path, policy).seccomp)
    files = [tmp_path / f"{number}.bpf" for number in range(len(programs))]
    for file, content in zip(files, programs, strict=True):
        file.write_bytes(content)
    loaded = [bpf.decode(content) for content in programs]
    getpid, killed = call_number("getpid"), f"signal {int(signal.SIGSYS)}"

    lines, expected, told = [], [], []
    for call, arguments in CALLS:
        words = [call_number(call), *arguments, *[0] * (6 - len(arguments))]
        lines.append(" ".join(["64", *map(str, words)]))
        expected.append(answer_text(bpf.run_all(loaded, bpf.seccomp_data(words[0], words[1:]))))
        told.append(f"{call} {arguments}")
    foreign = {f"32 20{' 0' * 6}": "int 0x80", f"64 {getpid | bpf.X32_BIT}{' 0' * 6}": "x32"}
    lines += foreign
    told += foreign.values()
    expected += ["kill", "kill"]

    without, within = answers(program, [], lines), answers(program, files, lines)
    assert expected.count("allow") > 10 and expected.count("kill") > 12
    for what, verdict, free, held in zip(told, expected, without, within, strict=True):
        if verdict == "allow":
            assert held == free, f"{what}: {held}, {free} without filters"
        else:
            assert held == (killed if verdict == "kill" else verdict), what
            assert held != free, f"{what}: {free} without filters too: it proves nothing"


def test_no_kernel_call_has_a_number_that_nobody_knows(program: Path, tmp_path: Path) -> None:
    """Unknown numbers answer ENOSYS, as without filters; the process lives."""
    (tmp_path / "main.bpf").write_bytes(
        compile_filters(shipped_plan(tmp_path, "service.swtpm").seccomp)[-1]
    )
    lines = [f"64 {number}{' 0' * 6}" for number in (599, 5000, 0x3FFFFFFF, -1)]
    assert answers(program, [tmp_path / "main.bpf"], lines) == ["ENOSYS"] * 4
