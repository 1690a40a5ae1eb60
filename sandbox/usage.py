"""What one workload uses now, as its cgroup tells: memory, processes, processor time, pressure.

Source: the kernel's cgroup-v2.rst and Documentation/accounting/psi.rst. None stands for what this
host does not tell: a controller that version 1 has, pressure that needs `psi=1` at boot.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

RESOURCES = ("cpu", "memory", "io")


def usage(leaf: Path) -> dict[str, Any]:
    """Plain data. Bytes, counts, seconds; `limit` and `high` None also where there is no limit.

    Pressure is the share of the last ten seconds, in percent, in which some or all of the
    workload's tasks waited for the resource. `throttled` is the share of periods in which cpu.max
    ran out, since the start.
    """
    stat = events(leaf, "cpu.stat")
    return {
        "memory": {
            "now": _number(leaf, "memory.current"),
            "high": _number(leaf, "memory.high"),
            "limit": _number(leaf, "memory.max"),
            "swap": _number(leaf, "memory.swap.current"),
            "oom_kills": events(leaf, "memory.events").get("oom_kill"),
        },
        "pids": {"now": _number(leaf, "pids.current"), "limit": _number(leaf, "pids.max")},
        "cpu": {
            "seconds": round(stat["usage_usec"] / 1e6, 3) if "usage_usec" in stat else None,
            "throttled": round(stat["nr_throttled"] / max(stat["nr_periods"], 1), 3)
            if "nr_periods" in stat
            else None,
        },
        "pressure": {name: pressure(leaf, name) for name in RESOURCES},
    }


def events(leaf: Path, file: str) -> dict[str, int]:
    """A flat keyed file of numbers; empty where it does not exist."""
    lines = (_read(leaf, file) or "").splitlines()
    return {key: int(value) for key, value in map(str.split, lines)}


def pressure(leaf: Path, resource: str) -> dict[str, float] | None:
    """avg10 of "some" and "full" in percent; None where the kernel does not measure it."""
    found = {}
    for line in (_read(leaf, f"{resource}.pressure") or "").splitlines():
        kind, average = line.split()[:2]
        found[kind] = float(average.removeprefix("avg10="))
    return found or None


def _number(leaf: Path, file: str) -> int | None:
    text = (_read(leaf, file) or "").strip()
    return int(text) if text.isdecimal() else None


def _read(leaf: Path, file: str) -> str | None:
    try:
        return (leaf / file).read_text()
    except OSError:  # ENOENT; EOPNOTSUPP for pressure that is switched off; ENODEV when it ended
        return None
