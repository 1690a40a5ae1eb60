"""A compiled policy in full, for people and as JSON: what is enforced, and which line says so.

The same plan that the launcher executes is printed; nothing is worked out a second time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from sandbox.limits import cpu_list
from sandbox.plan import Bind, Device, Mount, SeccompSpec, Symlink, SyscallRule, Tmpfs, as_json
from supervisor.policy.model import Bound
from supervisor.policy.plans import CompiledPolicy
from supervisor.policy.redactions import describe


def explain(compiled: CompiledPolicy) -> str:
    """The whole plan as text, one section per layer."""
    policy, plan = compiled.policy, compiled.sandbox
    head = [
        f"{policy.id}: {policy.why}",
        f"  {policy.kind}, version {policy.version}, {policy.file}, sha256 {compiled.digest}",
        f"  owner {policy.owner}, review by {policy.review_by}",
    ]
    sections = [
        ("Starts", _starts(compiled)),
        ("Rules", _rules(compiled)),
        ("Switched off: the exception has expired", _expired(compiled)),
        ("Sees these files and nothing else", map(_mount, plan.mounts)),
        ("Landlock", _landlock(compiled)),
        ("System calls", _calls(plan.seccomp)),
        ("Network: own namespace with loopback only", _network(compiled)),
        ("Models, through the egress proxy", _models(compiled)),
        ("Hosts outside, through the egress proxy", _nets(compiled)),
        ("Channels", _channels(compiled)),
        ("Limits", _limits(compiled)),
        ("Watch", _watch(compiled)),
        ("Requires of the host", [", ".join(policy.requires) or "nothing"]),
    ]
    for title, lines in sections:
        body = [f"  {line}" for line in lines]
        if body:
            head += ["", title, *body]
    return "\n".join(head) + "\n"


def explain_json(compiled: CompiledPolicy) -> dict[str, Any]:
    """The same as plain JSON data; the placeholder token is left out."""
    policy = compiled.policy
    egress = {k: v for k, v in (compiled.egress or {}).items() if k != "placeholder"}
    placeholder = (compiled.egress or {}).get("placeholder")
    plan = as_json(compiled.sandbox)
    plan["environment"] = [
        [name, "<placeholder>" if value == placeholder else value]
        for name, value in compiled.sandbox.environment
    ]
    return {
        "id": policy.id,
        "file": policy.file,
        "version": policy.version,
        "owner": policy.owner,
        "review_by": policy.review_by.isoformat(),
        "why": policy.why,
        "digest": compiled.digest,
        "restart": compiled.restart,
        "rules": [_rule_json(rule, policy.file) for rule in compiled.rules],
        "expired": [_rule_json(rule, policy.file) for rule in compiled.expired],
        "sandbox": plan,
        "landlock": [[path, list(access)] for path, access in landlock_view(compiled)],
        "egress": egress or None,
        "routes": as_json(compiled.routes),
        "channels": as_json(compiled.channels),
        "listen": as_json(compiled.listen),
        "watch": as_json(compiled.watch),
        "state_directory": compiled.state_directory,
    }


def landlock_view(compiled: CompiledPolicy) -> list[tuple[str, tuple[str, ...]]]:
    """What Landlock lets the workload do with paths: (path, access), sorted."""
    found: list[tuple[str, tuple[str, ...]]] = [("/proc", ("read",))]
    for mount in compiled.sandbox.mounts:
        if isinstance(mount, Bind):
            found.append((mount.target, mount.access))
        elif isinstance(mount, Tmpfs):
            found.append((mount.target, ("read", "write")))
        elif isinstance(mount, Device):
            found.append((mount.path, ("read", "write")))
    return sorted(found)


def _rule_json(rule: Any, file: str) -> dict[str, Any]:
    permission = as_json(rule.permission)
    return {
        "id": rule.id,
        "file": file,
        "line": rule.line,
        "why": rule.why,
        "kind": rule.permission.key,
        "permission": permission,
    }


def _starts(compiled: CompiledPolicy) -> Iterator[str]:
    plan = compiled.sandbox
    yield " ".join(plan.argv)
    if verbs := compiled.policy.run.verbs:
        yield f"followed by one of: {', '.join(verbs)}"
    where = "own user namespace" if plan.user_namespace else "the host's user namespace"
    held = ", ".join(plan.capabilities) or "none"
    yield f"as uid {plan.uid} in {where}; capabilities: {held}; restart: {compiled.restart}"
    if plan.groups:
        yield f"host groups: {', '.join(map(str, plan.groups))}"
    if plan.fds:
        named = [f"{number} {name}" for number, name in enumerate(plan.fds, 3)]
        yield f"descriptors: {', '.join(named)}"
    if plan.jit:
        yield "may execute memory it has written (jit)"


def _rules(compiled: CompiledPolicy) -> Iterator[str]:
    file = compiled.policy.file
    for rule in compiled.rules:
        yield f"{file}:{rule.line} {rule.id} ({rule.permission.key}): {rule.why}"
        if rule.exemption:
            by = rule.exemption
            yield f"    exception {by.ticket} of {by.owner}, until {by.expires}"


def _expired(compiled: CompiledPolicy) -> Iterator[str]:
    for rule in compiled.expired:
        expires = rule.exemption.expires if rule.exemption else ""
        yield f"{compiled.policy.file}:{rule.line} {rule.id}: expired {expires}"


def _mount(mount: Mount) -> str:
    if isinstance(mount, Bind):
        shown = mount.target if mount.source == mount.target else f"{mount.target} = {mount.source}"
        return f"{shown} ({' '.join(mount.access)})"
    if isinstance(mount, Tmpfs):
        return f"{mount.target} in memory, {mount.size} bytes, {mount.inodes} files (read write)"
    if isinstance(mount, Symlink):
        return f"{mount.target} -> {mount.points_to}"
    orders = ", with its ioctl requests" if mount.requests else ""
    return f"{mount.path} device {mount.major}:{mount.minor}{orders}"


def _landlock(compiled: CompiledPolicy) -> Iterator[str]:
    for path, access in landlock_view(compiled):
        yield f"{path}: {' '.join(access)}"
    plan = compiled.sandbox
    yield f"TCP bind: {_ports(plan.tcp_bind)}; TCP connect: {_ports(plan.tcp_connect)}"


def _ports(ports: tuple[int, ...]) -> str:
    return ", ".join(map(str, ports)) or "none"


def _calls(spec: SeccompSpec) -> Iterator[str]:
    yield from _by_reason(rule for rule in spec.main if rule.action == "allow")
    yield from _by_reason(spec.refuse)
    yield from _by_reason(rule for rule in spec.main if rule.action != "allow")
    yield f"{spec.default}: every other call"


def _by_reason(rules: Iterable[SyscallRule]) -> Iterator[str]:
    """One line per verdict and reason; the comparisons behind "only" are its exact complement."""
    groups: dict[tuple[str, str], list[str]] = {}
    for rule in rules:
        calls = groups.setdefault((rule.action, rule.reason), [])
        if rule.call not in calls:
            calls.append(rule.call)
    for (action, reason), calls in groups.items():
        yield f"{action}: {' '.join(calls)}"
        yield f"    {reason}"


def _network(compiled: CompiledPolicy) -> Iterator[str]:
    for port in compiled.listen:
        source = port.source
        yield f"listens on 127.0.0.1:{port.port}, dialled by the {port.through} only"
        yield f"    {source.file}:{source.line} {source.rule}"
    for route in compiled.routes:
        yield f"gateway path /{route.protocol}/, at most {route.body_max} bytes a body"


def _models(compiled: CompiledPolicy) -> Iterator[str]:
    if (egress := compiled.egress) and egress["models"]:
        for model in egress["models"]:
            place = f"{compiled.policy.file}:{model['line']} {model['rule']}"
            yield f"{model['name']} at {model['upstream']}, redaction {model['redact']} ({place})"
            if price := model.get("price"):
                per = {kind: price[kind] / 1e6 for kind in ("input", "cached", "output")}
                said = ", ".join(f"{each:g} {kind}" for kind, each in per.items())
                yield f"    {price['currency']} per million tokens: {said}"
        bounds = f"{egress['body_max']} bytes a body, {egress['concurrent']} at once"
        yield f"{bounds}, {egress['timeout']:g} s"
    for redaction in compiled.policy.redactions:
        yield f"redact {redaction.id}, {describe(redaction)}"
        yield f"    {compiled.policy.file}:{redaction.line} {redaction.why}"
    for budget in compiled.policy.budgets:
        counted = ", ".join(budget.models) or "all models together"
        limits = "; ".join(map(_bound, budget.bounds))
        yield f"budget {budget.id}, {counted}: {limits}"
        yield f"    {compiled.policy.file}:{budget.line} {budget.why}"


def _nets(compiled: CompiledPolicy) -> Iterator[str]:
    for net in (compiled.egress or {}).get("net", ()):
        what = f"{' '.join(net['methods']) or 'any method'} {net['path'] or 'any path'}"
        if net["ask"]:
            what = f"asks the operator, waits {net['hold']} s, his word holds {net['time']} s"
        tunnel = "" if net["methods"] or net["path"] or net["credential"] else ", or a TLS tunnel"
        key = f", key {net['credential']} put in" if net["credential"] else ""
        yield f"{net['host']}:{net['port']}: {what}{key}{'' if net['ask'] else tunnel}"
        yield f"    {compiled.policy.file}:{net['line']} {net['rule']}"


def _bound(bound: Bound) -> str:
    if bound.unit == "money":
        return f"{bound.limit / 1e9:.2f} {bound.currency} a {bound.window}"
    return f"{bound.limit} {bound.unit.replace('_', ' ')} a {bound.window}"


def _channels(compiled: CompiledPolicy) -> Iterator[str]:
    for channel in compiled.channels:
        place = f"{channel.source.file}:{channel.source.line} {channel.source.rule}"
        if channel.role == "client":
            yield f"connects to {channel.server} at {channel.inside_path} ({place})"
        else:
            yield f"serves {channel.client} on descriptor {channel.fd_name} ({place})"


def _limits(compiled: CompiledPolicy) -> Iterator[str]:
    limits = compiled.sandbox.limits
    yield f"memory {limits.memory} bytes, {limits.pids} processes, {limits.cpu} cores"
    if limits.memory is not None:
        yield "no swap; above its memory all of it is killed"
    if limits.memory_high is not None:
        yield f"slowed down above {limits.memory_high} bytes of memory"
    if limits.cpu_weight is not None:
        yield f"weight {limits.cpu_weight} where processors are short; 100 is usual"
    if limits.cpus:
        yield f"runs on processors {cpu_list(limits.cpus)}"
    if io := limits.io:
        rates = (
            ("bytes read", io.read), ("bytes written", io.write),
            ("reads", io.read_ops), ("writes", io.write_ops),
        )  # fmt: skip
        said = ", ".join(f"{rate} {name}" for name, rate in rates if rate is not None)
        yield f"a second, on the disks below {io.path}: {said}"
    yield (
        f"{limits.nofile} descriptors, {limits.fsize} bytes a file,"
        f" {limits.memlock} bytes locked memory; no cgroup below its own"
    )


def _watch(compiled: CompiledPolicy) -> Iterator[str]:
    watch = compiled.watch
    yield f"{len(watch.allowed)} calls known, {len(watch.high_risk)} high-risk"
    denials = "reported" if watch.denials else "not reported"
    yield f"high-risk: {watch.on_high_risk}; unseen: {watch.on_unseen}; denials {denials}"
