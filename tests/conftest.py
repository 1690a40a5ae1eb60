"""What all tests share: the tree on the path, loud skips, the counts `make test` prints."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

# Root tiers, by the make target that runs them.
ROOT_TIERS = {"host": "host", "attacks": "attacks", "clients": "clients", "vm": "vm-test"}


def pytest_collection_finish(session: pytest.Session) -> None:
    """Refuse to run a root tier as another user: skipping it would look like passing it."""
    if os.geteuid() == 0:
        return
    tests = ROOT / "tests"
    for item in session.items:
        tier = item.path.relative_to(tests).parts[0] if item.path.is_relative_to(tests) else ""
        if tier in ROOT_TIERS:
            raise pytest.UsageError(
                f"tests/{tier} makes real sandboxes or machines: it needs root (uid 0).\n"
                f"Run: sudo make {ROOT_TIERS[tier]}, or the unit tier alone: make unit"
            )


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    place = report.longrepr
    text = place[2] if isinstance(place, tuple) else str(place)
    return text.removeprefix("Skipped: ")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name each reason for a skip, and leave the counts where tests/__main__.py looks for them."""
    stats = terminalreporter.stats
    skips = Counter(_reason(report) for report in stats.get("skipped", []))
    for reason, number in skips.items():
        terminalreporter.write_line(f"NOT TESTED ({number}): {reason}", yellow=True)
    if target := os.environ.get("ANCHORHOLD_TIER_REPORT"):
        kinds = ("passed", "failed", "error", "skipped", "xfailed", "xpassed")
        counts = {kind: len(stats.get(kind, [])) for kind in kinds}
        Path(target).write_text(json.dumps({"counts": counts, "skips": skips}))
