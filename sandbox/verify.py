"""Look at a confined process from outside and compare it, layer by layer, with its plan.

Run before a workload's first instruction, where any difference ends the launch, and again whenever
somebody asks: the evidence in `status` is read afresh, never remembered. Sources: proc(5),
namespaces(7), the cgroup files. Reading a foreign process's ns and fd needs CAP_SYS_PTRACE.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sandbox import credentials
from sandbox.cgroup import Leaf, limit_files
from sandbox.plan import Bind, Device, SandboxPlan, Symlink

Verdict = Literal["PASS", "DEGRADED", "FAIL"]
_NAMESPACES = ("mnt", "pid", "net", "ipc", "uts", "cgroup", "time", "user")


@dataclass(frozen=True, slots=True)
class Finding:
    """One layer of one workload: what the plan promised, what was found, and the judgement."""

    layer: str
    promised: str
    evidence: str
    verdict: Verdict


def inspect(
    plan: SandboxPlan, leaf: Leaf, pid: int, report: dict[str, Any], waived: frozenset[str]
) -> list[Finding]:
    """Every layer of the process `pid`. `report` is what the child said before its filter.

    `waived` holds controller names whose limits the host file gave up; they show as DEGRADED.
    Raises ProcessLookupError or FileNotFoundError when the process is gone.
    """
    proc = Path("/proc") / str(pid)
    status = _status(proc)
    return [
        _cgroup(plan, leaf, proc),
        *_limits(plan, leaf, waived),
        _namespaces(plan, proc),
        _identity(plan, proc, status),
        _capabilities(plan, status, report),
        _root(plan, proc),
        _landlock(report),
        _seccomp(plan, status),
        _network(proc),
        _memory(plan, proc, report),
    ]


def inspect_unreleased(proc_pid: int, plan: SandboxPlan) -> list[Finding]:
    """What can be judged only before exec: one thread, exactly the planned descriptors."""
    proc = Path("/proc") / str(proc_pid)
    threads = _status(proc)["Threads"]
    # Ours sit behind the workload's: the executable and the line to the zygote, close-on-exec.
    planned = 3 + len(plan.fds)
    found = sorted(int(entry.name) for entry in (proc / "fd").iterdir())
    kept = [fd for fd in found if not _close_on_exec(proc, fd)]
    return [
        _finding("threads", "1", threads, threads == "1"),
        _finding(
            "descriptors",
            f"0-{planned - 1} and nothing else survives exec",
            ",".join(map(str, kept)),
            kept == list(range(planned)),
        ),
    ]


def _finding(layer: str, promised: str, evidence: str, good: bool) -> Finding:
    return Finding(layer, promised, evidence, "PASS" if good else "FAIL")


def _status(proc: Path) -> dict[str, str]:
    lines = (proc / "status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _close_on_exec(proc: Path, fd: int) -> bool:
    for line in (proc / "fdinfo" / str(fd)).read_text().splitlines():
        if line.startswith("flags:"):
            return bool(int(line.split()[1], 8) & os.O_CLOEXEC)
    return False


def _cgroup(plan: SandboxPlan, leaf: Leaf, proc: Path) -> Finding:
    for line in (proc / "cgroup").read_text().splitlines():
        if line.startswith("0::"):
            found = line[3:]
            good = found.endswith(f"/{leaf.path.parent.name}/{leaf.path.name}")
            return _finding("cgroup", f"own leaf {leaf.path.name}", found, good)
    return _finding("cgroup", f"own leaf {leaf.path.name}", "no cgroup v2 line", False)


def _limits(plan: SandboxPlan, leaf: Leaf, waived: frozenset[str]) -> Iterator[Finding]:
    for name, value in limit_files(plan.limits).items():
        controller = name.split(".")[0]
        try:
            found = (leaf.path / name).read_text().strip()
        except FileNotFoundError:
            verdict: Verdict = "DEGRADED" if controller in waived else "FAIL"
            reason = f"no v2 {controller} controller"
            reason += f"; waived as cgroup:{controller}" if verdict == "DEGRADED" else ""
            yield Finding(f"limit {name}", value, reason, verdict)
        else:
            yield _finding(f"limit {name}", value, found, found == value)


def _namespaces(plan: SandboxPlan, proc: Path) -> Finding:
    wanted = _NAMESPACES if plan.user_namespace else _NAMESPACES[:-1]
    shared = [
        name
        for name in wanted
        if (proc / "ns" / name).readlink() == Path("/proc/self/ns", name).readlink()
    ]
    evidence = f"shared with the supervisor: {', '.join(shared)}" if shared else "all differ"
    return _finding("namespaces", "own " + " ".join(wanted), evidence, not shared)


def _identity(plan: SandboxPlan, proc: Path, status: dict[str, str]) -> Finding:
    uids, gids = set(status["Uid"].split()), set(status["Gid"].split())
    groups = tuple(int(group) for group in status["Groups"].split())
    evidence = f"uid {'/'.join(sorted(uids))} gid {'/'.join(sorted(gids))} groups {list(groups)}"
    good = uids == {str(plan.uid)} and gids == {str(plan.gid)} and groups == tuple(plan.groups)
    if plan.user_namespace:
        mapping = " ".join((proc / "uid_map").read_text().split())
        evidence += f" map {mapping}"
        good = good and mapping == f"{plan.uid} {plan.uid} 1"
    return _finding("identity", f"uid {plan.uid} in all four, alone in its map", evidence, good)


def _capabilities(plan: SandboxPlan, status: dict[str, str], report: dict[str, Any]) -> Finding:
    keep = credentials.mask(plan.capabilities)
    sets = {name: int(status[name], 16) for name in ("CapPrm", "CapEff", "CapBnd", "CapInh")}
    evidence = " ".join(f"{name}={value:x}" for name, value in sets.items())
    evidence += f" NoNewPrivs={status['NoNewPrivs']} securebits={report['securebits']:#x}"
    good = all(value == keep for value in sets.values()) and status["NoNewPrivs"] == "1"
    good = good and report["securebits"] == credentials.LOCKED_SECUREBITS
    promised = ("only " + " ".join(plan.capabilities)) if keep else "none, for ever"
    return _finding("capabilities", promised, evidence, good)


def _root(plan: SandboxPlan, proc: Path) -> Finding:
    expected = {"/": {"ro", "nosuid", "nodev", "noexec"}, "/proc": {"nosuid", "nodev", "noexec"}}
    for mount in plan.mounts:
        if isinstance(mount, Device):
            expected[mount.path] = {"ro", "nosuid", "noexec"}
        elif isinstance(mount, Bind):
            flags = {"nosuid", "nodev"}
            flags |= set() if "write" in mount.access else {"ro"}
            flags |= set() if "exec" in mount.access else {"noexec"}
            expected[mount.target] = flags
        elif not isinstance(mount, Symlink):
            expected[mount.target] = {"nosuid", "nodev", "noexec"}
    found: dict[str, set[str]] = {}
    shared = []
    for line in (proc / "mountinfo").read_text().splitlines():
        fields = line.split(" ")
        target = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), fields[4])
        found[target] = set(fields[5].split(","))
        shared += [target for field in fields[6 : fields.index("-")] if ":" in field]
    wrong = [target for target, flags in expected.items() if not flags <= found.get(target, set())]
    wrong += [
        target
        for target, flags in found.items()
        if target not in expected and not _inside_bind(plan, target, flags)
    ]
    evidence = f"{len(found)} mounts, as planned"
    if wrong or shared:
        evidence = f"differ: {', '.join(wrong) or 'none'}; shared: {', '.join(shared) or 'none'}"
    promised = f"read-only, {len(expected)} mounts, none shared"
    return _finding("root", promised, evidence, not wrong and not shared)


def _inside_bind(plan: SandboxPlan, target: str, flags: set[str]) -> bool:
    """A mount that came along below a bound directory must carry that bind's restrictions."""
    return any(
        isinstance(mount, Bind)
        and target.startswith(mount.target + "/")
        and ("ro" in flags or "write" in mount.access)
        and {"nosuid", "nodev"} <= flags
        for mount in plan.mounts
    )


