"""Devices in policies: explicit names, reviewed groups, and nothing else of /dev."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from policy_rig import BASELINE, GROUPS, HOST, POLICIES, SHIPPED, TODAY, mistakes, with_change

from sandbox import landlock
from sandbox.flatten import flatten
from sandbox.plan import Device, SandboxPlan
from sandbox.seccomp.truth_table import TruthTable
from supervisor.policy.compile import compile_policies
from supervisor.policy.digest import policy_digest
from supervisor.policy.errors import PolicyError
from supervisor.policy.lint import neutral_context
from supervisor.policy.model import Policy
from supervisor.policy.nodes import DeviceGroup, load_device_groups, needs_requests, nominal

FOLDER = SHIPPED / "groups/devices"
DEVICE_GROUPS, _ = load_device_groups(FOLDER)
NULL = 'device = { path = "/dev/null" }'
RENDER = {"/dev/null": (1, 3), "/dev/dri/renderD128": (226, 128)}
Errors = Callable[[str], list[PolicyError]]


def asking(rule: str) -> list[Policy]:
    """The shipped policies, where the REST adapter asks for `rule` in place of /dev/null."""
    return with_change("adapter.rest", NULL, f"device = {rule}")


def plan(rule: str, devices: dict[str, object]) -> SandboxPlan:
    policies = asking(rule)
    assert BASELINE is not None
    found = neutral_context(policies, HOST, GROUPS, BASELINE, TODAY, DEVICE_GROUPS)
    known = {**found.devices, **devices}
    known = {path: number for path, number in known.items() if path in devices or "dri" not in path}
    compiled = compile_policies(policies, HOST, replace(found, devices=known))
    return compiled["adapter.rest"].sandbox


def refusal(rule: str, devices: dict[str, object]) -> list[str]:
    """What is said of the rule on a host with these `devices`."""
    known = {"/dev/null": (1, 3), "/dev/urandom": (1, 9), "/dev/tpmrm0": (240, 0), **devices}
    facts = {"devices": known, "device_groups": DEVICE_GROUPS}
    found = mistakes(asking(rule), **facts)
    assert all(error.file == "adapter-rest.toml" and error.fix for error in found)
    return [error.code for error in found]


def test_the_shipped_groups_are_whole_and_name_only_graphics() -> None:
    groups, errors = load_device_groups(FOLDER)
    assert errors == []
    assert set(groups) == {"gpu-render/1", "gpu-amd/1", "gpu-nvidia/1"}
    for group in groups.values():
        assert all(node.why and needs_requests(node.path) for node in group.nodes)
        assert not [n for n in group.nodes if "card" in n.path or "modeset" in n.path]


def test_a_group_gives_the_nodes_that_are_there_and_no_others() -> None:
    found = [m for m in plan('{ group = "gpu-render/1" }', RENDER).mounts if isinstance(m, Device)]
    assert found == [Device("/dev/dri/renderD128", 226, 128, requests=True)]


def test_only_what_is_driven_by_requests_may_be_given_any() -> None:
    made = flatten(plan('{ path = "/dev/dri/renderD128" }', RENDER), 7, 40)
    plain = flatten(plan('{ path = "/dev/null" }', {}), 7, 40)
    rights = {**dict(made.landlock), **dict(plain.landlock)}
    assert rights["/dev/dri/renderD128"] & landlock.IOCTL_DEV
    assert not rights["/dev/null"] & landlock.IOCTL_DEV


@pytest.mark.parametrize(
    ("rule", "devices", "codes"),
    [
        ('{ path = "/dev/dri/renderD128" }', {}, ["no-device"]),
        ('{ path = "/dev/dri/renderD128", optional = true }', {}, []),
        ('{ group = "gpu-render/1" }', {}, ["no-device"]),
        ('{ group = "gpu-render/1", optional = true }', {}, []),
        ('{ group = "gpu-render/1" }', {"/dev/dri/renderD130": (226, 130)}, []),
        ('{ group = "gpu-render/2" }', RENDER, ["unknown-group"]),
        # A card without the device that gives it orders is no card; with neither, there is none.
        ('{ group = "gpu-amd/1", optional = true }', RENDER, ["no-device"]),
        ('{ group = "gpu-nvidia/1", optional = true }', {}, []),
        # What stands there under the name is something else: optional or not, that is an error.
        ('{ path = "/dev/kfd" }', {"/dev/kfd": "it is a link"}, ["wrong-device"]),
        ('{ path = "/dev/kfd", optional = true }', {"/dev/kfd": "a link"}, ["wrong-device"]),
        ('{ group = "gpu-render/1" }', {**RENDER, "/dev/dri/renderD129": "x"}, ["wrong-device"]),
    ],
)
def test_what_the_host_lacks_or_has_wrong_is_said(
    rule: str, devices: dict[str, object], codes: list[str]
) -> None:
    assert refusal(rule, devices) == codes


@pytest.mark.parametrize(
    "path",
    [
        "/dev/mem", "/dev/sda", "/dev/kmsg", "/dev/fuse", "/dev/kvm", "/dev/dri/card0",
        "/dev/dri/renderD*", "/dev/dri/renderD127", "/dev/dri/renderD192", "/dev/nvidia-modeset",
        "/dev/nvidia100", "/dev/../etc/shadow", "/dev/dri/renderD128/", "null", "/dev/null\\n",
    ],
)  # fmt: skip
def test_no_other_device_can_be_named(path: str, valid: str, errors_of: Errors) -> None:
    rule = '\n[[allow]]\nid = "node"\nwhy = "x"\ndevice = { path = "%s" }\n'
    assert errors_of(valid + rule % "/dev/dri/renderD128") == []  # control
    found = errors_of(valid + rule % path)
    assert [(error.code, error.field) for error in found] == [("bad-value", "allow.device.path")]
    assert found[0].line > 0 and found[0].fix


def test_a_group_is_part_of_the_digest() -> None:
    policy = next(p for p in asking('{ group = "gpu-render/1" }') if p.id == "adapter.rest")
    assert BASELINE is not None
    shorter = {
        name: DeviceGroup(group.name, group.why, group.nodes[:-1])
        for name, group in DEVICE_GROUPS.items()
    }
    digests = {
        policy_digest(policy, GROUPS, BASELINE, groups) for groups in (DEVICE_GROUPS, shorter)
    }
    assert len(digests) == 2


def test_orders_to_a_card_need_their_group() -> None:
    drm = 0xC0406400
    without = plan('{ path = "/dev/dri/renderD128" }', RENDER).seccomp
    assert TruthTable(without).verdict("ioctl", (3, drm)) == "ENOTTY"
    policies = with_change("adapter.rest", "python-service/1", "gpu-calls/1")
    assert mistakes(policies) == []
    assert BASELINE is not None
    rule = '[[allow]]\nid = "orders"\nwhy = "x"\nsyscalls = { group = "gpu-calls/1" }\n\n[limits]'
    policies = with_change("adapter.rest", "[limits]", rule)
    found = neutral_context(policies, HOST, GROUPS, BASELINE, TODAY)
    spec = compile_policies(policies, HOST, found)["adapter.rest"].sandbox.seccomp
    assert TruthTable(spec).verdict("ioctl", (3, drm)) == "allow"
    assert TruthTable(spec).verdict("ioctl", (0, 0x5412)) != "allow", "TIOCSTI stays refused"
    assert len(POLICIES) == len(policies)


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("/dev/dri/renderD128", "/dev/dri/card0", "bad-value"),
        ("/dev/dri/renderD129", "/dev/dri/renderD128", "duplicate-value"),
        ('name    = "gpu-render"', 'name    = "other"', "bad-file-name"),
        ("optional = true", 'optional = "yes"', "wrong-type"),
        ("[[device]]", "[[devices]]", "unknown-table"),
    ],
)
def test_a_broken_group_is_refused_at_its_line(
    tmp_path: Path, old: str, new: str, code: str
) -> None:
    text = (FOLDER / "gpu-render.toml").read_text()
    assert old in text
    (tmp_path / "gpu-render.toml").write_text(text.replace(old, new, 1))
    groups, errors = load_device_groups(tmp_path)
    assert groups == {}
    assert code in [error.code for error in errors]
    assert all(error.file == "gpu-render.toml" and error.line for error in errors)


def test_numbers_for_no_machine_in_particular_are_the_fixed_ones() -> None:
    assert nominal("/dev/dri/renderD131") == (226, 131)
    assert nominal("/dev/nvidia3") == (195, 3)
    assert nominal("/dev/null") == (1, 3)
