"""Typed rules to launch plans. Pure: the same policies, host and context give the same plans."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sandbox.limits import cpu_list
from sandbox.plan import Bind, Limits, SandboxPlan, SeccompSpec
from sandbox.seccomp import call_number
from supervisor.host import Host
from supervisor.policy import claims, model
from supervisor.policy.budgets import plan_budgets, price_entry
from supervisor.policy.calls import LAUNCH_CALLS, seccomp_spec
from supervisor.policy.clients import client_environment
from supervisor.policy.context import Context
from supervisor.policy.digest import policy_digest
from supervisor.policy.errors import PolicyError, PolicyErrors
from supervisor.policy.files import may_execute, mounts, state_directory
from supervisor.policy.groups import Group, named_calls
from supervisor.policy.limits import missing_cpus, plan_limits
from supervisor.policy.model import Policy, Rule
from supervisor.policy.net import egress_ports, net_entries, net_environment
from supervisor.policy.parse import SERVICE_FDS
from supervisor.policy.plans import (
    ChannelPlan,
    CompiledPolicy,
    ListenPort,
    Route,
    Source,
    WatchPlan,
)
from supervisor.policy.redactions import plan_redactions
from supervisor.policy.wiring import one_route_each

EGRESS, EGRESS_PORT = "service.egress", 8100
_BOUNDS = (1 << 20, 16, 120.0)  # of who calls no model
_SOCKET_PATH = 107  # unix(7): sun_path without its NUL


def compile_policies(
    policies: Iterable[Policy],
    host: Host,
    context: Context,
    errors: list[PolicyError] | None = None,
) -> dict[str, CompiledPolicy]:
    """A plan for every policy that holds together on this host, by workload id.

    Mistakes are appended to `errors` and cost only the policy they stand in; without that list
    any mistake raises PolicyErrors.
    """
    known = {policy.id: policy for policy in policies}
    compiled: dict[str, CompiledPolicy] = {}
    found: list[PolicyError] = []
    for workload in sorted(known):
        one = _Compiler(known[workload], known, host, context)
        plan = one.compile()
        found += one.errors
        if plan is not None and not one.errors:
            compiled[workload] = plan
    found += one_route_each(compiled)
    if errors is None and found:
        raise PolicyErrors(found)
    if errors is not None:
        errors += found
    return compiled


def with_words(
    compiled: CompiledPolicy, words: Sequence[str], fds: Sequence[str] | None = None
) -> SandboxPlan:
    """The plan of one call of a helper: a verb, options and plain arguments after the command.

    `fds` narrows the descriptors to those that this verb takes. Raises ValueError for a verb, an
    option or a descriptor that the policy does not name.
    """
    run, plan = compiled.policy.run, compiled.sandbox
    if not words or words[0] not in run.verbs:
        raise ValueError(f"{compiled.policy.file} does not name the verb {list(words[:1])}")
    for word in words[1:]:
        if not word.isascii() or not word.isprintable():
            raise ValueError(f"{word!r} is not plain ASCII")
        if word.startswith("-") and word not in run.options:
            raise ValueError(f"{compiled.policy.file} does not name the option {word}")
    wanted = plan.fds if fds is None else tuple(fds)
    if not set(wanted) <= set(plan.fds):
        raise ValueError(f"{compiled.policy.file} grants {plan.fds}, not {wanted}")
    return replace(plan, argv=(*plan.argv, *words), fds=wanted)


class _Compiler:
    """One policy on its way; `errors` collects what is wrong with it."""

    def __init__(
        self, policy: Policy, known: Mapping[str, Policy], host: Host, context: Context
    ) -> None:
        self.policy, self.known, self.host, self.context = policy, known, host, context
        self.errors: list[PolicyError] = []
        self.rules = tuple(r for r in policy.allow if not r.expired(context.today))
        self.expired = tuple(r for r in policy.allow if r.expired(context.today))
        self.digest = policy_digest(policy, context.groups, context.baseline, context.device_groups)

    def compile(self) -> CompiledPolicy | None:
        policy, context = self.policy, self.context
        spec, allowed = self._calls()
        if spec is None:
            return None
        channels = self._channels()
        egress = self._egress()
        plan = self._sandbox(spec, channels, egress)
        watch = self._watch(allowed)
        for claim, reason in claims.broken(policy, self.rules, plan, self.host):
            self.errors.append(
                PolicyError(
                    "claim-broken", policy.file, claim.line, "claim.never", reason,
                    "remove the permission, or the claim if it is no longer meant", claim.id,
                )
            )  # fmt: skip
        if context.uids.get(policy.id) is None:
            self._fail_policy("no-uid", "id", "no uid was allotted", "pass uids in the context")
        states = [rule for rule in self.rules if isinstance(rule.permission, model.State)]
        return CompiledPolicy(
            policy=policy,
            digest=self.digest,
            sandbox=plan,
            rules=self.rules,
            expired=self.expired,
            egress=egress,
            routes=self._routes(),
            channels=channels,
            listen=tuple(
                ListenPort(listen.port, listen.through, self._source(rule))
                for rule, listen in self._of(model.Listen)
            ),
            watch=watch,
            state_directory=state_directory(self.host, policy.id) if states else None,
            restart=policy.run.restart,
        )

    def _of(self, kind: type[Any]) -> list[tuple[Rule, Any]]:
        return [(r, r.permission) for r in self.rules if isinstance(r.permission, kind)]

    def _source(self, rule: Rule) -> Source:
        return Source(self.policy.file, rule.id, rule.line)

    def _fail(self, rule: Rule, code: str, message: str, fix: str) -> None:
        where = f"allow.{rule.permission.key}"
        error = PolicyError(code, self.policy.file, rule.line, where, message, fix, rule.id)
        self.errors.append(error)

    def _fail_policy(self, code: str, where: str, message: str, fix: str) -> None:
        self.errors.append(PolicyError(code, self.policy.file, 1, where, message, fix))

    def _sandbox(
        self, spec: SeccompSpec, channels: Sequence[ChannelPlan], egress: dict[str, Any] | None
    ) -> SandboxPlan:
        policy, context = self.policy, self.context
        uid = context.uids.get(policy.id, 0)
        program = policy.run.command[0]
        if not may_execute(program, self.rules):
            message = f"no rule lets {program} be executed"
            self._fail_policy("no-program", "run.command", message, "add a file rule with exec")
        clients = [c for c in channels if c.role == "client"]
        binds = mounts(policy, self.rules, self.host, context, self._fail)
        binds += tuple(_channel_bind(channel) for channel in clients)
        capabilities = {n for _, c in self._of(model.Capabilities) for n in c.names}
        return SandboxPlan(
            workload=policy.id,
            kind=policy.kind,
            digest=self.digest,
            argv=policy.run.command,
            environment=self._environment(egress),
            uid=uid,
            gid=uid,
            mounts=binds,
            seccomp=spec,
            limits=self._limits(),
            groups=self._groups(),
            capabilities=tuple(sorted(capabilities)),
            user_namespace=not capabilities,
            jit=bool(self._of(model.Jit)),
            fds=self._fds(channels),
            tcp_bind=tuple(sorted(listen.port for _, listen in self._of(model.Listen))),
            tcp_connect=egress_ports(egress),
            requires=(*policy.requires, *(("disk:quota",) if self._of(model.State) else ())),
        )

    def _environment(self, egress: dict[str, Any] | None) -> tuple[tuple[str, str], ...]:
        home = "/state" if self._of(model.State) else "/"
        found = [("HOME", home), ("LANG", "C.UTF-8"), ("PATH", "/usr/bin")]
        clients = client_environment(egress, self.host, EGRESS_PORT)
        return (*found, *clients, *net_environment(egress))

    def _limits(self) -> Limits:
        limits, online = self.policy.limits, self.context.cpus
        states = [state.size for _, state in self._of(model.State)]
        if limits.io and not states:
            fix = "add a state rule, or remove io: it bounds the disks of the state directory"
            self._fail_limit("io", "io is limited, but there is no state directory", fix)
        if online is not None and (lacking := missing_cpus(limits, online)):
            message = f"this host has no processor {lacking}, only {cpu_list(online)}"
            self._fail_limit("cpus", message, "name processors of this host, or leave cpus out")
        state = state_directory(self.host, self.policy.id) if states else None
        return plan_limits(limits, max(states, default=None), state)

    def _fail_limit(self, key: str, message: str, fix: str) -> None:
        where, line = f"limits.{key}", self.policy.limits.line
        self.errors.append(
            PolicyError("impossible-limit", self.policy.file, line, where, message, fix)
        )

    def _groups(self) -> tuple[int, ...]:
        found = []
        for rule, group in self._of(model.SystemGroup):
            if group.name in self.context.gids:
                found.append(self.context.gids[group.name])
            else:
                message = f"this host has no group {group.name}"
                self._fail(rule, "no-group", message, f"groupadd --system {group.name}")
        return tuple(sorted(found))

    def _fds(self, channels: Sequence[ChannelPlan]) -> tuple[str, ...]:
        """Services' descriptors in one fixed order, then the channels served, by name."""
        named = [service.name for _, service in self._of(model.Service)]
        order = {name: index for index, name in enumerate(SERVICE_FDS)}
        named.sort(key=lambda name: (order.get(name, len(order)), name))
        return (*named, *sorted(c.fd_name for c in channels if c.role == "server"))

    def _channels(self) -> tuple[ChannelPlan, ...]:
        found = []
        for rule, channel in self._of(model.Channel):
            mirror = "server" if channel.role == "client" else "client"
            peer = self.known.get(channel.peer)
            if peer and not any(
                isinstance(other.permission, model.Channel)
                and (other.permission.peer, other.permission.role) == (self.policy.id, mirror)
                for other in peer.allow
            ):
                message = f"{peer.file} does not name {self.policy.id} as its {mirror}"
                fix = f"both sides must agree: add the {mirror} rule there, or remove this one"
                self._fail(rule, "one-sided-channel", message, fix)
            ends = (self.policy.id, channel.peer)
            client, server = ends if channel.role == "client" else ends[::-1]
            path = f"{self.host.paths.run}/channel/{client}/{server}.sock"
            if len(path) > _SOCKET_PATH:
                message = f"{path} has more than the {_SOCKET_PATH} bytes that a socket's path may"
                self._fail(rule, "long-path", message, "shorten the ids, or the host's paths.run")
            found.append(
                ChannelPlan(
                    client,
                    server,
                    channel.role,
                    path,
                    f"/run/anchorhold/{server}.sock",
                    f"channel.{client}",
                    self._source(rule),
                )
            )
        return tuple(sorted(found, key=lambda c: (c.server, c.client)))

    def _routes(self) -> tuple[Route, ...]:
        return tuple(
            Route(
                protocol,
                listen.port,
                f"workload.{self.policy.id}:{listen.port}",
                listen.body_max,
                protocol == "websocket",
                self._source(rule),
            )
            for rule, listen in self._of(model.Listen)
            for protocol in listen.protocols
        )

    def _egress(self) -> dict[str, Any] | None:
        rules, nets = self._of(model.Model), self._of(model.Net)
        if not rules and not nets:
            plan_budgets(self.policy, [], self.host, self.known.get(EGRESS), self.errors)
            plan_redactions(self.policy, self.context.redaction, self.errors)
            return None
        models: list[dict[str, Any]] = []
        bounds = {(m.body_max, m.concurrent, m.timeout) for _, m in rules} or {_BOUNDS}
        if len(bounds) > 1:
            message = "model rules of one policy differ in body_max, concurrent or timeout"
            self._fail(rules[-1][0], "bounds-differ", message, "give them the same bounds")
        for rule, permission in rules:
            self._check_upstream(rule, permission.upstream)
            for name in permission.names:
                if any(entry["name"] == name for entry in models):
                    message = f"{name} stands in two rules"
                    self._fail(rule, "duplicate-value", message, "allow each model once")
                models.append(
                    {
                        "name": name,
                        "upstream": permission.upstream,
                        "rule": rule.id,
                        "line": rule.line,
                        "redact": permission.redact,
                        **({"routes": list(permission.routes)} if permission.routes else {}),
                        **price_entry(self.host, permission.upstream, name),
                    }
                )
        placeholder = self.context.placeholders.get(self.policy.id, "")
        if not placeholder:
            self._fail(
                (rules or nets)[0][0], "no-placeholder", "no placeholder token", "pass one per id"
            )
        body_max, concurrent, timeout = sorted(bounds)[0]
        return {
            "placeholder": placeholder,
            "digest": self.digest,
            "file": self.policy.file,
            "models": sorted(models, key=lambda entry: str(entry["name"])),
            "body_max": body_max,
            "concurrent": concurrent,
            "timeout": timeout,
            "redact": plan_redactions(self.policy, self.context.redaction, self.errors),
            "budgets": plan_budgets(
                self.policy, models, self.host, self.known.get(EGRESS), self.errors
            ),
            "net": net_entries(self.policy, nets, self.host, self._fail),
        }

    def _check_upstream(self, rule: Rule, name: str) -> None:
        upstream = self.host.upstream(name)
        if upstream is None:
            message = f"{self.host.file} has no upstream {name}"
            self._fail(rule, "no-upstream", message, "add the [[upstream]] or correct the name")
            return
        server = self.known.get(upstream.workload or "")
        if server and not any(
            isinstance(r.permission, model.Listen)
            and (r.permission.port, r.permission.through) == (upstream.port, "egress")
            for r in server.allow
        ):
            message = f"{server.file} does not listen on {upstream.port} through egress"
            fix = f"correct upstream {name} in {self.host.file} or the listen rule"
            self._fail(rule, "no-upstream", message, fix)

    def _calls(self) -> tuple[SeccompSpec | None, frozenset[str]]:
        groups: list[Group] = []
        for rule, syscalls in self._of(model.Syscalls):
            group = self.context.groups.get(syscalls.group)
            if group is None:
                shipped = ", ".join(sorted(self.context.groups))
                message = f"no group {syscalls.group}"
                self._fail(rule, "unknown-group", message, f"use one of: {shipped}")
                continue
            risky = named_calls([group]) & self.context.baseline.high_risk()
            if risky and self.policy.kind != "service":
                message = f"{group.name} holds high-risk calls: {', '.join(sorted(risky))}"
                self._fail(rule, "services-only", message, "only a service may have such a group")
            groups.append(group)
        try:
            jit = bool(self._of(model.Jit))
            return seccomp_spec(groups, self.context.baseline, jit=jit), named_calls(groups)
        except ValueError as error:
            fix = "name groups that do not contradict each other"
            self._fail_policy("groups-clash", "allow.syscalls", str(error), fix)
            return None, frozenset()

    def _watch(self, allowed: frozenset[str]) -> WatchPlan:
        watch = self.policy.watch
        risky = self.context.baseline.high_risk() - allowed
        return WatchPlan(
            _numbers({*allowed, *LAUNCH_CALLS}, self.context.architecture),
            _numbers(risky, self.context.architecture),
            watch.on_high_risk,
            watch.on_unseen,
            watch.denials,
        )


def _channel_bind(channel: ChannelPlan) -> Bind:
    return Bind(channel.host_path, channel.inside_path, ("read", "write"))


def _numbers(calls: Iterable[str], architecture: str) -> tuple[int, ...]:
    """System call numbers; names that this architecture lacks have none."""
    numbers = {call_number(call, architecture) for call in calls}
    return tuple(sorted(number for number in numbers if number >= 0))