def _landlock(report: dict[str, Any]) -> Finding:
    canary = report["landlock_canary"]
    return _finding("landlock", "listing / is refused", f"{canary} on /", canary == "EACCES")


def _seccomp(plan: SandboxPlan, status: dict[str, str]) -> Finding:
    wanted = 2 if plan.seccomp.refuse else 1
    evidence = f"Seccomp={status['Seccomp']} filters={status.get('Seccomp_filters', '?')}"
    good = status["Seccomp"] == "2" and status.get("Seccomp_filters") == str(wanted)
    return _finding("seccomp", f"filter mode, {wanted} filters", evidence, good)


def _network(proc: Path) -> Finding:
    # /proc/PID/net shows that process's namespace: link names, one a line after two header lines.
    links = [line.split(":")[0].strip() for line in (proc / "net/dev").read_text().splitlines()[2:]]
    return _finding("network", "lo and no other link", " ".join(links), links == ["lo"])


def _memory(plan: SandboxPlan, proc: Path, report: dict[str, Any]) -> Finding:
    core = next(
        line for line in (proc / "limits").read_text().splitlines() if line.startswith("Max core")
    )
    soft, hard = core.split()[4:6]
    evidence = f"core {soft}/{hard} mdwe {report['mdwe']}"
    good = (soft, hard) == ("0", "0") and report["mdwe"] == (0 if plan.jit else 1)
    promised = "no core files" + ("" if plan.jit else ", no write-and-execute memory")
    return _finding("memory", promised, evidence, good)
