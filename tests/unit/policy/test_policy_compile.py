"""Rules become plans: nothing more than was written, and every mistake at its line."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
from policy_rig import (
    HOST,
    POLICIES,
    compiled,
    context,
    mistakes,
    shipped,
    with_change,
)

from sandbox.plan import Bind, Device, Symlink, Tmpfs
from supervisor.host import Upstream
from supervisor.policy.compile import compile_policies, with_words
from supervisor.policy.context import allot_ids, newest_headers
from supervisor.policy.errors import PolicyError, PolicyErrors
from supervisor.policy.files import state_directory
from supervisor.policy.wiring import broker_targets, egress_config, ingress_config


def test_the_executor_gets_what_its_policy_says_and_no_more() -> None:
    plan = compiled()["executor.main"].sandbox
    assert plan.user_namespace
    assert plan.capabilities == () and plan.groups == () and not plan.jit
    assert plan.fds == ("channel.adapter.rest", "channel.adapter.websocket")
    assert plan.tcp_bind == () and plan.tcp_connect == (8100,)
    assert dict(plan.environment)["OPENAI_BASE_URL"] == "http://127.0.0.1:8100/v1"
    writable = [m.target for m in plan.mounts if isinstance(m, Bind) and "write" in m.access]
    writable += [m.target for m in plan.mounts if isinstance(m, Tmpfs)]
    assert sorted(writable) == ["/state", "/tmp"]
    assert [m.path for m in plan.mounts if isinstance(m, Device)] == ["/dev/null", "/dev/urandom"]
    assert plan.limits.memory == 256 << 20 and plan.limits.fsize == 256 << 20
    assert hash(plan) == hash(compiled()["executor.main"].sandbox)


def test_code_and_wheels_come_from_where_the_host_file_says() -> None:
    paths = replace(HOST.paths, app="/opt/app", runtime="/opt/runtime")
    plans = compile_policies(POLICIES, replace(HOST, paths=paths), context())
    binds = {
        m.target: m.source for m in plans["adapter.rest"].sandbox.mounts if isinstance(m, Bind)
    }
    assert binds["/usr/lib/anchorhold/app/assistant"] == "/opt/app/assistant"
    assert binds["/usr/lib/anchorhold/runtime"] == "/opt/runtime"
    assert binds["/usr/lib/python3.11"] == "/usr/lib/python3.11"


def test_an_adapter_is_no_model_client() -> None:
    adapter = compiled()["adapter.rest"]
    assert adapter.egress is None
    assert adapter.sandbox.tcp_bind == (8080,) and adapter.sandbox.tcp_connect == ()
    assert "OPENAI_API_KEY" not in dict(adapter.sandbox.environment)
    assert adapter.sandbox.fds == ()
    assert adapter.state_directory is None


def test_both_ends_of_a_channel_agree_on_the_socket() -> None:
    plans = compiled()
    (client,) = plans["adapter.rest"].channels
    server = next(c for c in plans["executor.main"].channels if c.client == "adapter.rest")
    assert client.host_path == server.host_path
    assert client.inside_path == "/run/anchorhold/executor.main.sock"
    mounts = plans["adapter.rest"].sandbox.mounts
    assert Bind(client.host_path, client.inside_path, ("read", "write")) in mounts


def test_software_tpm_gets_its_channel_as_descriptor_three() -> None:
    swtpm = compiled()["service.swtpm"].sandbox
    assert swtpm.fds == ("channel.service.unlock",)
    assert "type=unixio,fd=3" in swtpm.argv


def test_only_the_probe_loader_has_capabilities() -> None:
    held = {i: p.sandbox.capabilities for i, p in compiled().items() if p.sandbox.capabilities}
    assert held == {"service.probe-loader": ("bpf", "perfmon")}
    assert not compiled()["service.probe-loader"].sandbox.user_namespace


def test_the_loader_sees_headers_of_another_release_under_the_running_one() -> None:
    mounts = compiled()["service.probe-loader"].sandbox.mounts
    assert Symlink("/usr/lib/modules/RELEASE/build", "/usr/src/BUILD") in mounts
    assert Symlink("/usr/lib/modules/RELEASE/source", "/usr/src/SOURCE") in mounts


def test_no_mount_is_writable_and_executable() -> None:
    for plan in compiled().values():
        for mount in plan.sandbox.mounts:
            if isinstance(mount, Bind):
                assert not {"write", "exec"} <= set(mount.access), (plan.id, mount)


def test_every_uid_and_state_directory_is_its_own() -> None:
    plans = compiled().values()
    assert len({plan.sandbox.uid for plan in plans}) == len(plans)
    states = [plan.state_directory for plan in plans if plan.state_directory]
    assert len(set(states)) == len(states)


def test_high_risk_numbers_go_to_the_watch() -> None:
    watch = compiled()["adapter.rest"].watch
    assert {101, 165, 272, 321, 467} <= set(watch.high_risk)  # ptrace mount unshare bpf
    assert {0, 1, 41, 322} <= set(watch.allowed)  # read write socket, execveat of the launcher
    assert not set(watch.high_risk) & set(watch.allowed)
    assert 321 not in compiled()["service.probe-loader"].watch.high_risk


def test_proxies_get_what_they_parse() -> None:
    plans = compiled()
    egress = egress_config(plans, HOST)
    assert egress["upstreams"]["practice"] == {
        "scheme": "http", "host": "127.0.0.1", "port": 8000, "path": "/v1",
        "target": "upstream.practice", "credential": "practice",
        "header": "authorization", "prefix": "Bearer ", "provider": "openai-compatible",
    }  # fmt: skip
    assert list(egress["workloads"]) == ["executor.main"]
    entry = egress["workloads"]["executor.main"]
    line = next(r.line for r in shipped("executor.main").allow if r.id == "models")
    assert entry["models"][0] == {
        "name": "llm-v1", "upstream": "practice", "rule": "models", "line": line,
        "redact": "standard",
    }  # fmt: skip
    ingress = ingress_config(plans, HOST, [{"kid": "k", "x": "y", "private": "never"}])
    assert ingress["keys"] == [{"kid": "k", "x": "y"}]
    assert {(r["protocol"], r["target"], r["upgrade"]) for r in ingress["routes"]} == {
        ("websocket", "workload.adapter.websocket:8080", True),
        ("rest", "workload.adapter.rest:8080", False),
    }
    targets = broker_targets(plans, HOST)
    assert set(targets["service.egress"]) == {"upstream.practice"}
    assert targets["service.egress"]["upstream.practice"]["workload"] == "model.practice"
    assert set(targets["service.ingress"]) == {r["target"] for r in ingress["routes"]}


@pytest.mark.parametrize(
    ("name", "old", "new", "code"),
    [
        ("adapter.rest", "python-service/1", "python-service/9", "unknown-group"),
        ("adapter.rest", "python-service/1", "bpf-loader/1", "services-only"),
        ("adapter.rest", '"/usr/bin/python3.11"', '"/usr/bin/python3.9"', "dangling-link"),
        ("adapter.rest", '["rest"]', '["websocket"]', "protocol-taken"),
        ("adapter.rest", "/usr/lib/python3.11/**", "/usr/lib/**", "overlap"),
        ("adapter.rest", "/usr/lib/python3.11/**", "/usr/bin/python3.11", "overlap"),
        ("adapter.rest", "runtime/**", "other/**", "no-program"),
        ("adapter.rest", '"executor.main", role = "client"', '"model.practice", role = "client"',
         "one-sided-channel"),
        ("adapter.rest", "/etc/**", "/usr/bin/**", "claim-broken"),
        ("adapter.rest", '"execve"', '"read"', "claim-broken"),
        ("executor.main", 'upstream = "practice"', 'upstream = "other"', "no-upstream"),
        ("executor.main", "/dev/urandom", "/dev/tpmrm0", "no-device"),
    ],
)  # fmt: skip
def test_a_contradiction_costs_its_own_policy_only(
    name: str, old: str, new: str, code: str
) -> None:
    policies = with_change(name, old, new)
    errors: list[PolicyError] = []
    facts = replace(
        context(policies),
        links={"/usr/bin/python3": "python3.11"},
        devices={"/dev/null": (1, 3), "/dev/urandom": (1, 9)},
    )
    plans = compile_policies(policies, HOST, facts, errors)
    assert code in [error.code for error in errors]
    blamed = "adapter.websocket" if code == "protocol-taken" else name
    file = blamed.replace(".", "-") + ".toml"
    assert all(error.line > 0 and error.fix for error in errors)
    # A channel needs both ends, so the other end of a changed one may be named as well.
    assert file in {error.file for error in errors}
    assert blamed not in plans
    assert {"service.egress", "service.ingress", "model.practice"} <= set(plans)
    with pytest.raises(PolicyErrors):
        compile_policies(policies, HOST, facts)


def test_a_channel_whose_path_no_socket_takes_is_named() -> None:
    paths = replace(HOST.paths, run="/run/" + "x" * 80)
    errors = mistakes(POLICIES, replace(HOST, paths=paths))
    assert {error.code for error in errors} == {"long-path"}
    assert {error.file for error in errors} >= {"adapter-rest.toml", "executor-main.toml"}
    assert all("107 bytes" in str(error) and error.fix for error in errors)
    assert mistakes(POLICIES) == []


def test_a_missing_peer_stops_nobody() -> None:
    alone = [p for p in POLICIES if p.id != "executor.main"]
    assert {"adapter.rest", "adapter.websocket"} <= set(compiled(alone))


def test_a_link_on_the_host_becomes_a_link_inside() -> None:
    facts = replace(context(), links={"/usr/bin/python3": "python3.11"})
    mounts = compile_policies(POLICIES, HOST, facts)["adapter.rest"].sandbox.mounts
    assert Symlink("/usr/bin/python3", "python3.11") in mounts
    facts = replace(context(), links={"/usr/lib64/ld-linux-x86-64.so.2": "/lib/elsewhere/ld.so"})
    errors: list[PolicyError] = []
    compile_policies(POLICIES, HOST, facts, errors)
    assert {error.code for error in errors} == {"dangling-link"}


def test_an_exact_path_never_opens_a_directory() -> None:
    errors = mistakes(POLICIES, directories=frozenset({"/usr/bin/swtpm"}))
    assert [(e.code, e.file, e.rule) for e in errors] == [
        ("is-a-directory", "service-swtpm.toml", "program")
    ]


def test_an_optional_device_is_left_out_and_a_needed_group_is_not() -> None:
    facts = replace(context(), devices={"/dev/null": (1, 3), "/dev/urandom": (1, 9)})
    plans = compile_policies(POLICIES, HOST, facts)
    devices = [m.path for m in plans["service.unlock"].sandbox.mounts if isinstance(m, Device)]
    assert devices == ["/dev/null"]
    assert [e.code for e in mistakes(POLICIES, gids={})] == ["no-group"]


def test_missing_headers_and_tokens_are_named() -> None:
    assert [e.code for e in mistakes(POLICIES, headers=None)] == ["no-headers"]
    assert [e.code for e in mistakes(POLICIES, placeholders={})] == ["no-placeholder"]
    assert {e.code for e in mistakes(POLICIES, uids={})} == {"no-uid"}


def test_an_expired_exception_gives_nothing() -> None:
    rule = 'id    = "scratch"\n'
    exception = 'exception = { owner = "o", ticket = "T-1", expires = 2026-12-01 }\n'
    policies = with_change("executor.main", rule, rule + exception)
    before = compile_policies(policies, HOST, context(policies, date(2026, 12, 1)))
    after = compile_policies(policies, HOST, context(policies, date(2026, 12, 2)))
    assert any(isinstance(m, Tmpfs) for m in before["executor.main"].sandbox.mounts)
    assert not any(isinstance(m, Tmpfs) for m in after["executor.main"].sandbox.mounts)
    assert [r.id for r in after["executor.main"].expired] == ["scratch"]


def test_a_metadata_upstream_breaks_the_claim() -> None:
    bad = Upstream("practice", "/v1", "practice", 1, host="169.254.169.254")
    errors = mistakes(POLICIES, replace(HOST, upstreams=(bad,)))
    assert [(e.code, e.rule) for e in errors] == [("claim-broken", "no-metadata-service")]


def test_an_upstream_that_nobody_serves_is_named() -> None:
    wrong = replace(HOST.upstreams[0], port=8001)
    errors = mistakes(POLICIES, replace(HOST, upstreams=(wrong,)))
    assert [(e.code, e.file) for e in errors] == [("no-upstream", "executor-main.toml")]


def test_a_helper_takes_only_words_that_its_policy_names() -> None:
    unlock = compiled()["service.unlock"]
    plan = with_words(unlock, ["unlock", "--names", "practice"], ["handover"])
    assert plan.argv[-3:] == ("unlock", "--names", "practice")
    assert plan.fds == ("handover",)
    for words, fds in (
        (["export"], None),
        ([], None),
        (["set", "-x"], None),
        (["set", "a\nb"], None),
        (["list"], ["broker"]),
    ):
        with pytest.raises(ValueError, match=r"service-unlock|plain ASCII"):
            with_words(unlock, words, fds)


def test_an_id_keeps_its_uid_and_none_is_given_twice() -> None:
    first = allot_ids(["b", "a"], 1000, {})
    assert first == {"a": 1000, "b": 1001}
    second = allot_ids(["0", "b", "c"], 1000, first)
    assert second == {"a": 1000, "b": 1001, "0": 1002, "c": 1003}


def test_a_range_that_is_used_up_is_an_error() -> None:
    taken = {f"old{number}": 1000 + number for number in range(4095)}
    with pytest.raises(ValueError, match="taken"):
        allot_ids(["new"], 1000, taken)


def test_state_names_cannot_escape() -> None:
    assert state_directory(HOST, "executor.main") == "/var/lib/anchorhold/w-executor-main"


def test_the_newest_headers_are_chosen_by_number(tmp_path: Path) -> None:
    assert newest_headers(tmp_path) is None
    for name in ("6.1.0-9-amd64", "6.1.0-9-common", "6.1.0-10-amd64", "6.1.0-10-common"):
        (tmp_path / f"linux-headers-{name}").mkdir()
    found = newest_headers(tmp_path)
    assert found is not None
    assert found.build == str(tmp_path / "linux-headers-6.1.0-10-amd64")
    assert found.source == str(tmp_path / "linux-headers-6.1.0-10-common")
