"""The processes of ours that are root: nobody traces them, nothing of theirs leaks."""

from __future__ import annotations

import ctypes
import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest
from house import House

from sandbox import credentials, syscalls

KINDS = ("supervisor", "zygote", "broker")
PTRACE_SEIZE = 0x4206


def pid_of(house: House, kind: str) -> int:
    """The process of that kind."""
    return house.pid if kind == "supervisor" else house.child(kind)


def fields(pid: int, name: str, separator: str = ":") -> dict[str, str]:
    """The lines of a file below /proc/PID as a dict."""
    lines = Path(f"/proc/{pid}/{name}").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(separator) for line in lines)}


def traceable(pid: int, capabilities: bool) -> bool:
    """Whether a process of root's uid may ptrace(2) `pid`, with all of root's capabilities or none.

    In a child: a tracer lets go only when it ends.
    """
    child = os.fork()
    if child == 0:
        try:
            if not capabilities:
                syscalls.capset(0, 0, 0)
            os._exit(0 if ctypes.CDLL(None).ptrace(PTRACE_SEIZE, pid, 0, 0) == 0 else 1)
        finally:
            os._exit(2)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 1)
    return code == 0


def open_and_kept(pid: int) -> list[str]:
    """The descriptors above 2 that would survive an exec."""
    found = []
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            flags = int(fields(pid, f"fdinfo/{fd.name}")["flags"], 8)
            if int(fd.name) > 2 and not flags & os.O_CLOEXEC:
                found.append(f"{fd.name} {fd.readlink()}")
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_every_descriptor_of_a_root_process_is_close_on_exec(running: House, kind: str) -> None:
    assert open_and_kept(pid_of(running, kind)) == []
    reading, writing = os.pipe()  # the control: the same look finds one that is not
    try:
        os.set_inheritable(reading, True)
        assert any(kept.startswith(f"{reading} ") for kept in open_and_kept(os.getpid()))
    finally:
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize("kind", KINDS)
def test_a_root_process_leaves_no_core_and_no_loose_file(running: House, kind: str) -> None:
    pid = pid_of(running, kind)
    limits = Path(f"/proc/{pid}/limits").read_text()
    core = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
    assert core.split()[4:6] == ["0", "0"]
    assert fields(pid, "status")["Umask"] == "0077"


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_of_the_same_uid_traces_a_root_process(running: House, kind: str) -> None:
    pid = pid_of(running, kind)
    other = os.fork()
    if other == 0:
        syscalls.capset(0, 0, 0)
        signal.pause()
    try:
        assert traceable(pid, capabilities=True)  # the control
        scope = Path("/proc/sys/kernel/yama/ptrace_scope")
        if not scope.exists() or scope.read_text() == "0\n":
            assert traceable(other, capabilities=False)
        assert not traceable(pid, capabilities=False)
    finally:
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)


def test_the_launcher_has_one_thread(running: House) -> None:
    assert fields(running.child("zygote"), "status")["Threads"] == "1"


def test_the_supervisor_keeps_the_capabilities_it_says_and_no_others(running: House) -> None:
    from supervisor.daemon import _KEPT

    status = fields(running.pid, "status")
    for name in ("CapPrm", "CapEff", "CapBnd"):
        assert int(status[name], 16) == credentials.mask(_KEPT)
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
