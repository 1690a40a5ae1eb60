"""Freezing, killing and removing cgroups: the kernel's word is waited for, and only so long."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sandbox.cgroup import Leaf, Slice, find_mount
from sandbox.errors import SandboxError
from sandbox.limits import files
from sandbox.plan import IoLimits, Limits
from sandbox.usage import usage
from tests.host.sandbox.conftest import PYTHON

Sleepers = Callable[[int], list[subprocess.Popen[bytes]]]
# Doubles until somebody says no, or ROUNDS times; all of it sleeps.
BOMB = """
import os, sys, time
for _ in range(int(sys.argv[1])):
    os.fork()
time.sleep(60)
"""


@pytest.fixture
def tree() -> Iterator[Slice]:
    """A slice of the test's own."""
    made = Slice(find_mount() / f"anchorhold-test-cgroup-{os.getpid()}")
    yield made
    made.remove()


@pytest.fixture
def leaf(tree: Slice) -> Leaf:
    return tree.leaf()


@pytest.fixture
def sleepers(leaf: Leaf) -> Iterator[Sleepers]:
    """Starts processes of ours in the leaf."""
    started: list[subprocess.Popen[bytes]] = []

    def start(count: int) -> list[subprocess.Popen[bytes]]:
        for _ in range(count):
            process = subprocess.Popen(["/usr/bin/sleep", "60"])
            started.append(process)
            (leaf.path / "cgroup.procs").write_text(str(process.pid))
        return started

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_frozen_is_said_when_every_task_stands_still(leaf: Leaf, sleepers: Sleepers) -> None:
    sleepers(20)
    assert not leaf.frozen
    leaf.freeze()
    asyncio.run(leaf.still())
    assert leaf.frozen
    leaf.thaw()
    with pytest.raises(SandboxError, match="frozen is not 1"):
        asyncio.run(leaf.still(0.1))


def test_killed_is_said_when_nobody_is_left(leaf: Leaf, sleepers: Sleepers) -> None:
    processes = sleepers(20)
    assert len(leaf.processes()) == 20
    leaf.kill()
    asyncio.run(leaf.empty())
    assert leaf.processes() == []
    assert {process.wait() for process in processes} == {-9}


def test_what_is_frozen_can_be_killed(leaf: Leaf, sleepers: Sleepers) -> None:
    (process,) = sleepers(1)
    leaf.freeze()
    asyncio.run(leaf.still())
    leaf.destroy()
    assert process.wait(5) == -9
    assert not leaf.path.exists()


def test_a_wait_holds_up_nobody_and_ends_in_time(leaf: Leaf, sleepers: Sleepers) -> None:
    (process,) = sleepers(1)  # nobody kills it, so the cgroup does not get empty
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0.001)
            turns += 1

    async def both() -> None:
        beside = asyncio.ensure_future(others())
        try:
            with pytest.raises(SandboxError, match="populated is not 0 after") as late:
                await leaf.empty(0.5)
            assert late.value.code == "cgroup_timeout"
        finally:
            beside.cancel()

    asyncio.run(both())
    assert turns > 10
    assert process.poll() is None


def test_a_wait_for_one_that_is_removed_by_another_ends(leaf: Leaf, sleepers: Sleepers) -> None:
    sleepers(3)

    async def two() -> None:
        waiting = [asyncio.ensure_future(leaf.empty(3)) for _ in range(3)]
        await asyncio.gather(leaf.remove(), leaf.remove(), *waiting)

    asyncio.run(two())
    assert not leaf.path.exists()
    assert leaf.frozen, "in what is gone nothing runs"
    leaf.freeze()
    leaf.thaw()
    leaf.kill()


def test_who_comes_in_while_it_is_removed_is_killed_too(leaf: Leaf, sleepers: Sleepers) -> None:
    async def race() -> None:
        sleepers(20)
        removing = asyncio.ensure_future(leaf.remove())
        await asyncio.sleep(0)  # those are being killed
        with contextlib.suppress(OSError):  # it is gone already
            sleepers(1)
        await removing

    asyncio.run(race())
    assert not leaf.path.exists()


def test_waiting_leaves_no_descriptor(leaf: Leaf, sleepers: Sleepers) -> None:
    sleepers(1)

    async def wait() -> None:
        for _ in range(3):
            with pytest.raises(SandboxError):
                await leaf.empty(0.01)

    asyncio.run(wait())
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names alone
    asyncio.run(wait())
    assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 - names alone


