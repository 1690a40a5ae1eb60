"""The typed rules of a policy file. Frozen, with the line each of them stands on.

Every permission class is one way to be allowed something; what no rule names is denied.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import ClassVar

from sandbox.plan import Access

KINDS = ("adapter", "executor", "model-server", "tool", "service")


@dataclass(frozen=True, slots=True)
class File:
    """Read-only host files; `tree` when the path was written with a trailing /**."""

    key: ClassVar[str] = "file"
    path: str
    tree: bool
    access: tuple[Access, ...]


@dataclass(frozen=True, slots=True)
class Syscalls:
    """A versioned group of system calls, as "name/version"."""

    key: ClassVar[str] = "syscalls"
    group: str


@dataclass(frozen=True, slots=True)
class Listen:
    """A TCP port bound on 127.0.0.1 of the own network namespace, reached through a proxy only."""

    key: ClassVar[str] = "listen"
    port: int
    through: str
    protocols: tuple[str, ...]
    body_max: int


@dataclass(frozen=True, slots=True)
class Channel:
    """A Unix socket between two workloads; both policies must name the other."""

    key: ClassVar[str] = "channel"
    peer: str
    role: str


@dataclass(frozen=True, slots=True)
class Model:
    """Models that may be called through the egress proxy, with bounds per workload.

    `routes`: families of routes that name no model, such as "files": what is behind them is shared
    by all who use the same key.
    """

    key: ClassVar[str] = "model"
    names: tuple[str, ...]
    upstream: str
    redact: str
    body_max: int
    concurrent: int
    timeout: float
    routes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Net:
    """A host outside, reached through the egress proxy's forward port.

    `host`: a name, "*.domain" or "*"; `methods` and `path` empty: any. With `ask` the operator
    decides; `hold` and `time` in seconds: how long a request waits, how long his word holds.
    """

    key: ClassVar[str] = "net"
    host: str
    port: int
    methods: tuple[str, ...]
    path: str
    credential: str
    header: str
    prefix: str
    websocket: str
    ask: bool
    hold: int
    time: int


@dataclass(frozen=True, slots=True)
class State:
    """The workload's own directory, writable at /state; `size` bounds all of it."""

    key: ClassVar[str] = "state"
    size: int


@dataclass(frozen=True, slots=True)
class Tmpfs:
    """A private in-memory directory, gone with the process."""

    key: ClassVar[str] = "tmpfs"
    path: str
    size: int
    files: int


@dataclass(frozen=True, slots=True)
class Device:
    """A character device; `optional` leaves it out where the host has none."""

    key: ClassVar[str] = "device"
    path: str
    optional: bool


@dataclass(frozen=True, slots=True)
class Devices:
    """A versioned group of devices, as "name/version"; `optional`: the host may have none."""

    key: ClassVar[str] = "device"
    group: str
    optional: bool


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Capabilities kept in the initial user namespace. Services only."""

    key: ClassVar[str] = "capabilities"
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SystemGroup:
    """A supplementary group of the host. Services only."""

    key: ClassVar[str] = "group"
    name: str


@dataclass(frozen=True, slots=True)
class Service:
    """A descriptor handed over at launch by this name. Services only."""

    key: ClassVar[str] = "service"
    name: str


@dataclass(frozen=True, slots=True)
class Headers:
    """The newest installed kernel headers and the links that bcc looks for. Services only."""

    key: ClassVar[str] = "headers"
    which: str


@dataclass(frozen=True, slots=True)
class BpfDirectory:
    """The supervisor's own bpf file system at /sys/fs/bpf, to pin probes in. Services only."""

    key: ClassVar[str] = "bpf_directory"
    access: tuple[Access, ...]


@dataclass(frozen=True, slots=True)
class Jit:
    """Memory that is written and then executed, for engines that compile at run time."""

    key: ClassVar[str] = "jit"
    engine: str


Permission = (
    File | Syscalls | Listen | Channel | Model | Net | State | Tmpfs | Device | Devices
    | Capabilities | SystemGroup | Service | Headers | BpfDirectory | Jit
)  # fmt: skip
SERVICES_ONLY = (Capabilities, SystemGroup, Service, Headers, BpfDirectory)


@dataclass(frozen=True, slots=True)
class Exemption:
    """Why a permission is temporary; it is denied after `expires`."""

    owner: str
    ticket: str
    expires: date


@dataclass(frozen=True, slots=True)
class Rule:
    """One ``[[allow]]`` block."""

    id: str
    why: str
    line: int
    permission: Permission
    exemption: Exemption | None = None

    def expired(self, today: date) -> bool:
        """Whether its exception has run out, so that the permission is denied."""
        return self.exemption is not None and today > self.exemption.expires


@dataclass(frozen=True, slots=True)
class Bound:
    """So much of one unit in one calendar window; money in 10**-9 of `currency`."""

    unit: str
    limit: int
    window: str
    currency: str = ""


@dataclass(frozen=True, slots=True)
class Budget:
    """One ``[[budget]]`` block: what calls of `models` may use together; none named: of all."""

    id: str
    why: str
    line: int
    models: tuple[str, ...]
    bounds: tuple[Bound, ...]


@dataclass(frozen=True, slots=True)
class Redaction:
    """One ``[[redact]]`` block: what becomes of a class of values (`group`), or of one `rule`'s."""

    id: str
    why: str
    line: int
    group: str | None
    rule: str | None
    action: str
    restore: tuple[str, ...] = ()
    exemption: Exemption | None = None

    @property
    def subject(self) -> str:
        """What it speaks of, for people."""
        return f"class {self.group}" if self.group else f"rule {self.rule}"

    def expired(self, today: date) -> bool:
        """Whether its exception has run out, so that the preset holds again."""
        return self.exemption is not None and today > self.exemption.expires


@dataclass(frozen=True, slots=True)
class Claim:
    """What must never become possible; proved at every compile. One of the three is set."""

    id: str
    line: int
    path: str | None = None
    access: tuple[Access, ...] = ()
    calls: tuple[str, ...] = ()
    host: str | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """How the program is started; one of `verbs` may follow, then `options` and plain words."""

    command: tuple[str, ...]
    restart: str
    verbs: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class IoRates:
    """Bytes and operations a second on the disks that hold the state directory; None means none."""

    read: int | None = None
    write: int | None = None
    read_ops: int | None = None
    write_ops: int | None = None


@dataclass(frozen=True, slots=True)
class PolicyLimits:
    """Bounds: bytes, counts, CPU as a share of one core; None means none.

    `cpu_weight` and `cpus`: see sandbox.plan.Limits.
    """

    memory: int | None = None
    memory_high: int | None = None
    pids: int | None = None
    cpu: float | None = None
    cpu_weight: int | None = None
    cpus: tuple[int, ...] = ()
    io: IoRates | None = None
    nofile: int = 1024
    memlock: int = 0
    file_size: int | None = None
    line: int = 1


@dataclass(frozen=True, slots=True)
class Watch:
    """What follows when the probes see a high-risk call, an unseen call, or (opt-in) a denial."""

    on_high_risk: str = "stop"
    on_unseen: str = "alert"
    denials: bool = False


@dataclass(frozen=True, slots=True)
class Policy:
    """One policy file, complete and valid in itself."""

    file: str
    id: str
    kind: str
    version: int
    owner: str
    review_by: date
    why: str
    run: Run
    requires: tuple[str, ...]
    allow: tuple[Rule, ...]
    limits: PolicyLimits
    watch: Watch
    claims: tuple[Claim, ...]
    review_line: int = 1
    budgets: tuple[Budget, ...] = ()
    redactions: tuple[Redaction, ...] = ()

    @property
    def reaches_out(self) -> bool:
        """Whether any rule, in force or expired, lets it through the egress proxy."""
        return bool(self.of(Model, Net))

    def of(self, *kinds: type) -> list[Rule]:
        """The rules whose permission is one of `kinds`, in file order."""
        return [rule for rule in self.allow if isinstance(rule.permission, kinds)]
