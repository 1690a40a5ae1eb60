"""The power goes at random moments while everything is busy; what was acknowledged is there after.

A cut is SIGKILL to QEMU, so the guest's memory is gone with its page cache, its file system's
journal commit under way and every program's plans. What the guest had sent to its disk survives,
flushed or not: with `cache=writeback` it lies in the page cache of the machine outside, which keeps
its power. So these tests show that our programs write, sync and rename in an order that outlives
their own death and the kernel's, on a journaled ext4. They do not show what becomes of the data in
a drive that acknowledges a flush it has not done, or that reorders what was not flushed.

    ANCHORHOLD_POWER_CUTS   how many (20)
    ANCHORHOLD_SEED         the moments of an earlier run; each run prints its own
"""

from __future__ import annotations

import json
import os
import random
import secrets
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.vm.acknowledged import Acknowledged, Records
from tests.vm.machine import Machine

CUTS = int(os.environ.get("ANCHORHOLD_POWER_CUTS", "20"))
STATE = "/var/lib/anchorhold"
AUDITS = ("supervisor", "service.ingress", "service.egress", "service.probe-reader")
# A busy machine takes four times as long as a quiet one.
START = 300
# Of all cuts: those that hit the start of the service, and how long the others let it work.
DURING_START, UNDER_LOAD = 0.25, 12.0
# The egress proxy's records are synced soon, not before it goes on.
SOON = 5.0
JOURNAL = """
import sqlite3
db = sqlite3.connect("file:{}?mode=ro", uri=True)
print(*db.execute("PRAGMA integrity_check").fetchone())
"""


