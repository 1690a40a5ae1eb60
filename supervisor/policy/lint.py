"""Check a directory of policies, groups and host files as a whole, on any machine.

Nothing of the running machine is looked at: a policy must be right before it meets its host.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Literal

from supervisor.host import Host, load_host
from supervisor.policy.compile import compile_policies
from supervisor.policy.context import Context, Headers, allot_ids, named_devices
from supervisor.policy.errors import PolicyError, PolicyErrors
from supervisor.policy.groups import Baseline, Group, load_groups
from supervisor.policy.model import Channel, Policy, SystemGroup
from supervisor.policy.nodes import DeviceGroup, load_device_groups, nominal
from supervisor.policy.parse import load_directory
from supervisor.policy.plans import CompiledPolicy
from supervisor.policy.redactions import Names, names, names_at

Severity = Literal["error", "warning"]
_TOKEN = "anchorhold-placeholder-" + "0" * 32


@dataclass(frozen=True, slots=True)
class Finding:
    """Something an auditor must see; with an "error" the policy would not work as written."""

    severity: Severity
    error: PolicyError

    def __str__(self) -> str:
        return f"{self.severity}: {self.error}"

    def as_json(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {"severity": self.severity, **self.error.as_json()}


def lint(
    directory: Path | str, today: date | None = None, groups_from: Path | None = None
) -> list[Finding]:
    """Everything wrong in `directory`, its groups/ and hosts/; an empty list is a clean one.

    `today` (UTC by default) decides what is overdue or expired; `groups_from` stands in for
    groups/ of a directory that has none.
    """
    day = today or datetime.now(UTC).date()
    policies, errors = load_directory(directory)
    folder = groups_from or Path(directory) / "groups"
    groups, baseline, broken = load_groups(folder)
    device_groups, broken_too = load_device_groups(folder / "devices")
    errors += broken + broken_too
    hosts: list[Host] = []
    for path in sorted((Path(directory) / "hosts").glob("*.toml")):
        try:
            hosts.append(load_host(path))
        except PolicyErrors as found:
            errors += found.errors
    redaction = _redaction(directory, errors)
    if baseline:
        errors += _missing_peers(policies)
        for host in hosts:
            context = neutral_context(
                policies, host, groups, baseline, day, device_groups, redaction
            )
            compile_policies(policies, host, context, errors)
    findings = [Finding("error", error) for error in dict.fromkeys(errors)]
    findings += [Finding("error", error) for error in _expired(policies, hosts, day)]
    findings += [Finding("warning", error) for error in _overdue(policies, day)]
    findings += [Finding("warning", error) for error in _relaxed(policies, day)]
    if not hosts:
        missing = PolicyError(
            "no-host-file", "hosts", 1, "-", "no host file: upstreams were not checked",
            "add a file to hosts/",
        )  # fmt: skip
        findings.append(Finding("warning", missing))
    return sorted(findings, key=lambda f: (f.error.file, f.error.line, f.error.code))


def exit_code(findings: Iterable[Finding]) -> int:
    """0: clean or warnings only. 1: at least one error."""
    return int(any(finding.severity == "error" for finding in findings))


def compile_anywhere(
    directory: Path | str,
    host: Host,
    today: date | None = None,
    groups_from: Path | None = None,
) -> tuple[dict[str, CompiledPolicy], list[PolicyError]]:
    """The plans of `directory` without looking at this machine: what ``explain`` prints.

    `groups_from` as for `lint`.
    """
    policies, errors = load_directory(directory)
    folder = groups_from or Path(directory) / "groups"
    groups, baseline, broken = load_groups(folder)
    device_groups, broken_too = load_device_groups(folder / "devices")
    errors += broken + broken_too
    if baseline is None:
        return {}, errors
    day = today or datetime.now(UTC).date()
    redaction = _redaction(directory, errors)
    context = neutral_context(policies, host, groups, baseline, day, device_groups, redaction)
    return compile_policies(policies, host, context, errors), errors


def neutral_context(
    policies: Iterable[Policy],
    host: Host,
    groups: Mapping[str, Group],
    baseline: Baseline,
    today: date,
    device_groups: Mapping[str, DeviceGroup] | None = None,
    redaction: Names | None = None,
) -> Context:
    """A context that takes nothing from this machine and lacks nothing a policy may ask for."""
    known = list(policies)
    system_groups = {
        rule.permission.name
        for policy in known
        for rule in policy.allow
        if isinstance(rule.permission, SystemGroup)
    }
    links = (("/bin", "usr/bin"), ("/lib", "usr/lib"), ("/lib64", "usr/lib64"))
    return Context(
        groups=groups,
        baseline=baseline,
        today=today,
        kernel="RELEASE",
        uids=allot_ids((p.id for p in known), host.id_base, {}),
        base_links=(*links, ("/sbin", "usr/sbin")),
        devices={path: nominal(path) for path in named_devices(known, device_groups or {})},
        device_groups=device_groups or {},
        gids=dict.fromkeys(system_groups, 65534),
        headers=Headers("/usr/src/BUILD", "/usr/src/SOURCE", ("/usr/src/BUILD", "/usr/src/SOURCE")),
        placeholders={policy.id: _TOKEN for policy in known},
        redaction=redaction or names(),
    )


def _redaction(directory: Path | str, errors: list[PolicyError]) -> Names:
    """The names of all redaction rules; of the shipped ones alone where an own file is broken."""
    try:
        return names_at(Path(directory))
    except PolicyErrors as broken:
        errors += broken.errors
        return names()


def _missing_peers(policies: list[Policy]) -> list[PolicyError]:
    known = {policy.id for policy in policies}
    return [
        PolicyError(
            "unknown-peer", policy.file, rule.line, "allow.channel",
            f"there is no policy {rule.permission.peer}", "correct the id or add its policy",
            rule.id,
        )
        for policy in policies
        for rule in policy.allow
        if isinstance(rule.permission, Channel) and rule.permission.peer not in known
    ]  # fmt: skip


def _expired(policies: list[Policy], hosts: list[Host], day: date) -> list[PolicyError]:
    found = [
        PolicyError(
            "exception-expired", policy.file, rule.line, "allow.exception",
            f"the exception ended on {rule.exemption.expires}; the permission is denied",
            "remove the rule, or renew the exception with its ticket", rule.id,
        )
        for policy in policies
        for rule in policy.allow
        if rule.exemption and rule.expired(day)
    ]  # fmt: skip
    found += [
        PolicyError(
            "exception-expired", policy.file, redaction.line, "redact.exception",
            f"the exception ended on {redaction.exemption.expires}; the preset redacts it again",
            "remove the block, or renew the exception with its ticket", redaction.id,
        )
        for policy in policies
        for redaction in policy.redactions
        if redaction.exemption and redaction.expired(day)
    ]  # fmt: skip
    found += [
        PolicyError(
            "waiver-expired", host.file, waiver.line, "waive.expires",
            f"the waiver of {waiver.guarantee} ended on {waiver.expires}",
            "remove it, or renew it with a reason", waiver.guarantee,
        )
        for host in hosts
        for waiver in host.waivers
        if waiver.expires and day > waiver.expires
    ]  # fmt: skip
    return found


def _relaxed(policies: list[Policy], day: date) -> list[PolicyError]:
    return [
        PolicyError(
            "redaction-relaxed", policy.file, redaction.line, "redact.action",
            f"{redaction.subject} passes unredacted until {redaction.exemption.expires}",
            "nothing, while the exception is meant", redaction.id,
        )
        for policy in policies
        for redaction in policy.redactions
        if redaction.action == "allow" and redaction.exemption and not redaction.expired(day)
    ]  # fmt: skip


def _overdue(policies: list[Policy], day: date) -> list[PolicyError]:
    return [
        PolicyError(
            "review-overdue", policy.file, policy.review_line, "review_by",
            f"{policy.owner} should have reviewed it by {policy.review_by}",
            "review the file and move review_by",
        )
        for policy in policies
        if day > policy.review_by
    ]  # fmt: skip
