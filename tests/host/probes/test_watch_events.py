"""What the kernel half reports, of whom, and how often."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from watchrig import Cgroups, Tail, quiet, registered, run_in, until

from probes import layout
from probes.events import Flag, Kind, Verdict
from probes.maps import Watch

GETPPID, GETPGRP, SOCKET, MOUNT = 110, 111, 41, 165
CALL_ONCE = "import os; os.getppid()"


def test_a_call_outside_the_rules_is_reported_once(
    watch: Watch, tail: Tail, workload: Path
) -> None:
    with registered(watch, workload, quiet(but={GETPPID})) as number:
        child = run_in(workload, "import os\nfor _ in range(1000): os.getppid()")
        assert child.wait(10) == 0
        calls = [event for event in tail.read() if event.kind == Kind.CALL]
        assert [(e.cgroup, e.number, e.pid) for e in calls] == [(number, GETPPID, child.pid)]
        assert calls[0].verdict == Verdict.ALERT
        assert calls[0].comm == "python3"
        counters = watch.counters()[number]
        assert counters.suppressed == 999
        assert counters.lost == 0
        assert GETPPID in watch.seen(number)


def test_an_allowed_call_is_not_reported_but_remembered(
    watch: Watch, tail: Tail, workload: Path
) -> None:
    with registered(watch, workload, quiet()) as number:
        assert run_in(workload, CALL_ONCE).wait(10) == 0
        assert [event for event in tail.read() if event.kind == Kind.CALL] == []
        assert GETPPID in watch.seen(number)
        assert MOUNT not in watch.seen(number)


def test_nested_cgroups_belong_to_the_workload(watch: Watch, tail: Tail, workload: Path) -> None:
    nested = workload / "a" / "b"
    nested.mkdir(parents=True)
    with registered(watch, workload, quiet(but={GETPPID})) as number:
        assert run_in(nested, CALL_ONCE).wait(10) == 0
        calls = [event for event in tail.read() if event.kind == Kind.CALL]
        assert [(e.cgroup, e.number) for e in calls] == [(number, GETPPID)]


def test_nothing_from_outside_and_all_from_inside(
    watch: Watch, tail: Tail, cgroups: Cgroups
) -> None:
    inside, beside = cgroups.workload(), cgroups.workload()
    with registered(watch, inside, quiet(but={GETPPID})) as number:
        assert run_in(None, CALL_ONCE).wait(10) == 0
        assert run_in(beside, CALL_ONCE).wait(10) == 0
        assert tail.read() == []
        assert run_in(inside, CALL_ONCE).wait(10) == 0
        assert {event.cgroup for event in tail.read()} == {number}
    # The same child, no longer registered: nothing again.
    assert run_in(inside, CALL_ONCE).wait(10) == 0
    assert tail.read() == []


def test_a_seccomp_kill_shows_as_sigsys_with_the_call(
    watch: Watch, tail: Tail, workload: Path
) -> None:
    code = """
import ctypes, os, struct
libc = ctypes.CDLL(None)
# ld nr; jeq getppid -> kill process; allow
rules = [(0x20, 0, 0, 0), (0x15, 0, 1, 110), (6, 0, 0, 0x80000000), (6, 0, 0, 0x7fff0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in rules))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(rules), ctypes.addressof(code)))
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program) == 0
os.getppid()
"""
    with registered(watch, workload, quiet()) as number:
        child = run_in(workload, code)
        assert child.wait(10) == -31
        killed = [event for event in tail.read() if event.kind == Kind.SIGSYS]
        assert [(e.cgroup, e.number, e.pid) for e in killed] == [(number, GETPPID, child.pid)]
        assert killed[0].detail == 0xC000003E - (1 << 32)
        # The call never ran: it is not among the calls met.
        assert GETPPID not in watch.seen(number)


def test_an_exec_is_recorded_with_its_path(watch: Watch, tail: Tail, workload: Path) -> None:
    with registered(watch, workload, quiet()) as number:
        assert run_in(workload, "import os; os.execv('/bin/true', ['x'])").wait(10) == 0
        paths = [(e.cgroup, e.path) for e in tail.read() if e.kind == Kind.EXEC]
        assert paths == [(number, "/usr/bin/python3"), (number, "/bin/true")]


@pytest.mark.skipif(not shutil.which("gcc"), reason="needs gcc to write int 0x80")
def test_foreign_call_numbers_are_alerts(
    watch: Watch, tail: Tail, workload: Path, tmp_path: Path
) -> None:
    source, binary = tmp_path / "foreign.c", tmp_path / "foreign"
    source.write_text("""
