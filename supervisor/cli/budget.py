"""`budget`: what is used of each budget, what requests under way hold, and when it resets.

Read from the egress proxy's audit records, which it opens as root and reads as nobody: the newest
state of each workload's budgets since the proxy started.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from supervisor.cli import exits
from supervisor.cli.place import host_of
from supervisor.cli.privilege import become_nobody
from supervisor.cli.records import lines_backwards, open_records
from supervisor.cli.terminal import print_json, say, table

_MARK = b'"budgets": ['
_COLUMNS = ("workload", "budget", "used", "held", "limit", "resets (UTC)")


def add(verbs: Any) -> None:
    """Declare the verb."""
    parser = verbs.add_parser("budget", help="what is used of the budgets, and when they reset")
    parser.add_argument("workload", nargs="?", help="all of them without it")
    parser.add_argument("--json", action="store_true", help="all of it, for scripts")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print one line per budget and unit; 1 when the proxy cannot open its book of budgets."""
    import json  # before root is gone, and with it perhaps the right to read the library

    fd = open_records(Path(host_of(arguments).paths.state))
    become_nobody()
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    found, problem = latest(json, lines_backwards(fd, _MARK), now)
    rows = [row for row in found if arguments.workload in (None, row["workload"])]
    if arguments.json:
        print_json({"problem": problem, "budgets": rows})
    elif problem:
        say(f"The egress proxy cannot count: {problem}. See `anchorhold logs --audit`.")
    elif not rows:
        say("No policy in force has a budget." if not found else "This workload has no budget.")
    else:
        table("", _COLUMNS, ([_shown(row, name) for name in _COLUMNS] for row in rows))
    return exits.FAILED if problem else exits.OK


def latest(json: Any, lines: Iterator[bytes], now: str) -> tuple[list[dict[str, Any]], str | None]:
    """The newest row of each budget out of records, newest first, and the proxy's own problem.

    Ends at the record that the proxy wrote at its start. A window that is over by `now` (RFC 3339,
    UTC) counts nothing any more.
    """
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    problem = None
    for line in lines:
        try:
            record = json.loads(line)
            rows = record.get("budgets", [])
            keyed = [((r["workload"], r["id"], r["unit"]), r) for r in rows]
            last = record["event"] == "budgets"
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue  # half a line, or none of ours
        for key, row in keyed:
            found.setdefault(key, row)
        if last:
            problem = record.get("reason")
            break
    for row in found.values():
        if str(row.get("resets", "")) <= now:
            row |= {"used": 0, "reserved": 0, "resets": None}
    return [found[key] for key in sorted(found)], problem


def _shown(row: dict[str, Any], column: str) -> object:
    if column == "budget":
        return row["id"]
    if column == "resets (UTC)":
        return row["resets"] or "has reset"
    value = row["reserved" if column == "held" else column]
    if row["unit"] == "money" and column != "workload":
        value = f"{value / 1e9:.4f}"
    if column == "limit":
        unit = row["currency"] or row["unit"].replace("_", " ")
        return f"{value} {unit} a {row['window']}"
    return value
