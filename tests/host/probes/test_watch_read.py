"""The reader as a process: what it writes, what it may not do, what it weighs."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from watchrig import (
    PROBES,
    PYTHON,
    READER_UID,
    Cgroups,
    Host,
    quiet,
    registered,
    run_in,
    start,
    until,
)

from probes import bpf, layout
from probes.events import Kind, Notice, Verdict, from_wire
from probes.maps import Watch

GETPPID = 110


class Reading:
    """A running reader with the supervisor's ends of its descriptors."""

    def __init__(self, watch: Watch, audit: Path) -> None:
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._audit = audit
        fds = watch.fds_for_reader()
        fds["audit"] = os.open(audit, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        fds["control"] = theirs.detach()
        command = ["setpriv", f"--reuid={READER_UID}", f"--regid={READER_UID}", "--clear-groups"]
        command += ["--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"]
        self.process = start([*command, PYTHON, "-I", "-S", str(PROBES), "read"], fds)
        for fd in fds.values():
            os.close(fd)

    def notices(self) -> list[Notice]:
        found = []
        while select.select([self.control], [], [], 0)[0]:
            notice = from_wire(self.control.recv(4096))
            assert notice
            found.append(notice)
        return found

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._audit.read_text().splitlines()]

    def status(self) -> dict[str, str]:
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return {key: value.strip() for key, value in (line.split(":", 1) for line in lines)}


@pytest.fixture
def reading(watch: Watch, tmp_path: Path) -> Iterator[Reading]:
    reading = Reading(watch, tmp_path / "audit.jsonl")
    yield reading
    with contextlib.suppress(ProcessLookupError):
        reading.process.kill()
    reading.process.wait(5)


def _name(reading: Reading, cgroup: int, name: str) -> None:
    message = {"op": "workload", "cgroup": cgroup, "id": name}
    reading.control.send(json.dumps(message).encode())


def test_an_event_reaches_the_supervisor_and_the_log(
    watch: Watch, reading: Reading, workload: Path
) -> None:
    with registered(watch, workload, quiet(but={GETPPID})) as number:
        _name(reading, number, "adapter.rest")
        before = time.monotonic_ns()
        child = run_in(workload, "import os\nfor _ in range(9): os.getppid()")
        assert child.wait(10) == 0
        until(lambda: [r for r in reading.records() if r.get("suppressed") == 8])
        notices = [n for n in reading.notices() if n.cgroup == number]
        assert [n.kind for n in notices] == [Kind.CGROUP, Kind.EXEC, Kind.CALL]
        assert notices[2][:6] == (number, Kind.CALL, Verdict.ALERT, 0, GETPPID, child.pid)
        assert before < notices[2].time < time.monotonic_ns()
        _, executed, called, counted = (r for r in reading.records() if r["cgroup"] == number)
        assert executed["path"] == "/usr/bin/python3"
        assert list(called)[:6] == ["time", "hop", "event", "workload", "verdict", "reason"]
        assert called["hop"] == "probe"
        assert called["workload"] == "adapter.rest"
        assert (called["event"], called["call"]) == ("call", "getppid")
        assert called["comm"] == "python3"
        assert abs(time.time() - _seconds(called["time"])) < 10
        assert (counted["seen"], counted["suppressed"], counted["lost"]) == (11, 8, 0)


def _seconds(text: str) -> float:
    import datetime

    return datetime.datetime.fromisoformat(text).timestamp()


def test_a_loss_is_told_to_the_supervisor(
    watch: Watch, reading: Reading, cgroups: Cgroups, workload: Path
) -> None:
    # A stopped reader and a full ring: it must find out and say so when it goes on.
    until(lambda: reading.status()["State"].startswith("S"))
    time.sleep(1.2)
    reading.notices()  # losses of earlier tests, which a new reader tells once more
    reading.process.send_signal(signal.SIGSTOP)
    paths = [cgroups.workload() for _ in range(80)]
    with contextlib.ExitStack() as stack:
        for path in paths:
            stack.enter_context(registered(watch, path, quiet()))
        code = f"""
import ctypes
libc = ctypes.CDLL(None)
for path in {[str(path) for path in paths]!r}:
    open(path + "/cgroup.procs", "w").write("0")
    for _ in range(70): libc.syscall(600)
"""
        child = run_in(None, code)
        assert child.wait(20) == 0
        lost = {cgroup: told.lost for cgroup, told in watch.counters().items() if told.lost}
        assert lost
        reading.process.send_signal(signal.SIGCONT)
        told: dict[int, int] = {}

        def hear() -> bool:
            for notice in reading.notices():
                if notice.kind == Kind.LOSS:
                    told[notice.cgroup] = told.get(notice.cgroup, 0) + notice.number
            return told == lost

        until(hear)


