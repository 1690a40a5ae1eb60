"""The rig itself: what a machine's commands, files, restarts and snapshots promise."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.vm.machine import Machine

pytestmark = pytest.mark.snapshot("plain")


def test_a_command_ends_by_its_exit_status(vm: Machine) -> None:
    done = vm.run("echo out; echo err >&2; exit 7", check=False)
    assert (done.stdout, done.stderr, done.exit, done.signal) == ("out\n", "err\n", 7, None)


def test_what_was_synced_survives_a_power_cut(cold: Callable[..., Machine]) -> None:
    machine = cold("plain")
    machine.run("echo kept >kept && sync")
    machine.run("echo lost >lost")
    machine.power_cut()
    machine.boot()
    assert machine.get("/root/kept") == b"kept\n"
    assert machine.run("test -s lost", check=False).exit == 1
