"""Thousands of starts and stops: nothing grows on any side."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from tests.host.sandbox.stand import PYTHON

WARM, CYCLES = 200, 2000
STARTER = Path(__file__).with_name("starter.py")
# What is measured in bytes or belongs to the whole machine may move a little; one page or one key
# that every cycle lost would be thousands.
MEMORY_SLACK, KEYS_SLACK, DYING_SLACK = 512 << 10, 100, 100


def test_two_thousand_starts_and_stops_leave_nothing(tmp_path: Path) -> None:
    tree = f"anchorhold-test-churn-{os.getpid()}"
    program = [PYTHON, "-IS", str(STARTER), str(tmp_path), tree, "cycles", str(WARM), str(CYCLES)]
    done = subprocess.run(program, stdout=subprocess.PIPE, text=True, timeout=300, check=True)
    told = json.loads(done.stdout.splitlines()[-1])
    before, after = told["before"], told["after"]
    print(f"figure: {CYCLES} cycles: {told['seconds'] / CYCLES * 1000:.1f} ms each")
    print(f"before: {before}\nafter:  {after}")
    for who, bytes_ in after.pop("memory").items():
        grown = bytes_ - before["memory"][who]
        assert grown <= MEMORY_SLACK, f"{who}: {grown} bytes more after {CYCLES} cycles"
    assert after.pop("keys") - before.pop("keys") <= KEYS_SLACK
    assert after.pop("dying cgroups") - before.pop("dying cgroups") <= DYING_SLACK
    del before["memory"]
    assert after == before