def test_garbage_on_control_is_counted_and_survived(
    watch: Watch, reading: Reading, workload: Path
) -> None:
    for data in (b"\xff\xfe", b"[" * 4000, b'{"op": 1}', b'{"op": "workload", "cgroup": "x"}'):
        reading.control.send(data)
    records = until(lambda: [r for r in reading.records() if r["event"] == "reader"])
    until(lambda: sum(1 for r in reading.records() if r.get("garbage") == 4))
    assert records[0]["verdict"] == "failed"
    with registered(watch, workload, quiet(but={GETPPID})) as number:
        _name(reading, number, "still.here")
        assert run_in(workload, "import os; os.getppid()").wait(10) == 0
        until(lambda: [r for r in reading.records() if r.get("workload") == "still.here"])


def test_sigterm_and_a_gone_supervisor_end_it_cleanly(watch: Watch, tmp_path: Path) -> None:
    for end in ("term", "gone"):
        reading = Reading(watch, tmp_path / end)
        until(lambda at=reading: at.status()["SigCgt"][-4] in "4567cdef")
        if end == "term":
            reading.process.send_signal(signal.SIGTERM)
        else:
            reading.control.close()
        assert reading.process.wait(2) == 0


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    # As installed: the reader's uid cannot write byte code, and compiling would cost it memory.
    subprocess.run([PYTHON, "-m", "compileall", "-q", str(PROBES)], check=True)


def test_it_has_no_capability_and_is_small(watch: Watch, reading: Reading) -> None:
    until(lambda: reading.status()["State"].startswith("S"))
    time.sleep(1.5)
    status = reading.status()
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name], 16) == 0
    assert int(status["VmRSS"].split()[0]) < 11.5 * 1024
    print("reader VmRSS", status["VmRSS"])


def test_nobody_can_change_a_counter(host: Host, watch: Watch, workload: Path) -> None:
    with registered(watch, workload, quiet(but={GETPPID})) as number:
        assert run_in(workload, "import os; os.getppid()").wait(10) == 0
        before = watch.counters()[number]
        assert before.seen == 3  # control: the programs do write it
        fds = watch.fds_for_reader()
        key, value = bytes(4), layout.COUNTERS.pack(number, 7, 7, 7)
        try:
            # Even root, with a descriptor that was not opened for reading only.
            with pytest.raises(PermissionError):
                bpf.update(fds["counters"], key, value)
            with pytest.raises(PermissionError):
                mmap.mmap(fds["counters"], 4096, mmap.MAP_SHARED, mmap.PROT_WRITE)
            with pytest.raises(PermissionError):
                mmap.mmap(fds["ring"], 8192, mmap.MAP_SHARED, mmap.PROT_WRITE, offset=4096)
            mmap.mmap(fds["counters"], 4096, mmap.MAP_SHARED, mmap.PROT_READ)  # control
            # Control: a map that is not frozen does take a write.
            state = bpf.get(str(host.pins / "state"))
            bpf.update(state, key, bytes(layout.STATE.size))
            os.close(state)
        finally:
            for fd in fds.values():
                os.close(fd)
        assert watch.counters()[number] == before


def test_the_reader_cannot_open_the_pins(host: Host, watch: Watch) -> None:
    code = f"""
import sys
sys.path.insert(0, {str(PROBES.parent)!r})
from probes import bpf
for name in ("rules", "slots", "counters", "ring", "link_on_enter"):
    try: bpf.get({str(host.inside)!r} + "/" + name)
    except PermissionError: pass
    else: sys.exit(name)
"""
    command = ["nsenter", "-t", str(host.holder), "-m", "setpriv", "--clear-groups"]
    outcome = {}
    for uid, caps in ((READER_UID, "--bounding-set=-all"), (0, "--bounding-set=+all")):
        result = subprocess.run(
            [*command, f"--reuid={uid}", f"--regid={uid}", caps, PYTHON, "-I", "-c", code],
            capture_output=True,
            text=True,
            check=False,
        )
        outcome[uid] = (result.returncode, result.stderr.strip())
    assert outcome[READER_UID] == (0, "")
    assert outcome[0] == (1, "rules")  # control: root can