class Cuts:
    """One machine and what was found in it over all its boots."""

    def __init__(self, machine: Machine, moments: random.Random) -> None:
        self.machine = machine
        self.moments = moments
        self.cuts = self.early = self.torn = 0
        self.start = 0.0
        self._ends: list[float] = []
        self._load = ""

    def prepare(self) -> None:
        """Keys, tokens and the load, on the disk."""
        run = self.machine.run
        self.machine.boot()
        began = time.monotonic()
        self.service_up()
        self.start = time.monotonic() - began
        run("anchorhold keys add practice", stdin=secrets.token_hex(20), timeout=120)
        tokens = [
            run(
                f"anchorhold token issue --client load --workload adapter.{kind} --lifetime 12h",
                timeout=120,
            ).stdout.strip()
            for kind in ("rest", "websocket")
        ]
        self.machine.put("/root/load.py", Path(__file__).with_name("load.py"))
        run("sync")
        words = " ".join(["/usr/bin/python3", "-IS", "/root/load.py", *tokens])
        self._load = f"systemd-run --quiet --collect --unit=load {words}"
        run(self._load)

    def service_up(self) -> None:
        """Wait for the service; a start that failed is not waited for."""
        up = "systemctl is-active --quiet anchorhold"
        done = self.machine.wait(f"{up} || systemctl is-failed anchorhold", START)
        assert done.stdout == "", self.machine.run("journalctl -u anchorhold | tail -50").stdout

    def acknowledged(self) -> Acknowledged:
        """What the world outside has seen."""
        return Acknowledged.read(self.machine.console())

    def cut(self) -> None:
        """Let it work for a random while, pull the plug, switch it on again, look at the disk."""
        if self.moments.random() < DURING_START:
            self.early += 1
            time.sleep(self.moments.uniform(0, self.start))
        else:
            self.works()
            time.sleep(self.moments.uniform(0, UNDER_LOAD))
        self.machine.power_cut()
        self.cuts += 1
        self._ends.append(self.acknowledged().last)
        self.machine.boot()
        self.machine.run(self._load)
        self.disk_is_whole()

    def disk_is_whole(self) -> None:
        """Every acknowledged record is in the audit log, and nothing else was spoilt."""
        seen = self.acknowledged()
        records = {name: self._records(name) for name in AUDITS}
        for name, found in records.items():
            assert len(found.torn) <= self.cuts, (name, found.torn)
            assert not found.swallowed(), name
        self.torn = sum(len(found.torn) for found in records.values())
        lost = set(seen.answered) - records["service.ingress"].requests()
        assert not lost, f"answered, and not in the gateway's audit log: {lost}"
        lost = {
            request
            for request in set(seen.answered) - records["service.egress"].requests()
            if not any(0 <= end - seen.answered[request] < SOON for end in self._ends)
        }
        assert not lost, f"answered long before the cut, not in the egress log: {lost}"
        added = {record.get("key") for record in records["supervisor"].whole}
        assert seen.stored <= added, "stored, and not in the supervisor's audit log"
        assert set(json.loads(self.machine.get(f"{STATE}/policies.json"))) == {"ids", "versions"}

    def _records(self, name: str) -> Records:
        return Records.read(self.machine.get(f"{STATE}/audit/{name}.jsonl"))

    def works(self) -> None:
        """The service is up, the vault open with every acknowledged key, messages are answered."""
        run = self.machine.run
        before = len(self.acknowledged().answered)
        self.service_up()
        seen = self.acknowledged()
        names = set(run("anchorhold keys list", timeout=120).stdout.split())
        assert {"practice"} | seen.stored <= names
        assert not seen.gone & names
        assert self._generation() > seen.commits
        status = json.loads(run("anchorhold status --json", timeout=120).stdout)
        assert status["degraded"] == [] and status["state"] == "running", status["degraded"]
        # SQLite resolves the link /proc/PID/root, and would look where no image is mounted.
        inside = f"nsenter --target {self._supervisor()} --mount"
        found = run(f"{inside} find {STATE} -name workflows.sqlite", timeout=120).stdout.split()
        assert found
        for path in found:
            command = [*inside.split(), "/usr/bin/python3", "-c", JOURNAL.format(path)]
            assert run(command, timeout=120).stdout == "ok\n"
        deadline = time.monotonic() + START
        while len(self.acknowledged().answered) == before:
            assert time.monotonic() < deadline, run("journalctl -u load | tail -20").stdout
            time.sleep(0.5)

    def mounted(self) -> str:
        """The state directory as the supervisor sees it, with the images mounted in it."""
        return f"/proc/{self._supervisor()}/root{STATE}"

    def _supervisor(self) -> str:
        return self.machine.run("systemctl show -P MainPID anchorhold").stdout.strip()

    def _generation(self) -> int:
        find = f"find {self.mounted()} -name vault.json"
        (found,) = self.machine.run(find, timeout=120).stdout.split()
        header = json.loads(self.machine.get(found))["header"]
        return int(header["gen"])


def test_what_was_acknowledged_outlives_power_cuts(
    cold: Callable[..., Machine], capsys: pytest.CaptureFixture[str]
) -> None:
    seed = int(os.environ.get("ANCHORHOLD_SEED") or secrets.randbelow(1 << 32))
    began = time.monotonic()
    with capsys.disabled():
        print(f"\npower: {CUTS} cuts, ANCHORHOLD_SEED={seed}", flush=True)
    cuts = Cuts(cold("installed"), random.Random(seed))
    cuts.prepare()
    for _ in range(CUTS):
        cuts.cut()
        with capsys.disabled():
            done, seconds = len(cuts.acknowledged().answered), time.monotonic() - began
            print(f"power: cut {cuts.cuts}, {done} answered, {seconds:.0f} s", flush=True)
    cuts.works()
    machine = cuts.machine
    machine.run("systemctl stop load && anchorhold keys add last", stdin="0123456789", timeout=240)
    assert machine.run(f"find {cuts.mounted()} -name '*.new' -o -name '*.tmp'").stdout == ""
    assert "EXT4-fs error" not in machine.run("journalctl --no-pager -k").stdout
    seen = cuts.acknowledged()
    assert seen.answered and seen.stored, "there was no load"
    with capsys.disabled():
        print(
            f"power: {cuts.cuts} cuts, {cuts.early} of them during the start; kept:"
            f" {len(seen.answered)} answered messages, {seen.commits} changes of the vault;"
            f" {cuts.torn} torn lines; {time.monotonic() - began:.0f} s",
            flush=True,
        )
