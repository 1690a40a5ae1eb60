"""How long a sandbox takes to start, against `bwrap --unshare-all`, in turns.

From the request to the first byte that the same program writes inside. Ours has more to do: user
namespace ids, Landlock, two seccomp filters, limits, and the verification from outside.
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


def main() -> list[Figure]:
    """Medians in ms."""
    driver = Path(__file__).with_name("start_sandboxes.py")
    with tempfile.TemporaryDirectory() as scratch:
        shipped_plan(Path(scratch), "adapter.rest")  # leaves its host file there
        program = ["/usr/bin/python3", "-IS", str(driver), scratch, str(ROUNDS)]
        done = subprocess.run(program, stdout=subprocess.PIPE, check=True, timeout=120)
    median = {kind: statistics.median(s) * 1000 for kind, s in json.loads(done.stdout).items()}
    against = ("ms", median["bwrap"], "bwrap --unshare-all")
    return [
        Figure("sandbox start, plan expected", median["warm"], *against, 1.0),
        Figure("sandbox start, spare cell", median["spare"], *against, 1.3),
        Figure("sandbox start, nothing ready", median["cold"], *against),
    ]
