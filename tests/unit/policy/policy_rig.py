"""The shipped policies, compiled for no machine in particular, and ways to break one."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path

from supervisor.host import Host, load_host
from supervisor.policy.compile import compile_policies
from supervisor.policy.constants import CONSTANTS
from supervisor.policy.context import Context
from supervisor.policy.errors import PolicyError
from supervisor.policy.groups import load_groups
from supervisor.policy.lint import neutral_context
from supervisor.policy.model import Policy
from supervisor.policy.parse import load_directory, parse_policy
from supervisor.policy.plans import CompiledPolicy

SHIPPED = Path(__file__).parents[3] / "policies"
HOST = load_host(SHIPPED / "hosts" / "demo.toml")
POLICIES = load_directory(SHIPPED)[0]
GROUPS, BASELINE, _ = load_groups(SHIPPED / "groups")
TODAY = date(2026, 12, 1)
ARGUMENTS = sorted({*range(64), *CONSTANTS.values(), 2**31, 2**32 + 2, 0x3D0F00})


def context(policies: list[Policy] = POLICIES, today: date = TODAY) -> Context:
    assert BASELINE is not None
    return neutral_context(policies, HOST, GROUPS, BASELINE, today)


def compiled(policies: list[Policy] = POLICIES) -> dict[str, CompiledPolicy]:
    return compile_policies(policies, HOST, context(policies))


def mistakes(policies: list[Policy], host: Host = HOST, **facts: object) -> list[PolicyError]:
    errors: list[PolicyError] = []
    compile_policies(policies, host, replace(context(policies), **facts), errors)
    return errors


def shipped(name: str) -> Policy:
    return next(policy for policy in POLICIES if policy.id == name)


def changed(name: str, old: str, new: str) -> Policy:
    file = name.replace(".", "-") + ".toml"
    text = (SHIPPED / file).read_text()
    assert old in text
    policy, errors = parse_policy(text.replace(old, new, 1).encode(), file)
    assert policy is not None, errors
    return policy


def with_change(name: str, old: str, new: str) -> list[Policy]:
    return [changed(name, old, new) if p.id == name else p for p in POLICIES]
