"""kill -9 of every process of ours, one by one: what docs/operations.md says about it is true."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.vm.installed import START_TIME, WORKLOADS, shared, status, wait_until_well
from tests.vm.machine import Machine
from tests.vm.snapshot import Snapshots

REMOTE = '\n[[upstream]]\nname = "remote"\nhost = "models.invalid"\ncredential = "remote"\n'
WATCHED = {"adapter.rest", "adapter.websocket", "executor.main", "model.practice"}
# Who stands still until the killed one is back.
FROZEN = {"service.egress": {"executor.main"}, "service.probe-reader": WATCHED}


@pytest.fixture(scope="module")
def machine(request: pytest.FixtureRequest, snapshots: Snapshots) -> Iterator[Machine]:
    """The installed service, running."""
    with shared(request, snapshots) as machine:
        yield machine


def kill(machine: Machine, who: str, seconds: float) -> dict[str, Any]:
    """Kill it; what was seen until all was well again. Nothing unconfined, whoever it was."""
    command = f"/usr/bin/python3 -I /root/inside/kill.py {who} {seconds}"
    told: dict[str, Any] = json.loads(machine.run(command, timeout=seconds + 60).stdout)
    print(f"{who}: well again after {told['back']} s; frozen meanwhile: {told['frozen']}")
    assert told["control"], "the look does not see that init has no filter"
    assert told["looks"] > 1 and told["free"] == []
    assert told["back"] is not None, told
    return told


@pytest.mark.parametrize("id_", WORKLOADS)
def test_a_killed_workload_is_started_again_and_no_other_with_it(
    machine: Machine, id_: str
) -> None:
    told = kill(machine, id_, 60)
    assert told["went"] == [told["victim"]]
    assert FROZEN.get(id_, set()) <= set(told["frozen"])
    found = {one["id"]: one for one in status(machine)["workloads"]}
    assert (found[id_]["restarts"], found[id_]["last_end"]) == (1, "signal SIGKILL")


def test_a_killed_spare_cell_is_replaced_when_it_is_needed(machine: Machine) -> None:
    told = kill(machine, "anchor-cell", 60)
    assert told["went"] == ["anchor-cell"]
    tried = machine.run("anchorhold try adapter.rest -- /usr/bin/python3 -c 'print(6 * 7)'")
    assert tried.stdout == "42\n"


@pytest.fixture(scope="module")
def with_a_name(machine: Machine) -> Machine:
    """An upstream with a host name, so that there is a process that looks names up."""
    old = machine.get("/etc/anchorhold/host.toml").decode()
    machine.put("/etc/anchorhold/host.toml", (old + REMOTE).encode())
    machine.run("systemctl restart anchorhold", timeout=START_TIME)
    wait_until_well(machine)
    return machine


@pytest.mark.parametrize(
    "who", ["supervisor", "anchor-launcher", "anchor-broker", "anchor-resolve"]
)
def test_without_supervisor_launcher_or_broker_all_ends_and_systemd_starts_anew(
    with_a_name: Machine, who: str
) -> None:
    machine = with_a_name
    wait_until_well(machine)
    machine.run("systemctl reset-failed anchorhold")  # more deaths than the unit puts up with
    before = int(machine.run("systemctl show anchorhold -p NRestarts --value").stdout)
    told = kill(machine, who, START_TIME)
    assert told["stayed"] == []
    assert {"python3", "anchor-launcher", "anchor-broker", "anchor-resolve"} <= set(told["went"])
    assert int(machine.run("systemctl show anchorhold -p NRestarts --value").stdout) == before + 1
