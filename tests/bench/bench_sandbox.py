"""How long a sandbox takes to start, beside other sandboxes and container runtimes, in turns.

From the request to the first byte that the same program writes inside. Ours has more to do than any
of them: ids of its own, Landlock, two seccomp filters, limits, and the verification from outside.
Warm: the cell had become its plan when the start was asked for, as at a restart. Spare: a cell was
ready, its plan came with the request. Cold: nothing but the compiled plan.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
from pathlib import Path

from tests.bench.figure import Figure
from tests.host.sandbox.conftest import shipped_plan

ROUNDS = 100
OTHERS = {
    "crun": "crun run",
    "runc": "runc run",
    "firejail": "firejail --net=none",
    "systemd-run": "systemd-run --pipe",
}
BOUNDS = {"crun": 0.5}


def main() -> list[Figure]:
    """Medians and 95th percentiles in ms."""
    driver = Path(__file__).with_name("start_sandboxes.py")
    with tempfile.TemporaryDirectory() as scratch:
        shipped_plan(Path(scratch), "adapter.rest")  # leaves its host file there
        program = ["/usr/bin/python3", "-IS", str(driver), scratch, str(ROUNDS)]
        done = subprocess.run(program, stdout=subprocess.PIPE, check=True, timeout=300)
    times = {
        kind: sorted(s * 1000 for s in found) for kind, found in json.loads(done.stdout).items()
    }
    p50 = {kind: statistics.median(found) for kind, found in times.items()}
    p95 = {kind: found[len(found) * 95 // 100] for kind, found in times.items()}
    for name in sorted({*OTHERS} - {*times}):
        print(f"bench: {name}: NOT COMPARED, it is not installed or does not run here")
    figures = [
        Figure("start, warm", p50["warm"], "ms", p50["bwrap"], "bwrap --unshare-all", 1.0),
        Figure("start, warm, p95", p95["warm"], "ms", p95["bwrap"], "bwrap, p95", 1.0),
        Figure("start, spare cell", p50["spare"], "ms", p50["bwrap"], "bwrap --unshare-all", 1.3),
        Figure("start, cold", p50["cold"], "ms", p50["bwrap"], "bwrap --unshare-all"),
    ]
    figures += [
        Figure("start, warm", p50["warm"], "ms", p50[name], OTHERS[name], BOUNDS.get(name))
        for name in OTHERS
        if name in times
    ]
    return figures
