"""`ask`: the hosts that workloads wait for, and the operator's word on them.

What waits is read from the egress proxy's audit records, by a child that is nobody; of its words
only an id, a workload, a host and a port of a strict form come back to root.
"""

from __future__ import annotations

import argparse
import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from supervisor.cli import exits
from supervisor.cli.place import ask as ask_supervisor
from supervisor.cli.place import host_of
from supervisor.cli.privilege import become_nobody
from supervisor.cli.records import lines_backwards, open_records
from supervisor.cli.terminal import print_json, say, table
from supervisor.cli.token import lifetime
from supervisor.control import ControlError

_MARK = b'"event": "ask"'
_LOOKED_AT = 4096  # records read back; what waits is at most minutes old
_COLUMNS = ("id", "workload", "host", "port", "waits until (UTC)")
_FOUND = re.compile(r"([a-z0-9.-]{1,63}) ([a-z0-9.-]{1,253}) ([0-9]{1,5})")


def add(verbs: Any) -> None:
    """Declare the verb."""
    parser = verbs.add_parser("ask", help="hosts that workloads wait for; approve or refuse them")
    parser.add_argument("--json", action="store_true", help="what waits, for scripts")
    parser.set_defaults(run=show)
    actions = parser.add_subparsers(title="actions", metavar="ACTION")
    listing = actions.add_parser("list", help="what waits (also without an action)")
    listing.add_argument("--json", action="store_true", default=argparse.SUPPRESS)
    listing.set_defaults(run=show)
    for name, help_ in (("approve", "let it through for a while"), ("refuse", "say no")):
        action = actions.add_parser(name, help=help_)
        action.add_argument("id", metavar="ID", help="from the list")
        if name == "approve":
            action.add_argument("--uses", type=int, default=1, help="so many connections (1)")
        bounded = "such as 10m; at most, and by default, what the policy says"
        action.add_argument("--for", dest="seconds", type=lifetime, metavar="TIME", help=bounded)
        action.set_defaults(run=answer, verdict=name)


def show(arguments: argparse.Namespace) -> int:
    """Print what waits."""
    import json  # before root is gone

    fd = open_records(Path(host_of(arguments).paths.state))
    become_nobody()
    rows = waiting(json, fd)
    if arguments.json:
        print_json({"waiting": rows})
    elif not rows:
        say("Nobody waits.")
    else:
        table("", _COLUMNS, ([row.get(c, row["until"]) for c in _COLUMNS] for row in rows))
    return exits.OK


def answer(arguments: argparse.Namespace) -> int:
    """Send the operator's word on one of those to the supervisor."""
    found = _look_up(Path(host_of(arguments).paths.state), arguments.id)
    if found is None:
        raise ControlError(
            "unknown_id", f"nothing waits as {arguments.id}", "see `anchorhold ask`", exits.USAGE
        )
    workload, host, port = found
    values = {
        "workload": workload,
        "host": host,
        "port": int(port),
        "verdict": arguments.verdict,
        "seconds": arguments.seconds,
        "uses": getattr(arguments, "uses", 1),
    }
    done = ask_supervisor(arguments, "ask.answer", values)
    if arguments.verdict == "approve":
        say(f"{workload} may reach {host}:{port} {done['uses']} times in {done['seconds']} s")
    else:
        say(f"{workload} may not reach {host}:{port} for {done['seconds']} s")
    return exits.OK


def waiting(json: Any, fd: int) -> list[dict[str, Any]]:
    """What is held now, the oldest first; a later record of the same id ends it."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    seen: set[str] = set()
    found = []
    for _, line in zip(range(_LOOKED_AT), lines_backwards(fd, _MARK), strict=False):
        try:
            record = json.loads(line)
            row = {name: record[name] for name in ("id", "workload", "host", "port")}
            held = record["verdict"] == "held" and record["until"] > now
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        if record["event"] == "ask" and row["id"] not in seen:
            seen.add(row["id"])
            if held:
                found.append(row | {"until": record["until"], "asked": record.get("time")})
    return found[::-1]


def _look_up(state: Path, wanted: str) -> tuple[str, str, str] | None:
    """Workload, host and port of the question `wanted`, read by a child that is nobody."""
    import json

    records = open_records(state)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            become_nobody()
            for row in waiting(json, records):
                if row["id"] == wanted:
                    text = f"{row['workload']} {row['host']} {row['port']}"
                    os.write(writing, text.encode("ascii", "replace")[:512])
        finally:
            os._exit(0)
    os.close(writing)
    os.close(records)
    text = os.read(reading, 512).decode("ascii", "replace")
    os.close(reading)
    os.waitpid(child, 0)
    match = _FOUND.fullmatch(text)
    return (match[1], match[2], match[3]) if match else None