def test_a_fork_bomb_is_killed_whole(leaf: Leaf) -> None:
    bomb = subprocess.Popen(
        [PYTHON, "-I", "-c", f"import sys; sys.stdin.readline()\n{BOMB}", "7"],
        stdin=subprocess.PIPE,
    )
    (leaf.path / "cgroup.procs").write_text(str(bomb.pid))
    assert bomb.stdin is not None
    bomb.stdin.write(b"go\n")
    bomb.stdin.close()
    deadline = time.monotonic() + 20
    while len(leaf.processes()) < 128 and time.monotonic() < deadline:
        time.sleep(0.01)
    pids = leaf.processes()
    assert len(pids) == 128
    began = time.monotonic()
    asyncio.run(leaf.remove())
    print(f"figure: {len(pids)} processes gone after {time.monotonic() - began:.3f} s")
    bomb.wait()
    assert [pid for pid in pids if _command_line(pid)] == []


def _command_line(pid: int) -> bytes:
    """Of a process; empty when it is gone, or only waits to be reaped."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def test_a_slice_ends_all_of_its_leaves(tree: Slice) -> None:
    leaves = [tree.leaf() for _ in range(5)]
    processes = [subprocess.Popen(["/usr/bin/sleep", "60"]) for _ in leaves]
    for leaf, process in zip(leaves, processes, strict=True):
        (leaf.path / "cgroup.procs").write_text(str(process.pid))
    again = Slice(tree.path)  # as after a supervisor that was killed
    assert [process.wait(5) for process in processes] == [-9] * 5
    assert not list(again.path.glob("cell-*"))


def test_no_cgroup_can_be_made_below_a_leaf(leaf: Leaf) -> None:
    below = leaf.path / "below"
    below.mkdir()  # control
    below.rmdir()
    assert leaf.apply(Limits(None, None, None), frozenset()) == []
    for file in ("cgroup.max.descendants", "cgroup.max.depth"):
        assert (leaf.path / file).read_text() == "0\n"
    with pytest.raises(BlockingIOError):
        below.mkdir()


def test_each_limit_without_its_controller_is_refused_by_name(tree: Slice, leaf: Leaf) -> None:
    here = IoLimits("/", read=1 << 30)
    for limit, file in (
        (Limits(1 << 26, None, None), "memory.max"),
        (Limits(1 << 26, None, None, memory_high=1 << 25), "memory.max"),
        (Limits(None, 16, None), "pids.max"),
        (Limits(None, None, 0.5), "cpu.max"),
        (Limits(None, None, None, cpu_weight=50), "cpu.weight"),
        (Limits(None, None, None, cpus=(0,)), "cpuset.cpus"),
        (Limits(None, None, None, io=here), "io.max"),
    ):
        name = file.partition(".")[0]
        if name in tree.controllers:
            assert leaf.apply(limit, frozenset()) == []
            continue
        with pytest.raises(SandboxError, match=f"{file}: this host has no cgroup v2 {name}"):
            leaf.apply(limit, frozenset())
        asked = {one for one in files(limit) if one.startswith(name)}
        assert set(leaf.apply(limit, frozenset({name}))) == asked


def test_the_kernel_tells_what_a_leaf_uses(tree: Slice, leaf: Leaf) -> None:
    program = "t = __import__('time'); e = t.monotonic() + 60\nwhile t.monotonic() < e: pass"
    busy = subprocess.Popen([PYTHON, "-I", "-c", program])
    try:
        (leaf.path / "cgroup.procs").write_text(str(busy.pid))
        deadline = time.monotonic() + 10
        while usage(leaf.path)["cpu"]["seconds"] < 0.1 and time.monotonic() < deadline:
            time.sleep(0.02)
        found = usage(leaf.path)
    finally:
        busy.kill()
        busy.wait()
    assert found["cpu"]["seconds"] >= 0.1
    assert (found["memory"]["now"] is None) == ("memory" not in tree.controllers)
    assert (found["pids"]["now"] is None) == ("pids" not in tree.controllers)
    for name in ("cpu", "memory", "io"):
        measured = (leaf.path / f"{name}.pressure").exists()
        assert (found["pressure"][name] is not None) == measured
