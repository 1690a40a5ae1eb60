"""Look at a confined process from outside and compare it, layer by layer, with its plan.

Run before a workload's first instruction, where any difference ends the launch, and again whenever
somebody asks: the evidence in `status` is read afresh, never remembered. Sources: proc(5),
namespaces(7), the cgroup files. Reading a foreign process's ns and fd needs CAP_SYS_PTRACE.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

from sandbox import credentials, devices, limits, mountinfo, rlimits
from sandbox.cgroup import Leaf
from sandbox.plan import SandboxPlan

Verdict = Literal["PASS", "DEGRADED", "FAIL"]
_NAMESPACES = ("mnt", "pid", "net", "ipc", "uts", "cgroup", "time", "user")


@dataclass(frozen=True, slots=True)
class Finding:
    """One layer of one workload: what the plan promised, what was found, and the judgement."""

    layer: str
    promised: str
    evidence: str
    verdict: Verdict


class _Process:
    """/proc/PID by one descriptor: if the pid is reused meanwhile, reads fail instead of lying."""

    def __init__(self, pid: int | str) -> None:
        self._directory = os.open(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> _Process:
        try:
            self.status = self._status()
        except BaseException:  # it is gone, or no descriptor is left: nobody leaves what we enter
            os.close(self._directory)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._directory)

    def read(self, name: str) -> str:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._directory)
        try:
            parts = []
            while part := os.read(fd, 65536):
                parts.append(part)
        finally:
            os.close(fd)
        return b"".join(parts).decode()

    def link(self, name: str) -> str:
        return os.readlink(name, dir_fd=self._directory)

    def inside(self, path: str) -> os.stat_result:
        """lstat of an absolute `path` in the process's root."""
        return os.stat(f"root{path}", dir_fd=self._directory, follow_symlinks=False)

    def descriptors(self) -> list[int]:
        fd = os.open("fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._directory)
        try:
            return sorted(int(name) for name in os.listdir(fd))
        finally:
            os.close(fd)

    def _status(self) -> dict[str, str]:
        lines = self.read("status").splitlines()
        return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def inspect(
    plan: SandboxPlan,
    leaf: Leaf,
    pid: int,
    report: dict[str, Any],
    waived: frozenset[str],
    *,
    unreleased: bool = False,
) -> list[Finding]:
    """Every layer of the process `pid`. `report` is what the child said before its filter.

    `waived` holds the controllers and layers that the host file gave up; they show as DEGRADED.
    `unreleased`: before the filters, and while the limits are just being set and read back; adds
    what can be judged only before exec. Raises
    ProcessLookupError or FileNotFoundError when the process is gone.
    """
    with _Process(pid) as process:
        findings = [
            _cgroup(leaf, process),
            _namespaces(plan, process),
            _identity(plan, process),
            _capabilities(plan, process, report),
            _root(plan, process, unreleased),
            _devices(plan, leaf, waived),
            _landlock(report),
            _network(process),
            _memory(plan, process, report),
            _rlimits(plan, process),
        ]
        if unreleased:
            findings += [_untouched(process), _descriptors(plan, process)]
        else:
            findings += [_seccomp(plan, process), *_limits(plan, leaf, waived)]
    return findings


def inspect_filters(plan: SandboxPlan, pid: int) -> Finding:
    """The last layer: the filters of a process that is ready. Raises as `inspect`."""
    with _Process(pid) as process:
        return _seccomp(plan, process)


def _finding(layer: str, promised: str, evidence: str, good: bool) -> Finding:
    return Finding(layer, promised, evidence, "PASS" if good else "FAIL")


def _untouched(process: _Process) -> Finding:
    """What only holds before the workload's first instruction; afterwards it may change it."""
    names = ("Threads", "SigBlk", "SigIgn", "Umask")
    found = {name: process.status[name].lstrip("0") or "0" for name in names}
    # Field 7 of stat(5), counted behind the name in brackets.
    found["tty"] = process.read("stat").rpartition(")")[2].split()[4]
    found["oom_score_adj"] = process.read("oom_score_adj").strip()
    found["coredump_filter"] = process.read("coredump_filter").strip().lstrip("0") or "0"
    planned = {
        "Threads": "1", "SigBlk": "0", "SigIgn": "0", "Umask": "77", "tty": "0",
        "oom_score_adj": "500", "coredump_filter": "0",
    }  # fmt: skip
    evidence = " ".join(f"{name}={value}" for name, value in found.items())
    promised = " ".join(f"{name}={value}" for name, value in planned.items())
    return _finding("process", promised, evidence, found == planned)


def _descriptors(plan: SandboxPlan, process: _Process) -> Finding:
    # Ours sit behind the workload's: the executable and the line to the zygote, close-on-exec.
    planned = 3 + len(plan.fds)
    kept = [fd for fd in process.descriptors() if not _close_on_exec(process, fd)]
    promised = f"0-{planned - 1} and nothing else survives exec"
    return _finding("descriptors", promised, ",".join(map(str, kept)), kept == list(range(planned)))


def _close_on_exec(process: _Process, fd: int) -> bool:
    flags = process.read(f"fdinfo/{fd}").partition("flags:")[2].split()[0]
    return bool(int(flags, 8) & os.O_CLOEXEC)


def _cgroup(leaf: Leaf, process: _Process) -> Finding:
    for line in process.read("cgroup").splitlines():
        if line.startswith("0::"):
            found = line[3:]
            good = found.endswith(f"/{leaf.path.parent.name}/{leaf.path.name}")
            return _finding("cgroup", f"own leaf {leaf.path.name}", found, good)
    return _finding("cgroup", f"own leaf {leaf.path.name}", "no cgroup v2 line", False)


def _limits(plan: SandboxPlan, leaf: Leaf, waived: frozenset[str]) -> Iterator[Finding]:
    verdicts: dict[str, Verdict] = {"in force": "PASS", "absent": "DEGRADED", "wrong": "FAIL"}
    for one in limits.look(leaf.path, plan.limits, waived):
        yield Finding(f"limit {one.file}", one.wanted, one.found, verdicts[one.state])


def _namespaces(plan: SandboxPlan, process: _Process) -> Finding:
    wanted = _NAMESPACES if plan.user_namespace else _NAMESPACES[:-1]
    shared = [
        name
        for name in wanted
        if process.link(f"ns/{name}") == os.readlink(f"/proc/self/ns/{name}")
    ]
    evidence = f"shared with the supervisor: {', '.join(shared)}" if shared else "all differ"
    return _finding("namespaces", "own " + " ".join(wanted), evidence, not shared)


def _identity(plan: SandboxPlan, process: _Process) -> Finding:
    status = process.status
    uids, gids = set(status["Uid"].split()), set(status["Gid"].split())
    groups = tuple(int(group) for group in status["Groups"].split())
    evidence = f"uid {'/'.join(sorted(uids))} gid {'/'.join(sorted(gids))} groups {list(groups)}"
    good = uids == {str(plan.uid)} and gids == {str(plan.gid)} and groups == tuple(plan.groups)
    if plan.user_namespace:
        mapping = " ".join(process.read("uid_map").split())
        evidence += f" map {mapping}"
        good = good and mapping == f"{plan.uid} {plan.uid} 1"
    return _finding("identity", f"uid {plan.uid} in all four, alone in its map", evidence, good)


def _capabilities(plan: SandboxPlan, process: _Process, report: dict[str, Any]) -> Finding:
    status = process.status
    keep = credentials.mask(plan.capabilities)
    sets = {name: int(status[name], 16) for name in ("CapPrm", "CapEff", "CapBnd", "CapInh")}
    evidence = " ".join(f"{name}={value:x}" for name, value in sets.items())
    evidence += f" NoNewPrivs={status['NoNewPrivs']} securebits={report['securebits']:#x}"
    good = all(value == keep for value in sets.values()) and status["NoNewPrivs"] == "1"
    good = good and report["securebits"] == credentials.LOCKED_SECUREBITS
    promised = ("only " + " ".join(plan.capabilities)) if keep else "none, for ever"
    return _finding("capabilities", promised, evidence, good)


def _root(plan: SandboxPlan, process: _Process, unreleased: bool) -> Finding:
    entries = mountinfo.parse(process.read("mountinfo"))
    try:
        wrong = mountinfo.differences(plan, entries, process.inside)
        wrong += mountinfo.swapped(plan, process.inside) if unreleased else []
    except FileNotFoundError as error:
        wrong = [f"{error.filename} is missing"]
    promised = "read-only, the planned mounts alone, none shared"
    evidence = "; ".join(wrong) or f"{len(entries)} mounts, as planned"
    return _finding("root", promised, evidence, not wrong)


def _devices(plan: SandboxPlan, leaf: Leaf, waived: frozenset[str]) -> Finding:
    promised = ", ".join(map(str, devices.rules(plan))) or "none"
    if devices.attached(leaf.path, plan):
        return Finding("devices", promised, "the cgroup has the plan's program", "PASS")
    if "device-filter" in waived:
        evidence = "no program in the cgroup; waived as device-filter"
        return Finding("devices", promised, evidence, "DEGRADED")
    return Finding("devices", promised, "the cgroup lacks the plan's program", "FAIL")


def _landlock(report: dict[str, Any]) -> Finding:
    canaries = {"path": "listing /", "tcp": "another port", "scope": "a socket outside"}
    told = report["landlock"]
    known = {name: said for name, said in told.items() if said != "unknown"}
    evidence = " ".join(f"{name}={said}" for name, said in told.items())
    promised = f"refused: {', '.join(canaries[name] for name in known)}"
    good = "path" in known and all(said == "refused" for said in known.values())
    return _finding("landlock", promised, evidence, good)


def _seccomp(plan: SandboxPlan, process: _Process) -> Finding:
    status = process.status
    wanted = 2 if plan.seccomp.refuse else 1
    evidence = f"Seccomp={status['Seccomp']} filters={status.get('Seccomp_filters', '?')}"
    good = status["Seccomp"] == "2" and status.get("Seccomp_filters") == str(wanted)
    return _finding("seccomp", f"filter mode, {wanted} filters", evidence, good)


def _network(process: _Process) -> Finding:
    # /proc/PID/net shows that process's namespace: link names, one a line after two header lines.
    links = [line.split(":")[0].strip() for line in process.read("net/dev").splitlines()[2:]]
    return _finding("network", "lo and no other link", " ".join(links), links == ["lo"])


def _memory(plan: SandboxPlan, process: _Process, report: dict[str, Any]) -> Finding:
    # A kernel without it says so to us as well; then the filter alone refuses.
    absent = credentials.write_and_execute() == -1
    wanted = -1 if absent else 0 if plan.jit else 1
    evidence = f"mdwe {'absent, by filter' if absent else report['mdwe']}"
    promised = "memory may become code" if plan.jit else "written memory never becomes code"
    return _finding("memory", promised, evidence, report["mdwe"] == wanted)


def _rlimits(plan: SandboxPlan, process: _Process) -> Finding:
    lines = process.read("limits").splitlines()[1:]
    found = {line[:26].strip(): line[26:].split()[:2] for line in lines}
    wrong = []
    for name, bound in rlimits.planned(plan.limits).items():
        soft, hard = found[rlimits.LABELS[name]]
        if soft != hard or hard == "unlimited" or int(hard) > bound:
            wrong.append(f"{name} {soft}/{hard}")
    evidence = f"differ: {', '.join(wrong)}" if wrong else "none above the plan, soft is hard"
    planned = " ".join(f"{name}={bound}" for name, bound in rlimits.planned(plan.limits).items())
    return _finding("rlimits", planned, evidence, not wrong)
