"""memory.max, pids.max and cpu.max of a policy bite, and bite nobody else."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.vm.installed import UNIT, WORKLOADS, pids, shared, status, wait_until_well
from tests.vm.machine import Machine
from tests.vm.snapshot import Snapshots

MODEL = "model.practice"  # 128 MiB, 16 processes, half a processor
MEMORY, PIDS, CPU = 128 << 20, 16, 0.5


@pytest.fixture(scope="module")
def machine(request: pytest.FixtureRequest, snapshots: Snapshots) -> Iterator[Machine]:
    """The installed service, running."""
    with shared(request, snapshots) as machine:
        plan = machine.run(f"anchorhold policy explain {MODEL} --json", timeout=120).stdout
        limits = json.loads(plan)["sandbox"]["limits"]
        assert (limits["memory"], limits["pids"], limits["cpu"]) == (MEMORY, PIDS, CPU), limits
        yield machine


def outside(program: str, *words: object) -> str:
    """A command that runs a program of inside/ as it is."""
    return f"/usr/bin/python3 -I - {' '.join(map(str, words))} </root/inside/{program}.py"


def inside(program: str, *words: object) -> str:
    """The same under the policy of the practice model."""
    return f"anchorhold try {MODEL} -- {outside(program, *words)}"


def group_kills(machine: Machine) -> int:
    """How often the kernel killed a whole cell for its memory."""
    said = machine.run(f"cat {UNIT}/workloads/memory.events").stdout.split()
    return int(said[said.index("oom_group_kill") + 1])


@pytest.fixture
def bystanders(machine: Machine) -> Iterator[None]:
    """Nobody but the offender notices: same processes, same supervisor, still RUNNING."""
    main = "systemctl show anchorhold -p MainPID,NRestarts,ActiveState"
    before = pids(machine), machine.run(main).stdout
    assert len(before[0]) == len(WORKLOADS) and None not in before[0].values()
    yield
    assert status(machine)["state"] == "running"
    assert (pids(machine), machine.run(main).stdout) == before


def test_who_takes_more_memory_than_its_limit_is_killed(machine: Machine, bystanders: None) -> None:
    much, little = 3 * MEMORY, MEMORY // 3
    assert "held" in machine.run(outside("eat", much)).stdout
    assert "held" in machine.run(inside("eat", little), timeout=120).stdout
    before = group_kills(machine)
    done = machine.run(inside("eat", much), timeout=120, check=False)
    assert (done.exit, done.stdout) == (128 + 9, "")
    assert group_kills(machine) == before + 1


def watched(machine: Machine, command: str, word: object, seconds: float) -> dict[str, Any]:
    """Run a command in a cell and count what the kernel says of it meanwhile."""
    watch = f"/usr/bin/python3 -I /root/inside/watch_cell.py {word} {seconds}"
    done = machine.run(f"{command} >/root/said & {watch}; wait %1; rm -f /root/x", timeout=300)
    counts: dict[str, Any] = json.loads(done.stdout)
    return counts


def test_a_fork_bomb_stops_at_its_limit_and_ends_whole(machine: Machine, bystanders: None) -> None:
    rounds, seconds = 7, 15.25
    assert machine.run(outside("bomb", rounds, 8)).stdout == "." * 2**rounds
    machine.run("pkill -f '^/usr/bin/python3 -I - 7 8$'")  # its children, which nothing ends
    began = time.monotonic()
    counts = watched(machine, inside("bomb", rounds, seconds), seconds, 5)
    print(f"fork bomb: {counts}, {time.monotonic() - began:.0f} s")
    assert counts["refused"] > 0 and 1 < counts["most"] <= PIDS
    dots = machine.run("cat /root/said").stdout
    assert 1 < len(dots) <= PIDS and set(dots) == {"."}
    left = machine.run(f"ps -o pid= -u {counts['uid']}", check=False).stdout.split()
    assert left == [], "who was left behind sleeps for a minute: the cell's end was theirs"


def test_the_machine_answers_while_a_fork_bomb_is_held(machine: Machine) -> None:
    command = inside("bomb", 7, 20.5)
    machine.run(f"setsid bash -c '{command}' >/root/said 2>&1 </dev/null &")
    machine.run("until grep -q . /root/said; do sleep 0.2; done", timeout=120)
    done = machine.run("true", timeout=10)
    said = machine.run("anchorhold status", timeout=60)
    print(f"while a fork bomb is held: true {done.seconds:.2f} s, status {said.seconds:.1f} s")
    assert "Anchorhold 0.1.0: running" in said.stdout
    machine.wait("! pgrep -f '[p]ython3 -I - 7 20.5' >/dev/null", 90)


def test_busy_threads_get_the_share_of_their_limit(machine: Machine, bystanders: None) -> None:
    alone = float(machine.run(outside("spin", 4, 5), timeout=120).stdout)
    counts = watched(machine, inside("spin", 4, 20.75), 20.75, 12)
    share = counts["used"] / counts["wall"]
    own = float(machine.run("cat /root/said").stdout)
    print(f"processors: outside {alone:.2f}, inside {share:.3f} ({own:.3f} by its own word)")
    assert alone > 2 * CPU
    assert share == pytest.approx(CPU, rel=0.15)
    assert counts["throttled"] > 0


def test_an_adapter_out_of_memory_runs_again_and_the_status_says_why(machine: Machine) -> None:
    id_ = "adapter.rest"
    before = pids(machine)
    cell = f"/sys/fs/cgroup$(cut -d: -f3 /proc/{before[id_]}/cgroup)"
    # Less than it has: what it would meet if it grew to its real limit.
    machine.run(f"echo 2M >{cell}/memory.max; until ! kill -0 {before[id_]}; do sleep 0.1; done")
    found = wait_until_well(machine, 60)
    after = {one["id"]: one for one in found["workloads"]}
    assert after[id_]["restarts"] == 1
    assert after[id_]["last_end"].startswith("signal SIGKILL: it needed more memory than its limit")
    others = {one: pid for one, pid in pids(machine).items() if one != id_}
    assert others == {one: pid for one, pid in before.items() if one != id_}
    told = machine.run("anchorhold status", timeout=60).stdout
    assert f"{id_}: started again after signal SIGKILL: it needed more memory" in told
    records = machine.get("/var/lib/anchorhold/audit/supervisor.jsonl").decode().splitlines()
    exits = [r for r in map(json.loads, records) if r["event"] == "exit" and r["workload"] == id_]
    assert "more memory than its limit" in exits[-1]["reason"]
    layers = {layer["layer"]: layer for layer in after[id_]["layers"]}
    assert layers["limit memory.max"]["evidence"] == str(MEMORY), "the new cell has its real one"
