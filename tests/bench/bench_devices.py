"""What the device program adds to a start: attached to a new cgroup and asked for, beside making
and removing that cgroup. The program itself is loaded once."""

from __future__ import annotations

import os
import statistics
import time

from sandbox import devices
from sandbox.cgroup import find_mount
from sandbox.plan import Device, Limits, SandboxPlan, SeccompSpec
from tests.bench.figure import Figure

ROUNDS = 300


def main() -> list[Figure]:
    """Medians in us."""
    mounts = (Device("/dev/null", 1, 3), Device("/dev/urandom", 1, 9))
    plan = SandboxPlan(
        "bench", "tool", "", ("/usr/bin/true",), (), 1, 1, mounts, SeccompSpec(()),
        Limits(None, None, None),
    )  # fmt: skip
    began = time.perf_counter()
    devices.load(devices.rules(plan))
    loaded = time.perf_counter() - began
    times: dict[str, list[float]] = {"cgroup": [], "program": []}
    for number in range(ROUNDS):
        path = find_mount() / f"anchorhold-bench-{os.getpid()}-{number}"
        start = time.perf_counter()
        path.mkdir()
        made = time.perf_counter()
        devices.attach(path, plan)
        assert devices.attached(path, plan)
        asked = time.perf_counter()
        path.rmdir()
        times["program"].append(asked - made)
        times["cgroup"].append(made - start + time.perf_counter() - asked)
    median = {kind: statistics.median(found) * 1e6 for kind, found in times.items()}
    against = ("us", median["cgroup"], "mkdir and rmdir of a cgroup")
    return [
        Figure("device program, attach and ask", median["program"], *against, 2.0),
        Figure("device program, loaded once per list", loaded * 1e6, *against),
    ]
