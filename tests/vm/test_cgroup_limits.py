"""Each limit by itself, in cgroups that the shipped code makes, and the same act without it.

No sandbox stands around these programs: what is seen here is the limit's own doing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.vm.installed import WORKLOADS, shared, status, wait_until_well
from tests.vm.machine import Machine
from tests.vm.snapshot import Snapshots

MIB = 1 << 20
MEMORY = 48 * MIB
KINDS = ("heap", "tmpfs", "memfd", "shm", "pipe", "pages", "sockets")


@pytest.fixture(scope="module")
def machine(request: pytest.FixtureRequest, snapshots: Snapshots) -> Iterator[Machine]:
    """The installed service, running: the bystander of everything here."""
    with shared(request, snapshots) as machine:
        yield machine
        assert wait_until_well(machine, 60)["state"] == "running"


def program(name: str, *words: object) -> list[str]:
    """A program of inside/."""
    return ["/usr/bin/python3", "-I", f"/root/inside/{name}.py", *map(str, words)]


def cell(argv: list[str], raw: dict[str, str] | None = None, **limits: object) -> dict[str, Any]:
    """A program and its limits."""
    return {"argv": argv, "limits": limits, "raw": raw or {}}


def run(
    machine: Machine, *cells: dict[str, Any], seconds: float = 60, unit: str = ""
) -> list[dict[str, Any]]:
    """What becomes of these cells, side by side, in a scope that systemd gives away."""
    order = json.dumps({"seconds": seconds, "cells": cells})
    scope = f"systemd-run --quiet --scope --collect -p Delegate=yes {unit} --".split()
    done = machine.run([*scope, *program("cells", order)], timeout=seconds + 60)
    told: list[dict[str, Any]] = json.loads(done.stdout)
    for one in told:
        print({key: one[key] for key in ("exit", "said", "memory", "cpu", "refused") if key in one})
    return told


def available(machine: Machine) -> int:
    """MemAvailable in bytes."""
    return int(machine.run("grep MemAvailable /proc/meminfo").stdout.split()[1]) * 1024


@pytest.mark.parametrize("kind", KINDS)
def test_memory_of_every_kind_stays_within_the_cgroup(machine: Machine, kind: str) -> None:
    before = available(machine)
    much = program("eat", 2 * MEMORY, kind)
    free, bound = run(machine, cell(much), cell(much, memory=MEMORY), seconds=120)
    assert (free["exit"], free["said"]) == (0, f"held {2 * MEMORY}\n")
    assert free["usage"]["memory"]["limit"] is None
    assert bound["exit"] != 0 and "held" not in bound["said"]
    assert bound["exit"] == -9 or "Error" in bound["said"]
    assert bound["memory"]["max"] > 0, "it met its limit"
    assert bound.get("peak", 0) <= MEMORY
    assert free["memory"]["oom_kill"] == 0, "who stood beside it was left alone"
    assert available(machine) > before - MEMORY, "nothing of it is left behind"


def test_the_whole_group_dies_and_only_it(machine: Machine) -> None:
    much = program("family", 2 * MEMORY)
    whole, single, beside = run(
        machine,
        cell(much, memory=MEMORY),
        cell(much, raw={"memory.max": str(MEMORY), "memory.swap.max": "0"}),
        cell(program("family", MIB), memory=MEMORY),
    )
    assert (whole["exit"], whole["said"]) == (-9, "")
    assert whole["memory"]["oom_group_kill"] == 1
    assert "child -9" in single["said"] and "parent lives" in single["said"]  # without oom.group
    assert "child 0" in beside["said"] and "parent lives" in beside["said"]


def test_above_memory_high_it_is_slowed_down_and_not_killed(machine: Machine) -> None:
    much = program("eat", 3 * MEMORY)
    free, bound = run(
        machine, cell(much, memory=6 * MEMORY), cell(much, memory=6 * MEMORY, memory_high=MEMORY),
        seconds=15,
    )  # fmt: skip
    assert free["exit"] == 0 and free["memory"]["high"] == 0
    assert bound["exit"] is None, "it neither got what it wanted nor was it killed"
    assert bound["memory"]["high"] > 0 and bound["memory"]["oom_kill"] == 0
    assert bound["usage"]["memory"]["now"] < 2 * MEMORY
    assert bound["usage"]["pressure"]["memory"]["some"] > 1


def test_nothing_of_it_is_swapped(machine: Machine) -> None:
    machine.run(
        "dd if=/dev/zero of=/swap bs=1M count=256 status=none && chmod 600 /swap && mkswap -q /swap"
        " && swapon /swap",
        timeout=120,
    )
    try:
        much = program("eat", 2 * MEMORY)
        kept, swapped = run(
            machine, cell(much, memory=MEMORY), cell(much, raw={"memory.max": str(MEMORY)})
        )
    finally:
        machine.run("swapoff /swap; rm /swap", timeout=120)
    assert (swapped["exit"], swapped["most_swap"] > 0) == (0, True)  # where nobody forbids it
    assert (kept["exit"], kept["most_swap"]) == (-9, 0)


def test_processors_are_shared_by_weight(machine: Machine) -> None:
    spin = program("spin", 1, 60)

    def ratio(*weights: dict[str, int]) -> float:
        """Of the second, which is started a moment later, to the first; on one processor."""
        told = run(machine, *(cell(spin, cpus=[0], **each) for each in weights), seconds=20)
        first, second = (one["cpu"]["usage_usec"] for one in told)
        return float(second / first)

    even, uneven = ratio({}, {}), ratio({"cpu_weight": 100}, {"cpu_weight": 300})
    print(f"weights: equal {even:.2f}, three to one {uneven:.2f}")
    assert 0.5 < even < 1.3
    assert uneven > 1.5 * even


def test_a_busy_program_gets_the_share_of_its_limit(machine: Machine) -> None:
    spin = program("spin", 2, 6)
    (free,) = run(machine, cell(spin), seconds=30)
    (bound,) = run(machine, cell(spin, cpu=0.3), seconds=60)
    print(f"processors: {float(free['said']):.2f}, with 30 % {float(bound['said']):.2f}")
    assert float(free["said"]) > 0.6
    assert float(bound["said"]) == pytest.approx(0.3, rel=0.25)
    assert bound["usage"]["cpu"]["throttled"] > 0.5
    assert free["cpu"]["nr_throttled"] == 0


@pytest.mark.parametrize("way", ["read", "write"])
def test_the_disk_is_used_at_the_rate_of_the_limit(machine: Machine, way: str) -> None:
    rate, amount = 2 * MIB, 12 * MIB
    machine.run("mkdir -p /var/lib/disk && head -c 12M /dev/zero >/var/lib/disk/file && sync")
    disk = program("disk", "/var/lib/disk/file", amount, way)
    io = {"path": "/var/lib/disk", way: rate}
    (free,) = run(machine, cell(disk))
    (bound,) = run(machine, cell(disk, io=io))
    print(f"{way}: {float(free['said']) / MIB:.1f} MiB/s, limited {float(bound['said']) / MIB:.1f}")
    assert float(free["said"]) > 2 * rate
    assert rate / 2 < float(bound["said"]) < 1.3 * rate


def test_disk_operations_are_counted_too(machine: Machine) -> None:
    rate = 10  # of 256 KiB each
    machine.run("mkdir -p /var/lib/disk && head -c 12M /dev/zero >/var/lib/disk/file && sync")
    disk = program("disk", "/var/lib/disk/file", 12 * MIB, "read")
    (free,) = run(machine, cell(disk))
    (bound,) = run(machine, cell(disk, io={"path": "/var/lib/disk", "read_ops": rate}))
    assert float(free["said"]) > 2 * rate * (256 << 10)
    assert float(bound["said"]) < 1.3 * rate * (256 << 10)


def test_it_runs_on_its_processors_only(machine: Machine) -> None:
    where = ["/usr/bin/python3", "-c", "import os; print(sorted(os.sched_getaffinity(0)))"]
    widen = "import os; os.sched_setaffinity(0, {0, 1}); print(sorted(os.sched_getaffinity(0)))"
    free, bound, wider = run(
        machine, cell(where), cell(where, cpus=[1]), cell([*where[:2], widen], cpus=[1])
    )
    assert free["said"] == "[0, 1]\n"
    assert bound["said"] == wider["said"] == "[1]\n"


def test_processors_that_are_not_there_are_refused_by_name(machine: Machine) -> None:
    true = ["/bin/true"]
    (good,) = run(machine, cell(true, cpus=[0, 1]))
    assert good["limits"]["cpuset.cpus"] == "0-1"
    (less,) = run(machine, cell(true, cpus=[0, 1]), unit="-p AllowedCPUs=0")
    assert less["refused"] == "cpuset.cpus: 0", "written, and not what is in force"
    (none,) = run(machine, cell(true, cpus=[0, 700]))
    assert none["refused"].startswith("cpuset.cpus: ")
    assert good["exit"] == 0 and "cgroup:cpuset" in less["fix"]


def test_no_cgroup_is_made_below_it(machine: Machine) -> None:
    below = ["/bin/sh", "-c", "mkdir {leaf}/below && rmdir {leaf}/below"]
    bound, free = run(
        machine,
        cell(below),
        cell(below, raw={"cgroup.max.depth": "max", "cgroup.max.descendants": "max"}),
    )
    assert bound["exit"] == 1 and "Resource temporarily unavailable" in bound["said"]
    assert (free["exit"], free["said"]) == (0, "")


def test_what_the_kernel_rounds_is_in_force(machine: Machine) -> None:
    (told,) = run(machine, cell(["/bin/true"], memory=MEMORY + 1, pids=7, cpu_weight=7, cpu=0.01))
    assert told["absent"] == []
    assert told["limits"]["memory.max"] == str(MEMORY)
    assert told["limits"]["cpu.weight"] == "7"


def test_every_limit_of_the_policies_is_in_force(machine: Machine) -> None:
    found = status(machine)
    layers = {
        one["id"]: {each["layer"]: each for each in one["layers"]} for one in found["workloads"]
    }
    for id_, seen in layers.items():
        limits = {name.removeprefix("limit "): x for name, x in seen.items() if "limit " in name}
        assert {each["verdict"] for each in limits.values()} == {"PASS"}, (id_, limits)
        least = {"memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "cpu.max"}
        assert least | {"cgroup.max.depth", "cgroup.max.descendants"} <= set(limits)
    assert layers["service.probe-reader"]["limit cpu.weight"]["evidence"] == "400"
    assert layers["adapter.rest"]["limit memory.high"]["evidence"] == str(112 * MIB)
    io = layers["executor.main"]["limit io.max"]["evidence"]
    assert f"rbps={128 * MIB} wbps={64 * MIB}" in io
    # The disk, or the image that the service has mounted there for itself.
    ask = "import os; d = os.stat('/var/lib/anchorhold/w-executor-main').st_dev"
    ask += "; print(f'{os.major(d)}:{os.minor(d)}')"
    service = "$(systemctl show anchorhold -p MainPID --value)"
    device = machine.run(f'nsenter -t {service} -m /usr/bin/python3 -c "{ask}"').stdout.strip()
    assert io.startswith(f"{device} ")
    for one in found["workloads"]:
        used = one["usage"]
        assert 0 < used["memory"]["now"] <= used["memory"]["limit"]
        assert used["memory"]["swap"] == 0 and used["pids"]["now"] > 0
        assert used["cpu"]["seconds"] > 0 and used["cpu"]["throttled"] is not None
        measured = set(machine.run("ls /proc/pressure", check=False).stdout.split())
        assert {name for name, told in used["pressure"].items() if told} == measured - {"irq"}
    said = machine.run("COLUMNS=100 anchorhold status --limits", timeout=60).stdout
    table = said[said.index("cpu psi") :].splitlines()
    assert len(table) > len(WORKLOADS) and max(map(len, table)) <= 100
    assert "all limits together" in said
