"""Supervisor, launcher and broker are killed and stopped at random moments, start after start.

From outside every process in the cgroups is looked at all the while: whichever runs a program of
its own is confined. After a kill everything is gone in bounded time, and the next start finds
nothing in its way. ANCHORHOLD_SEED repeats a run.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.cgroup import Slice, find_mount
from tests.host.sandbox.stand import PYTHON

STARTS = 500
WHO = ("supervisor", "launcher", "broker")
STARTER = Path(__file__).with_name("starter.py")
GONE = 5.0  # seconds, on a busy machine; what it takes is printed


class Starter:
    """One run of starter.py, looked at and disturbed."""

    def __init__(self, directory: Path, tree: str) -> None:
        self.said = directory / "said"
        self.tree = find_mount() / tree
        self.free: list[str] = []
        self.seen: set[int] = set()
        self.looks = self.programs = 0
        with self.said.open("w") as out:
            program = [PYTHON, "-IS", str(STARTER), str(directory), tree, "keep"]
            self.process = subprocess.Popen(program, stdout=out, stderr=out)
        self.image = b"\0".join(map(os.fsencode, program)) + b"\0"
        end = time.monotonic() + 20
        while not self.lines() and time.monotonic() < end:
            time.sleep(0.01)
        assert self.lines(), "it did not start"
        self.pids = dict(zip(WHO, json.loads(self.lines()[0]), strict=True))

    def lines(self) -> list[str]:
        return [line for line in self.said.read_text().splitlines(keepends=True) if "\n" in line]

    def look(self, seconds: float) -> None:
        """At everything in the cgroups, for so long."""
        end = time.monotonic() + seconds
        while True:
            for procs in self.tree.glob("*/cgroup.procs"):
                for pid in _pids(procs):
                    self.seen.add(pid)
                    verdict = confined(pid, self.image)
                    self.programs += verdict is not None
                    if verdict is False:
                        self.free.append(Path(f"/proc/{pid}/cmdline").read_text())
            self.looks += 1
            if time.monotonic() > end:
                return
            time.sleep(0.005)

    def gone(self) -> float:
        """Wait until everything of it is; the seconds."""
        began = time.monotonic()
        while left := [pid for pid in (*self.pids.values(), *self.seen) if _lives(pid, self)]:
            self.look(0)
            self.process.poll()
            assert time.monotonic() - began < GONE, left
        return time.monotonic() - began


def _pids(procs: Path) -> list[int]:
    try:
        return [int(pid) for pid in procs.read_text().split()]
    except OSError:
        return []


def _lives(pid: int, of: Starter) -> bool:
    """Whether it is there and still ours: numbers come again."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        ours = of.tree.name in Path(f"/proc/{pid}/cgroup").read_text()
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return state not in "ZX" and (ours or command == of.image)


def confined(pid: int, image: bytes) -> bool | None:
    """None: it is gone, or still the launcher's own image and not a program of its own."""
    try:
        program = Path(f"/proc/{pid}/cmdline").read_bytes()
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    said = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    if not program or program == image or said["State"][0] in "ZX":
        return None
    uids = set(said["Uid"].split())
    return (said["Seccomp"], said["NoNewPrivs"], "0" in uids) == ("2", "1", False)


@pytest.fixture
def tree() -> Iterator[str]:
    """The name of a slice, removed at the end: which it can only be when nothing runs in it."""
    name = f"anchorhold-test-killed-{os.getpid()}"
    yield name
    if (find_mount() / name).exists():
        Slice(find_mount() / name).remove()


def test_whoever_is_killed_or_stopped_nothing_runs_unconfined(tmp_path: Path, tree: str) -> None:
    seed = int(os.environ.get("ANCHORHOLD_SEED") or secrets.randbelow(1 << 32))
    print(f"ANCHORHOLD_SEED={seed}")
    chance = random.Random(seed)
    mounts = Path("/proc/self/mountinfo").read_text()
    assert confined(os.getpid(), b"") is False  # the look finds who is not
    started = stops = programs = 0
    kills = dict.fromkeys(WHO, 0)
    slowest = 0.0
    while started < STARTS:
        starter = Starter(tmp_path, tree)
        killed, before = disturb(starter, chance)
        kills[killed] += 1
        took = starter.gone()
        slowest = max(slowest, took)
        starter.process.wait(5)
        lines = starter.lines()[1:]
        started += lines.count("started\n")
        programs += starter.programs
        stops += starter.looks
        assert starter.free == []
        # Nothing failed because somebody stood still for a moment; only after one had died.
        assert [line for line in before if line.startswith("error")] == []
    print(f"{started} starts, killed {kills}, {stops} looks met {programs} running programs, "
          f"all gone after at most {slowest:.3f} s")  # fmt: skip
    assert programs > 50 and min(kills.values()) > 0
    assert Path("/proc/self/mountinfo").read_text() == mounts
    # The next one cleans up what the killed could not, and works.
    left = Starter(tmp_path, tree)
    left.look(0.5)
    assert "started\n" in left.lines()
    leaves = len(list(left.tree.glob("cell-*")))
    left.process.kill()
    left.gone()
    left.process.wait(5)
    assert leaves <= 2, "the leaves of killed runs are still there"


def disturb(starter: Starter, chance: random.Random) -> tuple[str, list[str]]:
    """Stop somebody now and then, look all the while, at last kill somebody; whom, and what was
    said until then."""
    while True:
        starter.look(chance.uniform(0, 0.25))
        who = chance.choice(WHO)
        if chance.random() < 0.15:
            if chance.random() < 0.5:  # one that stands still dies as well
                os.kill(starter.pids[who], signal.SIGSTOP)
                starter.look(chance.uniform(0, 0.02))
            said = starter.lines()
            os.kill(starter.pids[who], signal.SIGKILL)
            return who, said
        os.kill(starter.pids[who], signal.SIGSTOP)
        starter.look(chance.uniform(0, 0.04))
        os.kill(starter.pids[who], signal.SIGCONT)
