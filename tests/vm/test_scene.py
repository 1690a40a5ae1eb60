"""The whole scene of the main job, played on the service that systemd runs."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.vm.installed import START_TIME, shared, status, wait_until_well
from tests.vm.machine import Machine
from tests.vm.snapshot import Snapshots

ATTACKS = ("files", "network", "ptrace", "mount", "dns", "websocket")
PROMISES = 11  # of "The way of the messages"


@pytest.fixture(scope="module")
def machine(request: pytest.FixtureRequest, snapshots: Snapshots) -> Iterator[Machine]:
    """The installed service, running."""
    with shared(request, snapshots) as machine:
        yield machine


def play(machine: Machine) -> dict[str, str]:
    """The demo on the running service, every row of it passed: the row of each attack, by name."""
    layers = sum(len(one["layers"]) for one in status(machine)["workloads"])
    done = machine.run("anchorhold demo --running", timeout=400)
    print(f"demo: {done.seconds:.0f} s")
    assert "every layer held; state RUNNING" in done.stdout
    rows = re.findall(r"^ +(.*?) +(PASS|FAIL|DEGRADED)\s*$", done.stdout, re.MULTILINE)
    wrong = [text for text, verdict in rows if verdict != "PASS"]
    assert wrong == []
    assert len(rows) == layers + len(ATTACKS) + PROMISES, done.stdout
    # The layers' rows, which may begin alike, come before.
    texts = [text for text, _ in rows[layers:]]
    return {name: next(t for t in texts if re.match(rf"{name}  +\S", t)) for name in ATTACKS}


def test_messages_pass_and_every_attack_is_refused(machine: Machine) -> None:
    found = play(machine)
    for name in ("files", "dns"):
        assert "not recorded: [probes] denials is false" in found[name]


def test_with_denials_every_attack_is_on_record(machine: Machine) -> None:
    machine.run("sed -i 's/^denials = false$/denials = true/' /etc/anchorhold/host.toml")
    machine.run("systemctl restart anchorhold", timeout=START_TIME)
    wait_until_well(machine)
    found = play(machine)
    for name, event in (
        ("files", "denied openat"), ("ptrace", "sigsys ptrace"),
        ("mount", "sigsys mount"), ("dns", "denied socket"), ("websocket", "gateway record"),
    ):  # fmt: skip
        assert event in found[name]
    # Only a Landlock that knows ports (Linux 6.7) refuses; before, an empty loopback answers.
    assert re.search("denied connect|own empty loopback", found["network"])
