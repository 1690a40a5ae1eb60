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
from types import TracebackType
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


class _Process:
    """/proc/PID by one descriptor: if the pid is reused meanwhile, reads fail instead of lying."""

    def __init__(self, pid: int | str) -> None:
        self._directory = os.open(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> _Process:
        self.status = self._status()
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

    `waived` holds controller names whose limits the host file gave up; they show as DEGRADED.
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
            _root(plan, process),
            _landlock(report),
            _network(process),
            _memory(plan, process, report),
        ]
        if unreleased:
            findings += [_threads(process), _descriptors(plan, process)]
        else:
            findings += [_seccomp(plan, process), *_limits(plan, leaf, waived)]
    return findings


def inspect_filters(plan: SandboxPlan, pid: int) -> Finding:
    """The last layer: the filters of a process that is ready. Raises as `inspect`."""
    with _Process(pid) as process:
        return _seccomp(plan, process)


def _finding(layer: str, promised: str, evidence: str, good: bool) -> Finding:
    return Finding(layer, promised, evidence, "PASS" if good else "FAIL")


def _threads(process: _Process) -> Finding:
    threads = process.status["Threads"]
    return _finding("threads", "1", threads, threads == "1")


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


def _root(plan: SandboxPlan, process: _Process) -> Finding:
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
    for line in process.read("mountinfo").splitlines():
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
    soft, hard = process.read("limits").partition("Max core file size")[2].split()[:2]
    # A kernel without it says so to us as well; then the filter alone refuses.
    absent = credentials.write_and_execute() == -1
    evidence = f"core {soft}/{hard} mdwe {'absent, by filter' if absent else report['mdwe']}"
    wanted = -1 if absent else 0 if plan.jit else 1
    good = (soft, hard) == ("0", "0") and report["mdwe"] == wanted
    promised = "no core files" + ("" if plan.jit else ", no write-and-execute memory")
    return _finding("memory", promised, evidence, good)
