"""No descriptor left, no namespace left, a stopped launcher or broker: told, in time, and over."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from pathlib import Path

import pytest

from probes.errors import ProbeError
from sandbox import broker, launcher
from sandbox.errors import LaunchFailed, SandboxError
from tests.host.sandbox.faultrig import Rig
from tests.host.sandbox.stand import PYTHON


def _room(pid: int, free: int) -> int:
    """The RLIMIT_NOFILE under which the process can open `free` more descriptors."""
    used = {int(fd.name) for fd in Path(f"/proc/{pid}/fd").iterdir()}
    numbers = (n for n in range(1 << 16) if n not in used)
    for _ in range(free):
        next(numbers)
    return next(numbers)


@pytest.mark.parametrize("who", ["supervisor", "launcher"])
def test_without_descriptors_one_launch_fails_and_the_next_succeeds(rig: Rig, who: str) -> None:
    pid = os.getpid() if who == "supervisor" else rig.stand.zygote
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    failures = []
    for free in range(64):
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (_room(pid, free), hard))
        try:
            running = rig.do(rig.stand.start, rig.plan)
        except (SandboxError, ProbeError, OSError) as error:
            failures.append(str(error))
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
            rig.left_nothing()
        else:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
            rig.do(rig.stand.finish, running)
            rig.ran.unlink()
            break
    else:
        pytest.fail("never succeeded")
    print(f"{who}: {len(failures)} numbers of free descriptors too small: {failures}")
    assert len(failures) >= 3, failures


_LIMITED = """
import asyncio, json, os, sys
sys.path.insert(0, sys.argv[1])
from sandbox import syscalls, zygote
from sandbox.cgroup import Slice
from pathlib import Path
tree = Slice(Path(sys.argv[2]))
os.chown(tree.path, 0, 0)
reading, writing = os.pipe()
back, go = os.pipe()
pid = os.fork()
if pid == 0:
    syscalls.unshare(syscalls.CLONE_NEWUSER)
    os.write(writing, b"x")
    os.read(back, 1)
    _, control = zygote.start()
    from sandbox.errors import LaunchFailed
    from sandbox.launcher import Launcher
    Path(f"/proc/sys/user/max_{sys.argv[3]}_namespaces").write_text(sys.argv[4])

    async def main():
        launcher = Launcher(control, Path(sys.argv[5]))
        leaf = tree.leaf()
        cell = launcher.spawn(leaf)
        try:
            await cell.spawned
        except LaunchFailed as error:
            print(error)
        cell.close()
        leaf.destroy()

    asyncio.run(main())
    os._exit(0)
os.read(reading, 1)
for name in ("uid_map", "gid_map"):
    Path(f"/proc/{pid}/{name}").write_text("0 0 1")
os.write(go, b"x")
os.waitpid(pid, 0)
tree.remove()
"""


@pytest.mark.parametrize("kind", ["mnt", "pid", "net", "ipc", "uts", "time"])
def test_without_a_namespace_left_no_cell_is_made(rig: Rig, tmp_path: Path, kind: str) -> None:
    def run(number: str) -> str:
        tree = f"{rig.stand.slice.path}-limited"
        program = [PYTHON, "-IS", "-u", "-c", _LIMITED, str(Path(__file__).parents[3]), tree, kind,
                   number, str(tmp_path)]  # fmt: skip
        done = subprocess.run(program, capture_output=True, text=True, timeout=30)
        assert not Path(tree).exists(), done
        return done.stdout + done.stderr

    refused = run("0")
    assert "step 'spawn' failed" in refused and "No space left" in refused, refused
    # With some left the cell is made. (Who is root only there may not look at its namespaces.)
    assert "step 'network namespace' failed" in run("10")


def test_a_stopped_launcher_is_told_in_time_and_goes_on_afterwards(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "_LAUNCH_TIME", 0.5)
    os.kill(rig.stand.zygote, signal.SIGSTOP)
    try:
        with pytest.raises(LaunchFailed) as failure:
            rig.do(rig.stand.start, rig.plan)
        assert failure.value.step == "spawn"
        assert "stopped" in str(failure.value)
    finally:
        os.kill(rig.stand.zygote, signal.SIGCONT)
    rig.left_nothing()


def test_a_stopped_launcher_takes_only_so_many_orders(rig: Rig) -> None:
    os.kill(rig.stand.zygote, signal.SIGSTOP)
    cells = []
    try:
        with pytest.raises(SandboxError) as refused:
            for _ in range(2000):
                cells.append(rig.call(rig.stand.cells._spawn))
        assert refused.value.code == "zygote_busy"
        assert "stopped" in str(refused.value) and refused.value.fix
    finally:
        for cell in cells:
            rig.do(rig.stand.cells._discard, cell)
        os.kill(rig.stand.zygote, signal.SIGCONT)
    rig.left_nothing()


def test_a_workload_can_be_stopped_while_the_launcher_is(rig: Rig) -> None:
    plan = rig.stand.plan((PYTHON, "-I", "-c", "import time; time.sleep(60)"))
    running = rig.do(rig.stand.start, plan)
    os.kill(rig.stand.zygote, signal.SIGSTOP)
    try:
        assert rig.do(rig.stand.finish, running, 0.1) == (-1, signal.SIGKILL)
    finally:
        os.kill(rig.stand.zygote, signal.SIGCONT)
    rig.left_nothing()


def test_a_stopped_broker_is_given_up(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = broker.start(4242425)
    stopped.control.settimeout(0.5)
    os.kill(stopped.pid, signal.SIGSTOP)
    own, rig.stand.broker = rig.stand.broker, stopped
    rig.stand.outfitter._broker = stopped
    try:
        began = time.monotonic()
        for _ in range(5):
            with pytest.raises(broker.BrokerError, match="does not answer"):
                rig.do(rig.stand.start, rig.plan)
        waited = time.monotonic() - began
        assert stopped.control.recv(1) == b""  # what the supervisor's loop sees: it is gone
    finally:
        rig.stand.broker = rig.stand.outfitter._broker = own
        os.kill(stopped.pid, signal.SIGKILL)
        stopped.close()
    assert waited < 2.5, "every order waited again"
    rig.left_nothing()
