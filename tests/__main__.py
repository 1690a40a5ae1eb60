"""Run the test tiers, each in a process of its own, and close with one honest line per tier.

    python -m tests            every tier
    python -m tests unit host  these

A tier that cannot run here is named with the reason. Where CI is set, a tier that exists and cannot
run is a failure, because a green result would claim what nobody looked at.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from tests.vm import places
from tests.vm.failures import RigFailure
from tests.vm.programs import PACKAGES, need

TESTS = Path(__file__).resolve().parent

# An image, its snapshots, and the packages they are made of.
MACHINES_GIB = 6.0


@dataclass(frozen=True)
class Tier:
    """One folder of tests; `minutes` bounds the whole of it, `root` says that it needs uid 0,
    `machine` that it boots virtual machines, `target` what make calls it if not by its name. `core`
    names the modules that run when all tiers do; asked for by name, the whole tier runs."""

    name: str
    minutes: int
    root: bool = False
    machine: bool = False
    target: str = ""
    core: tuple[str, ...] = ()


# What every commit proves in a real machine; power cuts, measured boot and the rest take longer.
VM_CORE = ("test_rig.py", "test_scene.py", "test_limits.py", "test_reboot.py")

TIERS = (
    Tier("unit", minutes=10),
    Tier("host", minutes=25, root=True),
    Tier("attacks", minutes=10, root=True),
    Tier("clients", minutes=5, root=True),
    Tier("browser", minutes=10),
    Tier("vm", minutes=60, root=True, machine=True, target="vm-test", core=VM_CORE),
)


@dataclass
class Outcome:
    """What became of a tier: `line` without the tier's name, `details` below it."""

    line: str
    ok: bool
    details: list[str] = field(default_factory=list)


def present(tier: Tier, tests: Path = TESTS) -> bool:
    """Whether the tier has any test module."""
    return any((tests / tier.name).rglob("test_*.py"))


def obstacle(tier: Tier) -> str | None:
    """Why this tier cannot run here, with what would help; None if it can."""
    if tier.root and os.geteuid() != 0:
        return f"needs root: sudo make {tier.target or tier.name}"
    if tier.machine:
        return machine_obstacle()
    if tier.root and " - cgroup2 " not in Path("/proc/self/mountinfo").read_text():
        return "no cgroup v2 is mounted here (a container without its own?)"
    return None


def machine_obstacle() -> str | None:
    """What keeps virtual machines from this machine: a program, or room for images."""
    try:
        for program in PACKAGES:
            need(program)
        cache = places.cache()
        cache.mkdir(parents=True, exist_ok=True)
        places.need_space(cache, MACHINES_GIB, "the VM tier")
    except RigFailure as failure:
        return " ".join(str(failure).split())
    return None


def run(tier: Tier, whole: bool) -> Outcome:
    """Run one tier under pytest; tests/conftest.py writes the counts that the line reports."""
    core = () if whole else tier.core
    paths = [str(TESTS / tier.name / module) for module in core] or [str(TESTS / tier.name)]
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", "-q", *paths],
            cwd=TESTS.parent,
            env=os.environ | {"ANCHORHOLD_TIER_REPORT": str(report)},
            start_new_session=True,
        )
        try:
            status = process.wait(tier.minutes * 60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return Outcome(f"FAILED (not finished within {tier.minutes} minutes)", ok=False)
        except KeyboardInterrupt:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        if not report.exists():
            return Outcome(f"FAILED (pytest ended with status {status})", ok=False)
        outcome = judge(status, json.loads(report.read_text()))
    if core:
        all_ = {path.name for path in (TESTS / tier.name).glob("test_*.py")}
        rest = ", ".join(sorted(name[5:-3] for name in all_ - set(core)))
        outcome.details.append(f"core alone; NOT RUN: {rest}; run: make {tier.target}")
    return outcome


def judge(status: int, report: dict[str, object]) -> Outcome:
    """The outcome of a finished run from pytest's exit status and the counts of conftest.py."""
    counts = report["counts"]
    assert isinstance(counts, dict)
    text = ", ".join(f"{number} {what}" for what, number in counts.items() if number)
    skips = report.get("skips") or {}
    assert isinstance(skips, dict)
    details = [f"skipped {number}: {reason}" for reason, number in skips.items()]
    if not counts.get("passed") and status == 0:
        return Outcome(f"FAILED (nothing passed: {text or 'no tests'})", False, details)
    if status != 0:
        return Outcome(f"FAILED ({text or 'no tests'}; pytest status {status})", False, details)
    return Outcome(f"ran ({text})", True, details)


def main(names: list[str]) -> int:
    """Run the named tiers, or all; 0 only if each that exists ran and passed."""
    known = {tier.name: tier for tier in TIERS}
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"no such tier: {', '.join(unknown)}; there are: {', '.join(known)}")
        return 2
    strict = bool(names) or bool(os.environ.get("CI"))
    outcomes: dict[str, Outcome] = {}
    for tier in [known[name] for name in names] or TIERS:
        if not present(tier):
            outcomes[tier.name] = Outcome("not present in this tree", ok=not names)
        elif (reason := obstacle(tier)) is not None:
            outcomes[tier.name] = Outcome(f"NOT RUN: {reason}", ok=not strict)
        else:
            print(f"--- tier {tier.name}", flush=True)
            outcomes[tier.name] = run(tier, whole=bool(names))
    for name, outcome in outcomes.items():
        print(f"tier {name}: {outcome.line}")
        for detail in outcome.details:
            print(f"    {detail}")
    return 0 if all(outcome.ok for outcome in outcomes.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