#include <unistd.h>
#include <sys/syscall.h>
int main(void) {
    long out;
    __asm__ volatile("int $0x80" : "=a"(out) : "a"(20L));  /* i386 getpid; x86-64 writev */
    syscall(0x40000000 | 39);
    syscall(600);
    return 0;
}""")
    subprocess.run(["gcc", "-o", binary, source], check=True)
    with registered(watch, workload, quiet()) as number:
        child = run_in(workload, "", command=[str(binary)])
        assert child.wait(10) == 0
        calls = [(e.number, e.flags) for e in tail.read() if e.kind == Kind.CALL]
        assert calls == [(20, Flag.COMPAT), (0x40000000 | 39, Flag.X32), (600, Flag.RANGE)]
        assert watch.counters()[number].lost == 0


def _stops(tail: Tail) -> list[int]:
    return [e.flags for e in tail.read() if e.kind == Kind.CALL and e.verdict == Verdict.STOP]


@pytest.mark.parametrize("init", [False, True], ids=["plain", "init of a pid namespace"])
def test_a_high_risk_call_stops_the_process_before_its_next_call(
    watch: Watch, tail: Tail, workload: Path, init: bool
) -> None:
    # Every call after the bad one writes a byte; the pipe counts them.
    code = """
import os
def go():
    os.write(1, b"b")
    os.getppid()
    for _ in range(1000): os.write(1, b"a")
if INIT:
    import ctypes
    assert ctypes.CDLL(None).unshare(0x20000000) == 0
    if os.fork() == 0: go(); os._exit(0)
    os.wait()
else:
    go()
"""
    rules = quiet(but={GETPPID}, high_risk=frozenset({GETPPID}), on_high_risk="stop")
    with registered(watch, workload, rules):
        child = run_in(workload, f"INIT = {init}\n{code}", stdout=subprocess.PIPE)
        assert child.stdout
        stopped = until(lambda: _stopped(workload))
        assert _stops(tail) == [Flag.HIGH_RISK | Flag.SIGNALLED]
        time.sleep(0.1)
        os.set_blocking(child.stdout.fileno(), False)
        assert child.stdout.read() == b"b"
        for pid in stopped:
            os.kill(pid, 18)
        os.set_blocking(child.stdout.fileno(), True)
        assert child.stdout.read() == b"a" * 1000  # control: it had more to do
        assert child.wait(10) == 0


def _stopped(cgroup: Path) -> list[int]:
    pids = [int(pid) for pid in (cgroup / "cgroup.procs").read_text().split()]
    states = {p: Path(f"/proc/{p}/stat").read_text().rsplit(")", 1)[1].split()[0] for p in pids}
    return [pid for pid, state in states.items() if state == "T"]


def test_record_and_alert_do_not_stop(watch: Watch, tail: Tail, cgroups: Cgroups) -> None:
    for action, verdict in (("record", Verdict.RECORD), ("alert", Verdict.ALERT)):
        workload = cgroups.workload()
        rules = quiet(but={GETPPID}, high_risk=frozenset({GETPPID}), on_high_risk=action)
        with registered(watch, workload, rules):
            assert run_in(workload, CALL_ONCE).wait(10) == 0
            calls = [(e.verdict, e.flags) for e in tail.read() if e.kind == Kind.CALL]
            assert calls == [(verdict, Flag.HIGH_RISK)]


def test_leaving_the_cgroup_is_an_alert(watch: Watch, tail: Tail, cgroups: Cgroups) -> None:
    workload = cgroups.workload()
    with registered(watch, workload, quiet()) as number:
        child = run_in(workload, "import sys; sys.stdin.read()", stdin=subprocess.PIPE)
        until(lambda: [e for e in tail.read() if e.kind == Kind.EXEC])
        nested = workload / "own"
        nested.mkdir()
        (nested / "cgroup.procs").write_text(str(child.pid))
        (cgroups.top / "cgroup.procs").write_text(str(child.pid))
        moves = [e for e in tail.read() if e.kind == Kind.CGROUP]
        assert [(e.cgroup, e.pid, e.detail) for e in moves] == [
            (number, child.pid, os.getpid())
        ] * 2
        assert [(e.verdict, e.flags) for e in moves] == [
            (Verdict.RECORD, 0),
            (Verdict.ALERT, Flag.MOVED_OUT),
        ]
        assert moves[0].path.endswith("/own")
        child.communicate(b"")


def test_joining_the_cgroup_is_an_alert_and_forks_are_known(
    watch: Watch, tail: Tail, cgroups: Cgroups
) -> None:
    workload = cgroups.workload()
    # The child forks without exec; its own child then leaves by itself.
    code = f"""
