"""`status`: what runs, how it is confined, and what this host cannot give."""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

from supervisor.cli import exits
from supervisor.cli.place import ask
from supervisor.cli.terminal import print_json, say, size, table


def add(verbs: Any) -> None:
    """Declare the verb."""
    parser = verbs.add_parser("status", help="what runs, how it is confined, what is degraded")
    parser.add_argument("--layers", action="store_true", help="every layer with its evidence")
    parser.add_argument("--json", action="store_true", help="all of it, for scripts")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """0 when the supervisor answers, also when it is DEGRADED; 4 when it does not."""
    status = ask(arguments, "status")
    if arguments.json:
        print_json(status)
        return exits.OK
    degraded = status["degraded"]
    say(f"Anchorhold {status['version']}: {'DEGRADED' if degraded else status['state']}")
    for each in degraded:
        say(f"  DEGRADED  {each['guarantee']}: {each['why']}")
    tpm = status["tpm"]
    say(f"  TPM: {tpm['mode']}, {tpm['level']}. {tpm['note']}")
    probes = ", ".join(
        f"{key} {value}" for key, value in status["probes"].items() if not isinstance(value, dict)
    )
    say(f"  probes: {probes or 'none'}")
    rows = [
        (w["id"], w["kind"], w["state"], w["pid"], w["uid"], w["restarts"], size(w["rss"]),
         _verdicts(w["layers"]), _policy(w["policy"]))
        for w in status["workloads"]
    ]  # fmt: skip
    columns = ("workload", "kind", "state", "pid", "uid", "restarts", "memory", "layers", "policy")
    table("", columns, rows)
    for workload in status["workloads"]:
        if workload["error"]:
            say(f"  {workload['id']}: {workload['error']}")
    if arguments.layers:
        for workload in status["workloads"]:
            layers(workload["id"], workload["layers"])
    return exits.OK


def layers(title: str, found: list[dict[str, Any]]) -> None:
    """One workload's layers: promised, seen from outside, verdict."""
    rows = [(x["layer"], x["promised"], x["evidence"], x["verdict"]) for x in found]
    table(title, ("layer", "promised", "evidence", "verdict"), rows)


def _verdicts(found: list[dict[str, Any]]) -> str | None:
    counts = Counter(str(layer["verdict"]) for layer in found)
    return ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items())) or None


def _policy(policy: dict[str, Any]) -> str:
    return f"{policy['file']} v{policy['version']} {policy['digest'][:12]}"
