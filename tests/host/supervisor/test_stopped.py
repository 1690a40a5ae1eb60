"""A launcher or broker that stands still: told in time, nothing hangs, and a start can follow."""

from __future__ import annotations

import os
import signal
import time

import pytest
from house import House, poll

from supervisor.control import ControlError


def test_a_stopped_launcher_fails_starts_in_time_and_no_stop_hangs(house: House, key: str) -> None:
    house.open()
    house.add_key(key)
    zygote = house.child("zygote")
    os.kill(zygote, signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(ControlError) as refused:
        house.ask("restart", {"workload": "adapter.rest"})
    house.measured("restart refused while the launcher stands still", began)
    assert "stopped" in str(refused.value), refused.value
    assert time.monotonic() - began < 25
    # All others live on and are answered for; whoever is to end ends.
    assert house.states()["adapter.websocket"] == "running"
    house.ask("stop", {"workload": "adapter.websocket"})
    assert house.states()["adapter.websocket"] == "stopped"
    os.kill(zygote, signal.SIGCONT)
    house.ask("restart", {"workload": "adapter.rest"})
    assert house.send()["reply"]


def test_a_supervisor_stops_although_its_launcher_stands_still(house: House) -> None:
    house.open()
    house.family()
    os.kill(house.child("zygote"), signal.SIGSTOP)
    began = time.monotonic()
    os.kill(house.pid, signal.SIGTERM)
    house.process.wait(30)
    house.measured("stop while the launcher stands still", began)
    poll(lambda: not house.alive(), 2, lambda: f"all gone: {house.alive()}", pause=0.005)
    assert house.leftovers() == []


def test_a_stopped_broker_is_as_good_as_a_dead_one(house: House) -> None:
    house.open()
    house.family()
    os.kill(house.child("broker"), signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(ControlError):
        house.ask("restart", {"workload": "adapter.rest"})
    assert house.process.wait(30) == 1
    house.measured("broker stopped to everything gone", began)
    poll(lambda: not house.alive(), 2, lambda: f"all gone: {house.alive()}", pause=0.005)
    house.wait_record("supervisor", event="lost", workload="broker")
    assert house.leftovers() == []


def test_a_link_in_place_of_a_state_directory_costs_its_own_workload(house: House) -> None:
    elsewhere = house.folder / "elsewhere"
    elsewhere.mkdir()
    before = elsewhere.stat()
    house.state.mkdir(mode=0o711)
    (house.state / "w-executor-main").symlink_to(elsewhere)
    house.open()
    (error,) = house.ask("status")["policy_errors"]
    assert "executor-main.toml" in error and "w-executor-main" in error, error
    assert "executor.main" not in house.states()
    assert house.states()["adapter.websocket"] == "running"
    now = elsewhere.stat()
    assert (now.st_uid, now.st_gid, now.st_mode) == (before.st_uid, before.st_gid, before.st_mode)
    assert list(elsewhere.iterdir()) == []