import os
open({str(workload / "cgroup.procs")!r}, "w").write("0")
pid = os.fork()
if pid == 0:
    open({str(cgroups.top / "cgroup.procs")!r}, "w").write("0")
    os._exit(0)
os.waitpid(pid, 0)
"""
    with registered(watch, workload, quiet()):
        child = run_in(None, code)
        assert child.wait(10) == 0
        moves = [e for e in tail.read() if e.kind == Kind.CGROUP]
        assert [e.flags for e in moves] == [Flag.MOVED_IN, Flag.MOVED_OUT]
        assert moves[0].pid == child.pid
        assert moves[1].pid not in (child.pid, 0)


def test_io_uring_requests_trip_the_wire(
    watch: Watch, tail: Tail, workload: Path, status: dict[str, Any]
) -> None:
    if status["programs"]["on_uring"]["status"] != "attached":
        pytest.skip(f"no io_uring tracepoint: {status['programs']['on_uring']}")
    # A ring of 4 entries; one submission of opcode 0 (NOP). Layout: linux/io_uring.h.
    code = """
import ctypes, mmap, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
params = ctypes.create_string_buffer(120)
fd = libc.syscall(425, 4, params)
if fd < 0: sys.exit(ctypes.get_errno())
head, tail, mask, entries, flags, dropped, array = struct.unpack_from("7I", params.raw, 40)
queue = mmap.mmap(fd, array + 16, offset=0)
sqes = mmap.mmap(fd, 4096, offset=0x10000000)
sqes[0:64] = bytes(64)
struct.pack_into("I", queue, array, 0)
struct.pack_into("I", queue, tail, 1)
sys.exit(0 if libc.syscall(426, fd, 1, 0, 0, None, 0) == 1 else 99)
"""
    with registered(watch, workload, quiet()) as number:
        assert run_in(workload, code).wait(10) == 0
        wires = [e for e in tail.read() if e.kind == Kind.URING]
        assert [(e.cgroup, e.number, e.verdict) for e in wires] == [(number, 0, Verdict.ALERT)]


def test_a_denied_call_is_reported_by_errno(watch: Watch, tail: Tail, cgroups: Cgroups) -> None:
    code = """
import ctypes, os, socket
libc = ctypes.CDLL(None, use_errno=True)
os.setuid(61235)
for _ in range(50):
    assert libc.mount(b"a", b"/", b"tmpfs", 0, None) == -1
for path in ("/etc/shadow", "/etc/gshadow", "/nowhere"):
    try: open(path)
    except OSError: pass
"""
    told, silent = cgroups.workload(), cgroups.workload()
    for workload, denials in ((told, True), (silent, False)):
        with registered(watch, workload, quiet(denials=denials)) as number:
            child = run_in(workload, code)
            assert child.wait(10) == 0
            denied = {(e.number, e.detail) for e in tail.read() if e.kind == Kind.DENIED}
            if denials:
                assert {(MOUNT, layout.DENIALS["EPERM"]), (257, layout.DENIALS["EACCES"])} <= denied
                assert not {pair for pair in denied if pair[1] == 2}  # ENOENT is not watched
                assert watch.counters()[number].suppressed >= 49
            else:
                assert denied == set()


def test_seccomp_errno_is_seen_by_the_denial_filter_only(
    watch: Watch, tail: Tail, workload: Path
) -> None:
    # ld nr; jeq getppid -> errno ENOSYS; allow
    code = """
import ctypes, os, struct
libc = ctypes.CDLL(None)
rules = [(0x20, 0, 0, 0), (0x15, 0, 1, 110), (6, 0, 0, 0x50026), (6, 0, 0, 0x7fff0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in rules))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(rules), ctypes.addressof(code)))
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program) == 0
libc.getppid()
"""
    with registered(watch, workload, quiet(but={GETPPID}, denials=True)) as number:
        child = run_in(workload, code)
        assert child.wait(10) == 0
        events = [e for e in tail.read() if e.number == GETPPID]
        assert [(e.kind, e.detail) for e in events] == [(Kind.DENIED, 38)]
        assert GETPPID not in watch.seen(number)
