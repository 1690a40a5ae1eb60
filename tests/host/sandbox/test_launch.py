"""Launching: failures name their step and leave nothing; the dead take their children along."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sandbox import verify
from sandbox.errors import LaunchFailed, SandboxError
from sandbox.plan import Bind, Device, Limits, Tmpfs
from tests.host.sandbox.conftest import PYTHON, WAIVED, Cell


def alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def wait_until_gone(pid: int) -> bool:
    """True as soon as the process is gone; False after five seconds."""
    deadline = time.monotonic() + 5
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not alive(pid)


def test_a_missing_path_fails_the_step_that_needs_it(cell: Cell) -> None:
    with pytest.raises(LaunchFailed) as failure:
        cell.run("print('ran')", Bind("/no/such/path", "/data", ("read",)))
    assert failure.value.step == "new root"
    assert "no/such/path" in str(failure.value)
    assert cell.run("print('ran')").out == "ran\n"


def test_a_symbolic_link_is_no_mount_source(cell: Cell, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    code = "print('ran')"
    assert cell.run(code, Bind(str(tmp_path / "real"), "/data", ("read",))).out == "ran\n"
    with pytest.raises(LaunchFailed, match="new root"):
        cell.run(code, Bind(str(tmp_path / "link"), "/data", ("read",)))


def test_a_device_with_another_number_is_refused(cell: Cell) -> None:
    with pytest.raises(LaunchFailed, match="character device"):
        cell.run("print('ran')", Device("/dev/zero", 1, 3))
    assert cell.run("print('ran')", Device("/dev/zero", 1, 5)).out == "ran\n"


def test_a_missing_program_fails_before_release(cell: Cell) -> None:
    with pytest.raises(LaunchFailed) as failure:
        cell.do(cell.hold, cell.command(("/usr/bin/no-such-program",)))
    assert failure.value.step == "executable"


def test_a_program_that_is_no_program_fails_at_exec(cell: Cell) -> None:
    plan = cell.command(("/usr/lib/python3.11/os.py",))
    running = cell.do(cell.hold, plan)
    with pytest.raises(LaunchFailed) as failure:
        cell.do(cell.launcher.release, running)
    assert failure.value.step == "execute"
    assert wait_until_gone(running.pid)


def test_nothing_runs_before_release(cell: Cell, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    volume.chmod(0o777)
    mount = Bind(str(volume), "/data", ("read", "write"))
    code = "open('/data/ran', 'w').close()"
    plan = cell.command((PYTHON, "-I", "-c", code), mount)
    running = cell.do(cell.hold, plan)
    time.sleep(0.3)
    assert not (volume / "ran").exists()
    cell.do(cell.launcher.release, running)
    assert wait_until_gone(running.pid)
    assert (volume / "ran").exists()


def test_a_process_that_differs_from_its_plan_is_found(cell: Cell) -> None:
    running = cell.do(cell.hold, cell.command((PYTHON, "-I", "-c", "pass")))
    assert not [f for f in cell.inspect(running) if f.verdict == "FAIL"]
    for change, layer in (
        ({"uid": running.plan.uid + 1}, "identity"),
        ({"capabilities": ("bpf",)}, "capabilities"),
        ({"mounts": (*running.plan.mounts, Tmpfs("/tmp", 1 << 20, 10))}, "root"),
        ({"mounts": tuple(m for m in running.plan.mounts if not isinstance(m, Device))}, "root"),
        ({"limits": dataclasses.replace(running.plan.limits, nofile=64)}, "rlimits"),
        ({"fds": ("control",)}, "descriptors"),
    ):
        running.plan = cell.command((PYTHON,), **{"mounts": running.plan.mounts, **change})
        failed = {f.layer for f in cell.inspect(running) if f.verdict == "FAIL"}
        assert layer in failed, (change, failed)
        running.plan = cell.command((PYTHON, "-I", "-c", "pass"))
    cell.launcher.abort(running.cell)
    assert wait_until_gone(running.pid)


def test_a_file_replaced_between_resolving_and_release_is_found(cell: Cell, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    plan = cell.command((PYTHON, "-I", "-c", "pass"), Bind(str(data), "/data", ("read",)))
    running = cell.do(cell.hold, plan)
    assert not [f for f in cell.inspect(running) if f.verdict == "FAIL"]
    data.rename(tmp_path / "moved")
    data.mkdir()
    wrong = [f for f in cell.inspect(running) if f.verdict == "FAIL"]
    assert [f.layer for f in wrong] == ["root"]
    assert f"/data is not {data} any more" in wrong[0].evidence
    cell.launcher.abort(running.cell)
    assert wait_until_gone(running.pid)


def test_a_cell_that_became_its_plan_in_advance_runs_it(cell: Cell) -> None:
    """The same steps in the same order, only earlier; the descriptors come with the launch."""
    plan = cell.command((PYTHON, "-I", "-c", "print('ran')"))

    async def launch() -> tuple[int, str]:
        spare = cell.launcher.spawn(cell.slice.leaf())
        cell.launcher.confine(spare, plan)
        await asyncio.sleep(0.1)
        reading, writing = os.pipe()
        try:
            running = await cell.launcher.launch(plan, spare, (-1, writing, writing), {})
            await running.cell.ready
            assert not [f for f in cell.inspect(running) if f.verdict == "FAIL"]
            await cell.launcher.release(running)
        finally:
            os.close(writing)
        code, _ = await running.exited
        running.leaf.destroy()
        running.cell.close()
        with os.fdopen(reading) as out:
            return code, out.read()

    assert cell.do(launch) == (0, "ran\n")


def test_workloads_die_with_the_launcher(cell: Cell) -> None:
    waiting = "import time\ntime.sleep(60)"
    released = cell.do(cell.hold, cell.command((PYTHON, "-I", "-c", waiting)))
    cell.do(cell.launcher.release, released)
    held = cell.do(cell.hold, cell.command((PYTHON, "-I", "-c", waiting), workload="adapter.held"))
    assert alive(released.pid)
    assert alive(held.pid)
    os.kill(cell.zygote, signal.SIGKILL)
    assert wait_until_gone(released.pid)
    assert wait_until_gone(held.pid)
    os.waitpid(cell.zygote, 0)
    cell.zygote = os.spawnlp(os.P_NOWAIT, "sleep", "sleep", "60")


def test_a_limit_that_the_host_cannot_give_stops_the_start(cell: Cell) -> None:
    leaf = cell.slice.leaf()
    try:
        if "memory" in cell.slice.controllers:
            assert leaf.apply(Limits(1 << 26, None, None), frozenset()) == []
            return
        with pytest.raises(SandboxError, match=r"memory\.max"):
            leaf.apply(Limits(1 << 26, None, None), frozenset())
        assert "memory.max" in leaf.apply(Limits(1 << 26, None, None), WAIVED)
    finally:
        leaf.destroy()


def test_freezing_and_killing_reach_every_process(cell: Cell) -> None:
    code = "import os, time\nos.fork(); os.fork()\ntime.sleep(60)"
    running = cell.do(cell.hold, cell.command((PYTHON, "-I", "-c", code)))
    cell.do(cell.launcher.release, running)
    deadline = time.monotonic() + 5
    while len(running.leaf.processes()) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    pids = running.leaf.processes()
    assert len(pids) == 4
    running.leaf.freeze()
    cell.do(running.leaf.still)
    assert verify.inspect(running.plan, running.leaf, running.pid, running.report, WAIVED)
    running.leaf.kill()
    assert all(wait_until_gone(pid) for pid in pids)


def test_a_cell_killed_at_any_moment_harms_nobody_else(cell: Cell) -> None:
    plan = cell.command((PYTHON, "-I", "-c", "pass"))

    async def kill_after(pause: float) -> None:
        cage = cell.launcher.spawn(cell.slice.leaf())
        launching = asyncio.ensure_future(cell.launcher.launch(plan, cage, (-1, 2, 2), {}))
        await asyncio.sleep(pause)
        cage.leaf.kill()
        with contextlib.suppress(LaunchFailed):
            await launching
        assert (await cage.exited)[1] == signal.SIGKILL
        cage.leaf.destroy()
        cage.close()

    async def keep_killing() -> None:
        for step in range(60):
            await kill_after(step / 10_000)

    cell.do(keep_killing)
    assert cell.run("print('ran')").out == "ran\n"


def test_inherited_signal_settings_do_not_reach_the_workload(cell: Cell) -> None:
    running = cell.do(cell.hold, cell.command((PYTHON, "-I", "-c", "pass")))
    lines = Path(f"/proc/{running.pid}/status").read_text().splitlines()
    fields = dict(line.split(":\t", 1) for line in lines if line.startswith("Sig"))
    assert (fields["SigIgn"], fields["SigBlk"]) == ("0" * 16, "0" * 16)
    cell.launcher.abort(running.cell)
    assert wait_until_gone(running.pid)


def test_no_mount_of_a_cell_gets_back_to_a_host_that_shares_its_mounts() -> None:
    """As systemd has it; the launcher may have been started in the host's own namespace."""
    one = "tests/host/sandbox/test_hostile_paths.py::test_a_link_is_the_source_of_no_mount"
    shared = ("unshare", "--mount", "--propagation", "shared")
    command = [*shared, sys.executable, "-m", "pytest", "-q", one]  # it looks at its own mounts
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]
