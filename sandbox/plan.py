"""The launch plan: what one sandbox is made of, as frozen data.

The policy compiler writes it, the launcher executes it, the verifier compares the running process
with it, and ``explain`` prints it. A plan holds no secret and can be shown to anyone.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

Access = Literal["read", "write", "exec"]
Comparison = Literal["eq", "ne", "masked_eq"]


@dataclass(frozen=True, slots=True)
class Bind:
    """A host path (file, directory or socket) made visible at `target`; `access` says what for."""

    source: str
    target: str
    access: tuple[Access, ...]


@dataclass(frozen=True, slots=True)
class Tmpfs:
    """A private writable tmpfs, never executable; `size` in bytes."""

    target: str
    size: int
    inodes: int


@dataclass(frozen=True, slots=True)
class Symlink:
    """A symbolic link inside the new root."""

    target: str
    points_to: str


@dataclass(frozen=True, slots=True)
class Device:
    """A character device bound from the host after its number was checked.

    `requests`: it is driven by ioctl; on others Landlock refuses all but the harmless ones.
    """

    path: str
    major: int
    minor: int
    requests: bool = False


Mount = Bind | Tmpfs | Symlink | Device


@dataclass(frozen=True, slots=True)
class ArgTest:
    """One argument comparison. 32-bit kernel arguments use masked_eq with mask 0xffffffff."""

    index: int
    op: Comparison
    value: int
    mask: int = 0xFFFF_FFFF_FFFF_FFFF


@dataclass(frozen=True, slots=True)
class SyscallRule:
    """`call` under all of `tests` gets `action`: "allow", "kill" or an errno name ("EPERM").

    `call` is a system call name, or "#NNN" for a number that libseccomp has no name for.
    `reason` is shown to auditors.
    """

    call: str
    action: str
    tests: tuple[ArgTest, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class SeccompSpec:
    """Two stacked filters; the strictest verdict wins.

    `main` answers every call that no rule names with `default` (an errno name). `refuse` answers
    ALLOW by default and only takes away: it exists because "all but X" on an argument cannot be
    written soundly as allow rules.
    """

    main: tuple[SyscallRule, ...]
    refuse: tuple[SyscallRule, ...] = ()
    default: str = "ENOSYS"


@dataclass(frozen=True, slots=True)
class IoLimits:
    """Bytes and operations a second on the disks below the host directory `path`; None is none."""

    path: str
    read: int | None = None
    write: int | None = None
    read_ops: int | None = None
    write_ops: int | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """Resource bounds. Bytes, counts, CPU as a fraction of one core; None is no cgroup limit.

    Above `memory_high` a workload is slowed down, above `memory` it is killed. `cpu_weight` is its
    part (1 to 10000, 100 if None) where processors are short, `cpus` those that it may run on.
    """

    memory: int | None
    pids: int | None
    cpu: float | None
    nofile: int = 1024
    fsize: int = 64 << 20
    memlock: int = 0
    memory_high: int | None = None
    cpu_weight: int | None = None
    cpus: tuple[int, ...] = ()
    io: IoLimits | None = None


@dataclass(frozen=True, slots=True)
class SandboxPlan:
    """One workload's confinement, complete.

    `fds` names the descriptors the workload gets from number 3 on, in order; it finds them by
    LISTEN_FDS and LISTEN_FDNAMES (sd_listen_fds(3)). `capabilities` is empty for every workload;
    the few services that need one keep it in the initial user namespace (`user_namespace` False).
    `requires` names host guarantees that must hold (see supervisor/doctor.py).
    """

    workload: str
    kind: str
    digest: str
    argv: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    uid: int
    gid: int
    mounts: tuple[Mount, ...]
    seccomp: SeccompSpec
    limits: Limits
    cwd: str = "/"
    groups: tuple[int, ...] = ()
    capabilities: tuple[str, ...] = ()
    user_namespace: bool = True
    jit: bool = False
    fds: tuple[str, ...] = ()
    tcp_bind: tuple[int, ...] = ()
    tcp_connect: tuple[int, ...] = ()
    requires: tuple[str, ...] = field(default=())


def as_json(plan: Any) -> Any:
    """Any plan of the project as plain JSON data; mounts and rules carry their class name."""
    if dataclasses.is_dataclass(plan) and not isinstance(plan, type):
        body = {f.name: as_json(getattr(plan, f.name)) for f in dataclasses.fields(plan)}
        return {"type": type(plan).__name__.lower(), **body}
    if isinstance(plan, (tuple, list)):
        return [as_json(item) for item in plan]
    if isinstance(plan, dict):
        return {key: as_json(value) for key, value in plan.items()}
    return plan
