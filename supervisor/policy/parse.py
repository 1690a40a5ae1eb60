"""Policy text to typed rules. Whole or not at all: a file with one mistake yields no policy."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from proxy.providers import FAMILIES
from sandbox.plan import Access
from supervisor.policy import nodes
from supervisor.policy.budgets import parse_budget
from supervisor.policy.document import Document, Table, parse_document, read_document
from supervisor.policy.errors import PolicyError
from supervisor.policy.limits import parse_limits
from supervisor.policy.model import (
    KINDS,
    SERVICES_ONLY,
    BpfDirectory,
    Capabilities,
    Channel,
    Claim,
    Device,
    Devices,
    Exemption,
    File,
    Headers,
    Jit,
    Listen,
    Model,
    Permission,
    Policy,
    Rule,
    Run,
    Service,
    State,
    Syscalls,
    SystemGroup,
    Tmpfs,
    Watch,
)
from supervisor.policy.net import parse_net
from supervisor.policy.redactions import names, parse_redactions

SCHEMA = "anchorhold.policy/1"
FILE_NAME = r"[a-z0-9-]+\.toml"
WORKLOAD = r"(?=.{1,63}\Z)[a-z][a-z0-9]*([.-][a-z0-9]+)*"  # as long as a host name may be
RULE_ID = r"[a-z][a-z0-9-]{0,62}"
REQUIREMENT = (
    r"landlock>=[1-9][0-9]?|cgroup:(memory|pids|cpu|cpuset|io)"
    r"|probes|seccomp|userns|secret-memory|mdwe|tpm|device-filter"
)
_PATH = r"/[A-Za-z0-9._+@-]+(/[A-Za-z0-9._+@-]+)*"
_ROOTS = ("/usr/", "/etc/", "/opt/", "/srv/", "/sys/kernel/btf/")
_TABLES, _ARRAYS = ("limits", "watch"), ("allow", "claim", "budget", "redact")
SERVICE_FDS = (
    "config", "audit", "control", "broker", "listen", "handover", "secret", "result", "ring",
    "counters", "pin", "recovery", "code", "prediction",
)  # fmt: skip


def parse_policy(text: bytes, file: str) -> tuple[Policy | None, list[PolicyError]]:
    """The policy in `text`, or None and every mistake found. `file` is its base name."""
    return _policy(parse_document(text, file, _TABLES, _ARRAYS))


def load_directory(path: Path | str) -> tuple[list[Policy], list[PolicyError]]:
    """Every policy directly in `path`, in ``ls`` order; a broken file never stops the others.

    README.md and subdirectories are passed over; any other name is an error, so that an editor's
    backup is noticed and never read. An unreadable directory is one error.
    """
    policies: list[Policy] = []
    errors: list[PolicyError] = []
    directory = Path(path)
    try:
        entries = sorted(directory.iterdir(), key=lambda entry: entry.name)
    except OSError as error:
        fix = "name a directory of policy files"
        return [], [PolicyError("unreadable", str(path), 1, "-", f"{error.strerror}", fix)]
    for entry in entries:
        if entry.is_dir() or entry.name == "README.md":
            continue
        policy, found = _policy(read_policy_document(entry))
        errors += found
        if policy:
            policies.append(policy)
    return policies, errors


def read_policy_document(path: Path) -> Document:
    """The document at `path` after a check of the file name."""
    if not re.fullmatch(FILE_NAME, path.name):
        document = Document(path.name)
        document.fail(
            "bad-file-name", 1, "-", "not a policy file name", "use a-z, 0-9 and -, ending in .toml"
        )
        return document
    return read_document(path, _TABLES, _ARRAYS)


def _policy(document: Document) -> tuple[Policy | None, list[PolicyError]]:
    if document.errors:
        return None, document.errors
    top = document.top()
    top.choice("schema", [SCHEMA])
    review_by = top.day("review_by")
    workload = top.string("id", WORKLOAD, what='a name such as "adapter.websocket"')
    if workload and document.file != (wanted := workload.replace(".", "-") + ".toml"):
        top.fail(
            "bad-file-name", "id", f"{workload} stands in {document.file}", f"name it {wanted}"
        )
    kind = top.choice("kind", KINDS)
    version = top.integer("version", 1, 1_000_000)
    owner, why, run = top.string("owner"), top.string("why"), _run(top)
    requires = top.strings("requires", REQUIREMENT, what="a known guarantee")
    top.finish()
    rules = [_rule(table, kind) for table in document.many("allow")]
    claims = [_claim(table) for table in document.many("claim")]
    budgets = [parse_budget(table) for table in document.many("budget")]
    redactions = parse_redactions(document.many("redact"), _exemption)
    limits, watch = parse_limits(document.one("limits")), _watch(document.one("watch"))
    _unique(document)
    if document.errors or review_by is None:
        return None, sorted(document.errors, key=lambda error: error.line)
    return Policy(
        file=document.file,
        id=workload,
        kind=kind,
        version=version,
        owner=owner,
        review_by=review_by,
        why=why,
        run=run,
        requires=tuple(sorted(requires)),
        allow=tuple(rule for rule in rules if rule),
        limits=limits,
        watch=watch,
        claims=tuple(claims),
        review_line=top.at("review_by"),
        budgets=tuple(budgets),
        redactions=redactions,
    ), []


def _run(top: Table) -> Run:
    table = top.table("run")
    if table is None:
        return Run((), "never")
    run = Run(
        table.strings_in_order("command"),
        table.choice("restart", ("always", "on-failure", "never")),
        table.strings("verbs", r"[a-z][a-z-]*", required=False, what="a word in a-z"),
        table.strings("options", r"--[a-z][a-z-]*", required=False, what="an option like --name"),
    )
    table.finish()
    if run.command and not run.command[0].startswith("/"):
        table.fail("bad-value", "command", "the program is not an absolute path", "write /usr/...")
    return run


def _watch(table: Table | None) -> Watch:
    if table is None:
        return Watch()
    actions = ("record", "alert", "stop", "kill")
    watch = Watch(
        table.choice("on_high_risk", actions, "stop"),
        table.choice("on_unseen", ("record", "alert"), "alert"),
        table.boolean("denials", False),
    )
    table.finish()
    return watch


def _rule(table: Table, kind: str) -> Rule | None:
    table.rule = table.string("id", RULE_ID, what="a name in a-z, 0-9 and -")
    why = table.string("why")
    exemption = _exemption(table.table("exception", required=False))
    given = [key for key in _PERMISSIONS if table.has(key)]
    permission: Permission | None = None
    if len(given) == 1:
        permission = _PERMISSIONS[given[0]](table)
    else:
        known = ", ".join(_PERMISSIONS)
        said = "nothing is allowed" if not given else f"{' and '.join(given)} in one block"
        fix = f"give exactly one of: {known}"
        table.document.fail("one-permission", table.line, "allow", said, fix, table.rule)
    table.finish(", ".join(("id", "why", "exception", *_PERMISSIONS)))
    if isinstance(permission, SERVICES_ONLY) and kind != "service":
        key = permission.key
        table.fail("services-only", key, f"a {kind} may not have {key}", f"remove the {key} rule")
    if permission is None:
        return None
    return Rule(table.rule, why, table.line, permission, exemption)


def _exemption(table: Table | None) -> Exemption | None:
    if table is None:
        return None
    owner, ticket, expires = table.string("owner"), table.string("ticket"), table.day("expires")
    table.finish()
    return Exemption(owner, ticket, expires) if expires else None


def _file(table: Table) -> File | None:
    if (inner := table.table("file")) is None:
        return None
    written = inner.string("path", _PATH + r"(/\*\*)?", what="an absolute path, at most with /**")
    access = inner.words("access", ("read", "exec", "write"))
    inner.finish()
    tree = written.endswith("/**")
    path = written.removesuffix("/**")
    if ".." in path.split("/") or "." in path.split("/"):
        inner.fail("bad-value", "path", f"{path!r} holds . or ..", "write the plain path")
    elif path and not f"{path}/".startswith(_ROOTS):
        inner.fail(
            "bad-value", "path", f"{path} is outside {' '.join(_ROOTS)}",
            "use state, tmpfs, device or channel rules, and /usr/lib for /lib",
        )  # fmt: skip
    if "write" in access:
        inner.fail("bad-value", "access", "host files are never writable", "use a state rule")
    return File(path, tree, _ordered(access))


def _syscalls(table: Table) -> Syscalls | None:
    if (inner := table.table("syscalls")) is None:
        return None
    group = inner.string("group", r"[a-z][a-z0-9-]*/[1-9][0-9]*", what='such as "python-service/1"')
    inner.finish()
    return Syscalls(group)


def _listen(table: Table) -> Listen | None:
    if (inner := table.table("listen")) is None:
        return None
    port = inner.integer("port", 1024, 65535)
    through = inner.choice("through", ("gateway", "egress"))
    protocols: tuple[str, ...] = ()
    body_max = 0
    if through == "gateway":
        protocols = inner.strings("protocols", r"[a-z][a-z0-9-]*", what="a name in a-z")
        body_max = inner.integer("body_max", 1, 64 << 20)
    inner.finish()
    return Listen(port, through, tuple(sorted(protocols)), body_max)


def _channel(table: Table) -> Channel | None:
    if (inner := table.table("channel")) is None:
        return None
    peer = inner.string("peer", WORKLOAD, what='an id such as "executor.main"')
    role = inner.choice("role", ("client", "server"))
    inner.finish()
    return Channel(peer, role)


def _model(table: Table) -> Model | None:
    if (inner := table.table("model")) is None:
        return None
    model = Model(
        tuple(sorted(inner.strings("names", r"[A-Za-z0-9][A-Za-z0-9._:/-]*", what="a model name"))),
        inner.string("upstream", RULE_ID, what="the name of an [[upstream]] of the host file"),
        inner.choice("redact", names().presets),
        inner.integer("body_max", 1, 64 << 20, 1 << 20),
        inner.integer("concurrent", 1, 1024, 16),
        float(inner.integer("timeout", 1, 3600, 120)),
        tuple(sorted(inner.words("routes", FAMILIES, required=False))),
    )
    inner.finish()
    return model


def _state(table: Table) -> State | None:
    if (inner := table.table("state")) is None:
        return None
    size = inner.size("size")
    inner.finish()
    return State(size)


def _tmpfs(table: Table) -> Tmpfs | None:
    if (inner := table.table("tmpfs")) is None:
        return None
    path = inner.choice("path", ("/tmp", "/dev/shm"))  # noqa: S108 - inside the sandbox
    size, files = inner.size("size"), inner.integer("files", 1, 1_000_000)
    inner.finish()
    return Tmpfs(path, size, files)


def _device(table: Table) -> Device | Devices | None:
    if (inner := table.table("device")) is None:
        return None
    optional = inner.boolean("optional", False)
    found: Device | Devices
    if inner.has("group"):
        found = Devices(inner.string("group", nodes.GROUP, what='such as "gpu-render/1"'), optional)
    else:
        what = "a device that policies may name, such as /dev/urandom or /dev/dri/renderD128"
        found = Device(inner.string("path", nodes.NAMES, what=what), optional)
    inner.finish()
    return found


def _capabilities(table: Table) -> Capabilities | None:
    if (inner := table.table("capabilities")) is None:
        return None
    names = inner.words("names", ("bpf", "perfmon", "dac_read_search", "sys_admin", "sys_ptrace"))
    inner.finish()
    return Capabilities(tuple(sorted(names)))


def _headers(table: Table) -> Headers | None:
    if (inner := table.table("headers")) is None:
        return None
    which = inner.choice("which", ("newest",))
    inner.finish()
    return Headers(which)


def _bpf_directory(table: Table) -> BpfDirectory | None:
    if (inner := table.table("bpf_directory")) is None:
        return None
    access = inner.words("access", ("read", "write"))
    inner.finish()
    return BpfDirectory(_ordered(access))


def _jit(table: Table) -> Jit | None:
    if (inner := table.table("jit")) is None:
        return None
    engine = inner.string("engine")
    inner.finish()
    return Jit(engine)


_PERMISSIONS: dict[str, Callable[[Table], Permission | None]] = {
    "file": _file,
    "syscalls": _syscalls,
    "listen": _listen,
    "channel": _channel,
    "model": _model,
    "net": parse_net,
    "state": _state,
    "tmpfs": _tmpfs,
    "device": _device,
    "capabilities": _capabilities,
    "group": lambda table: SystemGroup(table.string("group", r"[a-z][a-z0-9-]*", what="a group")),
    "service": lambda table: Service(table.choice("service", SERVICE_FDS)),
    "headers": _headers,
    "bpf_directory": _bpf_directory,
    "jit": _jit,
}


def _claim(table: Table) -> Claim:
    table.rule = table.string("id", RULE_ID, what="a name in a-z, 0-9 and -")
    claim = Claim(table.rule, table.line)
    if (never := table.table("never")) is not None:
        given = [key for key in ("file", "calls", "net") if never.has(key)]
        if len(given) != 1:
            table.fail("one-permission", "never", "not one thing", "give one of: file, calls, net")
        if file := never.table("file", required=False):
            path = file.string("path", _PATH + r"(/\*\*)?", what="an absolute path")
            access = file.words("access", ("read", "write", "exec"))
            claim = Claim(
                table.rule, table.line, path=path.removesuffix("/**"), access=_ordered(access)
            )
            file.finish()
        elif net := never.table("net", required=False):
            claim = Claim(table.rule, table.line, host=net.string("host"))
            net.finish()
        elif never.has("calls"):
            calls = never.strings("calls", r"[a-z0-9_]+", what="a system call")
            claim = Claim(table.rule, table.line, calls=calls)
        never.finish("file, calls, net")
    table.finish("id, never")
    return claim


def _unique(document: Document) -> None:
    seen: dict[str, int] = {}
    for table in [t for array in _ARRAYS for t in document.many(array)]:
        name = table.values.get("id")
        if isinstance(name, str) and name in seen:
            document.fail(
                "duplicate-id", table.at("id"), f"{table.path}.id",
                f"the id {name} is taken by line {seen[name]}", "give every block its own id", name,
            )  # fmt: skip
        elif isinstance(name, str):
            seen[name] = table.at("id")


def _ordered(access: tuple[str, ...]) -> tuple[Access, ...]:
    order: tuple[Access, ...] = ("read", "write", "exec")
    return tuple(word for word in order if word in access)
