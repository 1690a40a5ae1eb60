"""After a reboot everything is back by itself, with what it had."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.vm.installed import shared, status, wait_until_well
from tests.vm.machine import Machine
from tests.vm.snapshot import Snapshots

STATE = "/var/lib/anchorhold"
SUPERVISOR, EGRESS = f"{STATE}/audit/supervisor.jsonl", f"{STATE}/audit/service.egress.jsonl"


@pytest.fixture(scope="module")
def machine(request: pytest.FixtureRequest, snapshots: Snapshots) -> Iterator[Machine]:
    """The installed service, running."""
    with shared(request, snapshots) as machine:
        yield machine


def kept(machine: Machine) -> dict[str, Any]:
    """What a reboot must not change."""
    return {
        "policies.json": machine.get(f"{STATE}/policies.json"),
        "keys": machine.run("anchorhold keys list", timeout=120).stdout,
        "uids": {one["id"]: one["uid"] for one in status(machine)["workloads"]},
        "owners": machine.run(f"stat -c '%n %u:%g %a' {STATE}/*").stdout,
        "records": machine.run(f"stat -c %i {SUPERVISOR}").stdout,
    }


def test_everything_is_back_by_itself_with_its_keys_ids_and_records(machine: Machine) -> None:
    machine.run("anchorhold keys add before-the-reboot", stdin="sk-kept-8c1f27d0a4\n", timeout=120)
    before, records = kept(machine), machine.get(SUPERVISOR)
    assert before["keys"] == "before-the-reboot\n"
    given = len(machine.get(EGRESS).splitlines())
    began = time.monotonic()
    machine.reboot()
    wait_until_well(machine)
    print(f"reboot until RUNNING: {time.monotonic() - began:.0f} s")
    assert kept(machine) == before
    after = machine.get(SUPERVISOR)
    assert after.startswith(records) and len(after) > len(records)
    assert [json.loads(line)["hop"] for line in after.splitlines()].count("supervisor") > 10
    new = [json.loads(line) for line in machine.get(EGRESS).splitlines()[given:]]
    assert [record["keys"] for record in new if record["event"] == "keys"][-1:] == [1]


def test_the_vault_opens_through_the_machines_tpm_and_not_without(machine: Machine) -> None:
    """Last here: the TPM is taken away under a service that runs, and given back."""
    assert status(machine)["tpm"]["mode"] == "device"
    held = machine.run(f"find {STATE} -path '*swtpm*' -type f").stdout
    assert held == "", "no software TPM of ours has any state"
    machine.run("chmod 0 /dev/tpmrm0 && chown 0:0 /dev/tpmrm0")
    machine.run("anchorhold restart service.egress", timeout=120)
    gaps = {gap["guarantee"]: gap["why"] for gap in status(machine)["degraded"]}
    assert gaps["vault"].startswith("TPM_DENIED")
    machine.run("chown tss:tss /dev/tpmrm0 && chmod 660 /dev/tpmrm0")
    machine.run("anchorhold restart service.egress", timeout=120)
    assert status(machine)["state"] == "running"
