"""`status`: what runs, how it is confined, and what this host cannot give."""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

from supervisor.cli import exits
from supervisor.cli.place import ask
from supervisor.cli.terminal import print_json, say, size, table, width

_COLUMNS = (
    "workload", "kind", "state", "pid", "uid", "restarts", "memory", "layers", "policy",
)  # fmt: skip
_ABSENT = "absent"  # this host does not tell
_ONLY_WHEN_WIDE, _WIDE = ("kind", "uid", "policy"), 120


def add(verbs: Any) -> None:
    """Declare the verb."""
    parser = verbs.add_parser("status", help="what runs, how it is confined, what is degraded")
    parser.add_argument("--layers", action="store_true", help="every layer with its evidence")
    parser.add_argument("--limits", action="store_true", help="what each uses of its limits")
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
        if each.get("fix"):
            say(f"            to do: {each['fix']}")
    tpm = status["tpm"]
    bound = f"PCR {', '.join(map(str, tpm['pcrs']))}" if tpm["pcrs"] else "no PCR"
    say(f"  TPM: {tpm['mode']}, {tpm['level']}, bound to {bound}. {tpm['note']}")
    say(f"  probes: {_probes(status['probes'])}")
    columns = [name for name in _COLUMNS if width() >= _WIDE or name not in _ONLY_WHEN_WIDE]
    rows = [_row(workload) for workload in status["workloads"]]
    table("", columns, ([row[name] for name in columns] for row in rows))
    for workload in status["workloads"]:
        if workload["error"]:
            say(f"  {workload['id']}: {workload['error']}")
        elif workload["state"] == "running" and workload["last_end"]:
            say(f"  {workload['id']}: started again after {workload['last_end']}")
        for relaxation in workload.get("relaxed", ()):
            say(f"  {workload['id']}: RELAXED  {relaxation}")
    memory = status.get("memory") or {"limits": 0, "machine": 0}
    if arguments.limits:
        limits(status["workloads"])
        together, machine = size(memory["limits"]), size(memory["machine"])
        say(f"  memory: all limits together {together}, this machine has {machine}")
    if memory["limits"] > memory["machine"]:
        say("  WARNING: the memory limits together are more than this machine has")
    if arguments.layers:
        for workload in status["workloads"]:
            layers(workload["id"], workload["layers"])
    return exits.OK


def _row(workload: dict[str, Any]) -> dict[str, object]:
    shown = {name: workload.get(name) for name in ("kind", "state", "pid", "uid", "restarts")}
    return shown | {
        "workload": workload["id"],
        "memory": size(workload["rss"]),
        "layers": _verdicts(workload["layers"]),
        "policy": _policy(workload["policy"]),
    }


def _probes(probes: dict[str, Any]) -> str:
    """`watching, N events, N lost`; the programs and headers are in --json."""
    counts = probes.get("workloads", {}).values()
    seen = sum(each["seen"] + each["suppressed"] for each in counts)
    lost = sum(each["lost"] for each in counts)
    return f"{'watching' if probes.get('ok') else 'NOT watching'}, {seen} events, {lost} lost"


def limits(workloads: list[dict[str, Any]]) -> None:
    """Use and limit of each workload. Capped: in how many periods cpu.max ran out; pressure: some
    and full of the last ten seconds, in percent; oom: processes killed for memory."""
    pressures = [f"{name} psi" for name in ("cpu", "mem", "io")]
    columns = ("workload", "MiB", "pids", "cpu s", "capped", *pressures, "oom")
    table("", columns, ([one["id"], *_used(one.get("usage"))] for one in workloads))


def _used(used: dict[str, Any] | None) -> list[object]:
    if used is None:
        return [None] * 8
    memory, pids, cpu = used["memory"], used["pids"], used["cpu"]
    amounts = [one and round(one / 2**20) for one in (memory["now"], memory["limit"])]
    return [
        _of(*amounts),
        _of(pids["now"], pids["limit"]),
        _ABSENT if cpu["seconds"] is None else f"{cpu['seconds']:.0f}",
        _ABSENT if cpu["throttled"] is None else f"{cpu['throttled']:.0%}",
        *(_pressure(used["pressure"][name]) for name in ("cpu", "memory", "io")),
        _ABSENT if memory["oom_kills"] is None else memory["oom_kills"],
    ]


def _of(now: int | None, limit: int | None) -> str:
    return _ABSENT if now is None else f"{now}/{limit}" if limit else str(now)


def _pressure(found: dict[str, float] | None) -> str:
    return f"{found['some']:.0f}/{found.get('full', 0):.0f}" if found else _ABSENT


def layers(title: str, found: list[dict[str, Any]]) -> None:
    """One workload's layers: promised, seen from outside, verdict."""
    rows = [(x["layer"], x["promised"], x["evidence"], x["verdict"]) for x in found]
    table(title, ("layer", "promised", "evidence", "verdict"), rows)


def _verdicts(found: list[dict[str, Any]]) -> str | None:
    counts = Counter(str(layer["verdict"]) for layer in found)
    return ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items())) or None


def _policy(policy: dict[str, Any]) -> str:
    return f"{policy['file']} v{policy['version']} {policy['digest'][:12]}"
