"""Digests and authority: what a change of a policy can and cannot do."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_rig import (
    ARGUMENTS,
    BASELINE,
    GROUPS,
    HOST,
    POLICIES,
    SHIPPED,
    compiled,
    context,
    shipped,
)

from sandbox.plan import Bind
from sandbox.seccomp.truth_table import TruthTable
from supervisor.policy.compile import compile_policies
from supervisor.policy.digest import check_versions, policy_digest
from supervisor.policy.errors import PolicyError
from supervisor.policy.parse import parse_policy
from supervisor.policy.plans import CompiledPolicy


def test_an_older_version_is_refused() -> None:
    last = {"executor.main": 2, "adapter.rest": 1}
    assert [(e.code, e.file) for e in check_versions(POLICIES, last)] == [
        ("version-went-back", "executor-main.toml")
    ]


def blocks(text: str) -> tuple[str, list[str], str]:
    """A policy text cut into its head, its allow blocks, and the rest."""
    head, *rules = text.split("\n[[allow]]\n")
    last, tail = rules[-1].split("\n\n", 1)
    return head, [*rules[:-1], last + "\n"], "\n" + tail


@given(st.randoms(use_true_random=False))
@settings(max_examples=20, deadline=None)
def test_order_and_layout_do_not_change_the_digest(random) -> None:
    assert BASELINE is not None
    policy = shipped("executor.main")
    head, rules, tail = blocks((SHIPPED / policy.file).read_text())
    random.shuffle(rules)
    text = "\n[[allow]]\n".join([head, *rules]) + "\n# a remark\n" + tail
    other, errors = parse_policy(text.encode(), policy.file)
    assert other is not None, errors
    assert policy_digest(other, GROUPS, BASELINE) == policy_digest(policy, GROUPS, BASELINE)


def test_a_change_of_a_group_changes_the_digest() -> None:
    assert BASELINE is not None
    policy = shipped("adapter.rest")
    other = {**GROUPS, "python-service/1": GROUPS["python-tool/1"]}
    digest = policy_digest(policy, GROUPS, BASELINE)
    assert policy_digest(policy, other, BASELINE) != digest
    higher = dataclasses.replace(policy, version=2)
    assert policy_digest(higher, GROUPS, BASELINE) != digest


def authority(plan: CompiledPolicy) -> set[tuple[object, ...]]:
    """Everything the plan lets its workload do, as comparable atoms."""
    sandbox = plan.sandbox
    atoms: set[tuple[object, ...]] = {("fd", name) for name in sandbox.fds}
    for mount in sandbox.mounts:
        if isinstance(mount, Bind):
            atoms |= {("file", mount.target, access) for access in mount.access}
        else:
            atoms.add((type(mount).__name__, mount))
    atoms |= {("capability", name) for name in sandbox.capabilities}
    atoms |= {("group", gid) for gid in sandbox.groups}
    atoms |= {("bind", port) for port in sandbox.tcp_bind}
    atoms |= {("connect", port) for port in sandbox.tcp_connect}
    atoms |= {("jit",)} if sandbox.jit else set()
    atoms |= {("model", model["name"]) for model in (plan.egress or {"models": []})["models"]}
    atoms |= {("route", route.protocol) for route in plan.routes}
    table = TruthTable(sandbox.seccomp)
    for call in table.calls:
        for value in ARGUMENTS:
            if table.verdict(call, [value] * 6) == "allow":
                atoms.add(("call", call, value))
    return atoms


@pytest.mark.parametrize("name", ["executor.main", "service.unlock", "service.probe-loader"])
def test_removing_a_permission_never_adds_authority(name: str) -> None:
    policy = shipped(name)
    full = authority(compiled([policy])[name])
    for rule in policy.allow:
        fewer = replace(policy, allow=tuple(r for r in policy.allow if r != rule))
        errors: list[PolicyError] = []
        plan = compile_policies([fewer], HOST, context([fewer]), errors).get(name)
        if plan is None:
            assert [error.code for error in errors] in (["no-program"], ["impossible-limit"])
            continue
        assert authority(plan) < full, rule.id


def test_an_empty_policy_can_do_nothing() -> None:
    policy = replace(shipped("service.swtpm"), allow=())
    errors: list[PolicyError] = []
    compile_policies([policy], HOST, context([policy]), errors)
    assert [error.code for error in errors] == ["no-program"]
