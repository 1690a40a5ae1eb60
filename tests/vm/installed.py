"""The installed service in a machine, as the acceptance tests look at it."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.vm import places
from tests.vm.failures import MachineFailed
from tests.vm.machine import Machine
from tests.vm.snapshot import Snapshots

FAILED = Path(__file__).resolve().parents[2] / ".cache/vm/failed"
INSIDE = Path(__file__).parent / "inside"
UNIT = "/sys/fs/cgroup/anchorhold.slice/anchorhold.service"
# Whose policy is in the package, without what runs for a moment and the software TPM, which a
# machine with a TPM does not start.
WORKLOADS = (
    "adapter.rest",
    "adapter.websocket",
    "executor.main",
    "model.practice",
    "service.egress",
    "service.ingress",
    "service.probe-reader",
)
# A start takes 15 to 45 s without hardware virtualisation, several times that on a busy machine.
START_TIME = 300


@contextmanager
def shared(request: pytest.FixtureRequest, snapshots: Snapshots) -> Iterator[Machine]:
    """One machine, restored from "installed", for all tests of a module.

    When one of them fails, console and journal are kept as those of single tests are.
    """
    failed = request.session.testsfailed
    with places.working_folder(places.cache() / "run") as folder:
        machine = snapshots.restore("installed", folder)
        try:
            for program in INSIDE.glob("*.py"):
                machine.put(f"/root/inside/{program.name}", program)
            yield machine
            if request.session.testsfailed > failed:
                _keep(machine, FAILED / Path(str(request.node.name)).stem)
        finally:
            machine.stop()


def _keep(machine: Machine, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for log in machine.folder.glob("*.log"):
        shutil.copy(log, folder)
    journal = machine.run("journalctl --no-pager | tail -n 5000", timeout=60, check=False)
    (folder / "journal.log").write_text(journal.stdout)
    print(f"console and journal: {folder}")


def status(machine: Machine) -> dict[str, Any]:
    """`anchorhold status --json`."""
    said = machine.run("anchorhold status --json", timeout=120).stdout
    found: dict[str, Any] = json.loads(said)
    return found


def pids(machine: Machine) -> dict[str, int]:
    """Every workload's process."""
    return {one["id"]: one["pid"] for one in status(machine)["workloads"]}


def wait_until_well(machine: Machine, seconds: float = START_TIME) -> dict[str, Any]:
    """Until the status says RUNNING, which is: every workload runs, nothing is given up."""
    deadline = time.monotonic() + seconds
    while True:
        done = machine.run("anchorhold status --json", timeout=120, check=False)
        found: dict[str, Any] = json.loads(done.stdout) if done.exit == 0 else {}
        if found.get("state") == "running":
            return found
        if time.monotonic() > deadline:
            gaps = found.get("degraded", done.stderr)
            raise MachineFailed(f"not RUNNING within {seconds:g} s: {gaps}", machine.console())
        time.sleep(0.5)
