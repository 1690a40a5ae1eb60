"""Who dies takes along what must not outlive him."""

from __future__ import annotations

import time

import pytest
from house import House, poll


def test_a_killed_supervisor_takes_everything_along_and_can_start_again(
    house: House, key: str
) -> None:
    remote = '\n[[upstream]]\nname = "remote"\nhost = "models.invalid"\ncredential = "remote"\n'
    house.write_host(lambda text: text + remote)  # with a name to look up there is a resolver
    house.open()
    house.measured("start to ready", time.monotonic() - house.ready_after)
    house.add_key(key)
    family = house.family()
    names = sorted(process.name() for process in family.values())
    assert {"swtpm", "anchor-broker", "anchor-resolve"} <= {*names}, names
    workloads = {one["pid"] for one in house.ask("status")["workloads"]}
    assert len(workloads) == 8 and workloads | {house.pid, house.child("zygote")} <= {*family}
    began = house.kill(house.pid)
    assert house.process.wait(5) == -9
    poll(lambda: not house.alive(), 2, lambda: f"all gone: {house.alive()}", pause=0.005)
    house.measured("supervisor killed to everything gone", began)
    # Same directories, same cgroup, same port: nothing that is left stands in the way.
    house.open()
    assert house.send()["reply"]
    assert house.stop() == 0


@pytest.mark.parametrize("which", ["broker", "zygote"])
def test_without_broker_or_launcher_everything_stops(house: House, which: str) -> None:
    house.open()
    assert house.http("/rest/messages", None)[0] == 401  # all of it is up
    house.family()
    began = house.kill(house.child(which))
    assert house.process.wait(15) == 1
    poll(lambda: not house.alive(), 2, lambda: f"all gone: {house.alive()}", pause=0.005)
    house.measured(f"{which} killed to everything gone", began)
    name = {"zygote": "launcher"}.get(which, which)
    record = house.wait_record("supervisor", event="lost", workload=name)
    assert record["verdict"] == "failed"
    assert house.leftovers() == []
