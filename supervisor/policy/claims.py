"""Claims: what a policy says can never happen, proved against its own plan at every compile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sandbox.addresses import parse_network
from sandbox.plan import Bind, SandboxPlan, Tmpfs
from sandbox.seccomp.truth_table import TruthTable
from supervisor.host import Host
from supervisor.policy.files import covers
from supervisor.policy.model import Claim, Model, Net, Policy, Rule
from supervisor.policy.net import reaches


def broken(
    policy: Policy, rules: Sequence[Rule], plan: SandboxPlan, host: Host
) -> Iterator[tuple[Claim, str]]:
    """Every claim that does not hold, with one witness."""
    for claim in policy.claims:
        witness = (
            _file(claim, plan) if claim.path else _net(claim, rules, host) or _call(claim, plan)
        )
        if witness:
            yield claim, witness


def _file(claim: Claim, plan: SandboxPlan) -> str | None:
    path = claim.path or ""
    for mount in plan.mounts:
        if isinstance(mount, Bind):
            target, access = mount.target, set(mount.access)
        elif isinstance(mount, Tmpfs):
            target, access = mount.target, {"read", "write"}
        else:
            continue
        granted = access & set(claim.access)
        if granted and (covers(target, path) or covers(path, target)):
            return f"{target} is open for {', '.join(sorted(granted))}"
    return None


def _call(claim: Claim, plan: SandboxPlan) -> str | None:
    table = TruthTable(plan.seccomp)
    witness = sorted(filter(table.may, claim.calls))
    return f"{witness[0]} is allowed" if witness else None


def _net(claim: Claim, rules: Sequence[Rule], host: Host) -> str | None:
    """The ways out are models, by the hosts of their upstreams, and net rules."""
    if claim.host is None:
        return None
    for rule in rules:
        if isinstance(rule.permission, Net) and _meet(claim.host, rule.permission.host):
            return f"rule {rule.id} reaches {rule.permission.host}"
        if not isinstance(rule.permission, Model):
            continue
        upstream = host.upstream(rule.permission.upstream)
        if upstream and upstream.host and _matches(claim.host, upstream.host):
            return f"upstream {upstream.name} of rule {rule.id} is {upstream.host}"
    return None


def _meet(claimed: str, allowed: str) -> bool:
    """Whether two patterns of hosts have a host in common. Of networks only names are compared: a
    name may resolve to public addresses alone, which the broker sees to."""
    if allowed == "*":
        return "/" not in claimed and not claimed.replace(".", "").isdigit()
    inside = allowed.startswith("*.") and claimed.startswith("*.")
    if inside:
        return allowed.endswith(claimed[1:]) or claimed.endswith(allowed[1:])
    return reaches(claimed, allowed) or reaches(allowed, claimed)


def _matches(pattern: str, host: str) -> bool:
    if pattern.startswith("*."):
        return host.endswith(pattern[1:])
    try:
        address = parse_network(host.strip("[]"))
        return parse_network(pattern).holds_network(address)
    except ValueError:
        return host == pattern
