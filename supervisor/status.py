"""The status of everything, read afresh: workloads, layers, probes, vault, what is given up."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sandbox import verify
from sandbox.cgroup import Leaf
from sandbox.errors import SandboxError
from sandbox.plan import as_json
from sandbox.usage import usage
from supervisor.policy.redactions import relaxed
from supervisor.workload import Workload

if TYPE_CHECKING:
    from supervisor.supervise import Supervisor

VERSION = "0.1.0"


def status(of: Supervisor) -> dict[str, Any]:
    """The whole status as JSON data; the shape is that of `anchorhold status --json`."""
    workloads = [_workload(of, workload) for workload in of.workloads.values()]
    degraded = _degraded(of, workloads)
    return {
        "version": VERSION,
        "state": "degraded" if degraded else "running",
        "degraded": degraded,
        "tpm": _tpm(of),
        "probes": {
            **of.watching.status,
            "ok": bool(of.watching.status.get("ok")) and of.watching.heard,
            "workloads": {
                name: counts._asdict() for name, counts in of.watching.counters().items()
            },
        },
        "workloads": workloads,
        "memory": _headroom(of),
        "policy_errors": [str(error) for error in of.policy_errors],
    }


def _degraded(of: Supervisor, workloads: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Guarantees that a waiver gave up and this host really lacks, and whatever is not running."""
    found = [
        {"guarantee": g.name, "why": g.why_waived or g.evidence}
        for g in of.guarantees
        if g.state == "waived"
    ]
    found += [
        {"guarantee": f"workload {w['id']}", "why": why} for w in workloads if (why := _wrong(w))
    ]
    if of.unsigned is not None:
        found.append(
            {"guarantee": "policies", "why": str(of.unsigned), "fix": str(of.unsigned.fix)}
        )
    if gap := of.vault.gap():
        found.append(gap)
    found += of.vault.waived()
    found += [{"guarantee": "policy", "why": str(error)} for error in of.policy_errors]
    return found


def _wrong(workload: dict[str, Any]) -> str:
    """What is not as it should be with one workload, or nothing."""
    if workload["state"] != "running":
        return f"{workload['state']}: {workload['error'] or 'not running'}"
    if workload["frozen"]:
        return "frozen: the egress proxy or the probe reader is not running"
    failed = [layer["layer"] for layer in workload["layers"] if layer["verdict"] == "FAIL"]
    return f"differs from its plan: {', '.join(failed)}" if failed else ""


def _tpm(of: Supervisor) -> dict[str, Any]:
    level = of.vault.found.get("level") or {}
    software = of.host_tpm_is_software
    return {
        "mode": "software" if software else "device",
        "level": level.get("code", "unknown"),
        "pcrs": (of.vault.found.get("vault") or {}).get("pcrs", []),
        "note": "A software TPM protects nothing against root."
        if software
        else f"Does not stop: {level.get('does_not_stop', 'unknown')}",
    }


def _workload(of: Supervisor, workload: Workload) -> dict[str, Any]:
    policy, plan, running = workload.compiled.policy, workload.compiled.sandbox, workload.running
    layers: list[dict[str, Any]] = []
    memory, frozen, used = None, False, None
    if running is not None:
        with suppress(OSError, SandboxError, KeyError):
            findings = verify.inspect(
                plan, running.leaf, running.pid, running.report, of.waived_layers
            )
            findings.append(_watched(of, running.leaf))
            if disk := of.directories.finding(workload.compiled):
                findings.append(disk)
            layers = [as_json(finding) for finding in findings]
            memory = resident(running.pid)
            frozen = running.leaf.frozen
            used = usage(running.leaf.path)
    return {
        "id": workload.id,
        "kind": policy.kind,
        "state": workload.state,
        "pid": running.pid if running else None,
        "uid": plan.uid,
        "restarts": workload.restarts,
        "last_end": workload.last_end,
        "since": workload.since,
        "rss": memory,
        "frozen": frozen,
        "usage": used,
        "policy": {"file": policy.file, "version": policy.version, "digest": plan.digest},
        "error": workload.error,
        "relaxed": relaxed(policy, datetime.now(UTC).date()),
        "layers": layers,
    }


def _headroom(of: Supervisor) -> dict[str, int]:
    """What all running workloads may take together, and what the machine has; in bytes."""
    running = [one.running.plan.limits.memory for one in of.workloads.values() if one.running]
    lines = Path("/proc/meminfo").read_text().splitlines()
    return {
        "limits": sum(limit for limit in running if limit),
        "machine": int(lines[0].split()[1]) * 1024,  # MemTotal, proc(5)
    }


def _watched(of: Supervisor, leaf: Leaf) -> verify.Finding:
    """The probes' counters of one workload; a lost event is told, an unwatched workload fails."""
    counts = of.watching.counters_of(leaf.id)
    if counts is None or not of.watching.heard:
        verdict: verify.Verdict = "DEGRADED" if "probes" in of.waived else "FAIL"
        return verify.Finding("probes", "every call watched", "not watched", verdict)
    evidence = f"seen {counts.seen}, suppressed {counts.suppressed}, lost {counts.lost}"
    return verify.Finding(
        "probes", "every call watched", evidence, "DEGRADED" if counts.lost else "PASS"
    )


def resident(pid: int) -> int:
    """Resident set size of a process in bytes. proc(5), statm counts pages."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
