"""`doctor`: what this host can and cannot guarantee, and how to change that."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from supervisor.cli import exits
from supervisor.cli.place import host_of
from supervisor.cli.terminal import complain, print_json, say, table


def add(verbs: Any) -> None:
    """Declare the verb."""
    parser = verbs.add_parser("doctor", help="what this host can and cannot guarantee; the fix")
    parser.add_argument("--json", action="store_true", help="for scripts")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """0 when all guarantees hold or are waived by name; 1 when one is missing."""
    from supervisor.doctor import check

    present = Path(arguments.host_file).exists()
    found = check(host_of(arguments) if present else None)
    missing = [each for each in found if each.state == "missing" and not each.advice]
    if arguments.json:
        print_json([each.as_json() for each in found])
        return exits.FAILED if missing else exits.OK
    rows = [
        ("advice" if each.advice and each.state == "missing" else each.state, each.name,
         each.evidence, f"waived: {each.why_waived}" if each.state == "waived" else each.fix)
        for each in found
    ]  # fmt: skip
    table("", ("state", "guarantee", "evidence", "what to do"), rows)
    waived = sum(each.state == "waived" for each in found)
    say(f"{len(missing)} missing, {waived} waived by the host file")
    if waived:
        say("DEGRADED: " + ", ".join(each.name for each in found if each.state == "waived"))
    if not present:
        complain(f"no host file at {arguments.host_file}: waivers and installed files not checked")
    return exits.FAILED if missing else exits.OK
