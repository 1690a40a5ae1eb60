"""[limits] from the text to the plan, and what is wrong with it told with file and line."""

from __future__ import annotations

from pathlib import Path

import pytest
from policy_rig import HOST, changed, compiled, context, mistakes, shipped, with_change

from sandbox.plan import IoLimits
from supervisor.policy.compile import compile_policies
from supervisor.policy.explain import explain
from supervisor.policy.model import IoRates
from supervisor.policy.parse import parse_policy

FULL = """memory = "64MiB"
memory_high = "48MiB"
pids = 8
cpu = "150%"
cpu_weight = 50
cpus = "0-1,4"
io = { read = "20MiB/s", write = "512KiB/s", read_ops = 300, write_ops = 100 }"""


def test_every_limit_is_parsed(valid: str) -> None:
    policy, errors = parse_policy(
        valid.replace('memory = "64MiB"', FULL).encode(), "tool-echo.toml"
    )
    assert not errors and policy is not None
    limits = policy.limits
    assert (limits.memory, limits.memory_high, limits.pids) == (64 << 20, 48 << 20, 8)
    assert (limits.cpu, limits.cpu_weight, limits.cpus) == (1.5, 50, (0, 1, 4))
    assert limits.io == IoRates(20 << 20, 512 << 10, 300, 100)
    assert limits.line == valid.split("\n").index("[limits]") + 1


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ('memory_high = "48MiB"', "limits.memory_high"),  # without a memory it ends nowhere
        ('memory = "48MiB"\nmemory_high = "48MiB"', "limits.memory_high"),
        ("cpu_weight = 0", "limits.cpu_weight"),
        ("cpu_weight = 10001", "limits.cpu_weight"),
        ('cpus = "3-1"', "limits.cpus"),
        ('cpus = "0-1,"', "limits.cpus"),
        ('cpus = "all"', "limits.cpus"),
        ("cpus = 2", "limits.cpus"),
        ("io = { }", "limits.io"),
        ('io = "20MiB/s"', "limits.io"),
        ('io = { read = "20MiB" }', "limits.io.read"),
        ('io = { read = "0MiB/s" }', "limits.io.read"),
        ("io = { write_ops = 0 }", "limits.io.write_ops"),
        ('io = { "254:0" = "20MiB/s" }', "limits.io.254:0"),
        ('swap = "1MiB"', "limits.swap"),
    ],
)
def test_a_wrong_limit_is_named(valid: str, errors_of, text: str, field: str) -> None:
    errors = errors_of(valid.replace('memory = "64MiB"', text))
    assert field in {error.field for error in errors}
    assert all(error.fix and error.line >= 22 for error in errors)


def test_limits_reach_the_plan_and_the_explanation() -> None:
    plan = compiled()["executor.main"]
    policy = shipped("executor.main").limits
    assert plan.sandbox.limits.memory_high == policy.memory_high == 224 << 20
    assert policy.io is not None
    assert plan.sandbox.limits.io == IoLimits(
        f"{HOST.paths.state}/w-executor-main", policy.io.read, policy.io.write
    )
    text = explain(plan)
    for words in (
        f"slowed down above {224 << 20} bytes of memory",
        f"a second, on the disks below {HOST.paths.state}/w-executor-main: "
        f"{128 << 20} bytes read, {64 << 20} bytes written",
        "no cgroup below its own",
    ):
        assert words in text


def test_disk_rates_without_a_state_directory_are_refused() -> None:
    old = 'cpu         = "50%"\n'
    policies = with_change("adapter.rest", old, old + 'io = { read = "20MiB/s" }\n')
    (error,) = mistakes(policies)
    line = next(p.limits.line for p in policies if p.id == "adapter.rest")
    assert (error.code, error.field, error.line) == ("impossible-limit", "limits.io", line)
    assert "state rule" in error.fix


def test_processors_that_the_host_lacks_are_refused() -> None:
    old = 'cpu         = "50%"\n'
    policy = changed("adapter.rest", old, old + 'cpus = "0-2"\n')
    policies = with_change("adapter.rest", old, old + 'cpus = "0-2"\n')
    assert mistakes(policies) == []  # nobody said which machine it is
    assert mistakes(policies, cpus=frozenset({0, 1, 2, 3})) == []
    (error,) = mistakes(policies, cpus=frozenset({0, 1}))
    assert (error.code, error.field) == ("impossible-limit", "limits.cpus")
    assert "no processor 2, only 0-1" in error.message
    plan = compile_policies([policy, *policies], HOST, context(policies), [])["adapter.rest"]
    assert plan.sandbox.limits.cpus == (0, 1, 2)
    assert "runs on processors 0-2" in explain(plan)


def test_who_is_waited_for_goes_first_and_is_never_slowed_down() -> None:
    limits = {id_: plan.sandbox.limits for id_, plan in compiled().items()}
    for id_, one in limits.items():
        service = id_.startswith("service.")
        assert (one.memory_high is None) == service, id_
        assert one.memory and (one.memory_high or 0) < one.memory
        assert one.cpus == (), "no shipped policy names one machine's processors"
    weights = {id_: one.cpu_weight for id_, one in limits.items() if one.cpu_weight}
    assert weights == {"service.egress": 200, "service.ingress": 200, "service.probe-reader": 400}


def test_the_readme_names_every_limit(shipped: Path) -> None:
    text = (shipped / "README.md").read_text()
    for key in ("memory", "memory_high", "pids", "cpu", "cpu_weight", "cpus", "io"):
        assert f"| `{key} = " in text
