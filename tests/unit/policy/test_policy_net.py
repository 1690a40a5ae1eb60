"""`net` rules: what the proxy and the broker are told, and what is wrong with a bad one."""

from __future__ import annotations

import json

import pytest
from policy_rig import HOST, SHIPPED, compiled, mistakes, with_change

from proxy.egress.config import parse as parse_config
from supervisor.host import parse_host
from supervisor.policy.explain import explain
from supervisor.policy.net import HOST_NAME, asked
from supervisor.policy.parse import parse_policy
from supervisor.policy.wiring import broker_targets, egress_config

ADAPTER = "adapter.rest"
BLOCK = """
[[allow]]
id  = "chat"
why = "The chat service"
net = { %s }
"""
TELEGRAM = (
    'host = "api.chat.example", methods = ["POST", "GET"], path = "/bot{credential}/**",'
    ' credential = "chat"'
)


def adapter(net: str, more: str = "") -> list:  # type: ignore[type-arg]
    return with_change(ADAPTER, "\n[limits]", BLOCK % net + more + "\n[limits]")


def errors_of(net: str) -> list[str]:
    text = (SHIPPED / "adapter-rest.toml").read_text() + BLOCK % net
    policy, errors = parse_policy(text.encode(), "adapter-rest.toml")
    assert (policy is None) == bool(errors)
    return [error.field for error in errors]


def test_a_rule_reaches_proxy_broker_and_workload() -> None:
    plans = compiled(adapter(TELEGRAM))
    plan = plans[ADAPTER]
    told = egress_config(plans, HOST)
    told["workloads"] = {ADAPTER: told["workloads"][ADAPTER]}  # the rig has one token for all
    config = parse_config(json.dumps(told).encode(), frozenset({"standard"}))
    (net,) = config.workloads[ADAPTER].net
    assert (net.host, net.port, net.credential) == ("api.chat.example", 443, "chat")
    assert net.methods == {"GET", "POST"} and net.readable_only
    assert not config.workloads[ADAPTER].models
    targets = broker_targets(plans, HOST)["service.egress"]
    assert targets[net.target] == {"host": "api.chat.example", "port": 443}
    assert plan.sandbox.tcp_connect == (8101,)
    environment = dict(plan.sandbox.environment)
    assert environment["HTTPS_PROXY"] == environment["http_proxy"] == "http://127.0.0.1:8101"
    assert "OPENAI_API_KEY" not in environment
    said = explain(plan)
    assert "api.chat.example:443: GET POST /bot{credential}/**, key chat put in" in said


def test_a_host_that_is_asked_for_is_no_target_before_the_answer() -> None:
    plans = compiled(adapter('host = "*", ask = true, time = "10m", hold = "30s"'))
    (net,) = plans[ADAPTER].egress["net"]  # type: ignore[index]
    assert (net["ask"], net["hold"], net["time"]) == (True, 30, 600)
    assert not any(
        name.startswith("net.") for name in broker_targets(plans, HOST)["service.egress"]
    )


def test_the_operator_may_allow_what_the_policy_asks_for_and_nothing_else() -> None:
    plan = compiled(adapter('host = "*.new.example", ask = true, port = 8443'))[ADAPTER]
    found = asked(plan, "a.new.example", 8443)
    assert found is not None and found["time"] == 300
    assert asked(plan, "a.new.example", 443) is None
    assert asked(plan, "new.example", 8443) is None
    assert asked(compiled()[ADAPTER], "a.new.example", 8443) is None
    assert HOST_NAME.fullmatch("a.new.example") and not HOST_NAME.fullmatch("10.0.0.1")


def test_who_calls_models_and_hosts_has_both_ports() -> None:
    block = BLOCK % 'host = "*.chat.example"'
    plans = compiled(with_change("executor.main", "\n[limits]", block + "\n[limits]"))
    assert plans["executor.main"].sandbox.tcp_connect == (8100, 8101)


@pytest.mark.parametrize(
    ("net", "field"),
    [
        ('host = "*"', "allow.net.host"),
        ('host = "10.0.0.1"', "allow.net.host"),
        ('host = "localhost"', "allow.net.host"),
        ('host = "Chat.example"', "allow.net.host"),
        ('host = "a.*.example"', "allow.net.host"),
        ('host = "chat.example", port = 0', "allow.net.port"),
        ('host = "chat.example", methods = ["CONNECT"]', "allow.net.methods"),
        ('host = "chat.example", path = "v1"', "allow.net.path"),
        ('host = "chat.example", path = "/a/**/b"', "allow.net.path"),
        ('host = "chat.example", path = "/a/../b"', "allow.net.path"),
        ('host = "chat.example", path = "/{credential}/x"', "allow.net.path"),
        ('host = "chat.example", port = 80, credential = "chat"', "allow.net.port"),
        ('host = "*", ask = true, methods = ["GET"]', "allow.net.ask"),
        ('host = "*", ask = true, hold = "1h"', "allow.net.hold"),
        ('host = "*", ask = true, time = "forever"', "allow.net.time"),
        ('host = "chat.example", hold = "5s"', "allow.net.hold"),
        ('host = "chat.example", websocket = "yes"', "allow.net.websocket"),
        ('host = "chat.example", methods = ["POST"], websocket = "inspect"', "allow.net.methods"),
    ],
)
def test_a_bad_rule_is_refused(net: str, field: str) -> None:
    assert field in errors_of(net)
    assert not errors_of('host = "chat.example"')


@pytest.mark.parametrize("host", ["api.models.example", "*.models.example"])
def test_no_rule_leads_to_a_models_host(host: str) -> None:
    text = (SHIPPED / "hosts" / "demo.toml").read_text()
    remote = parse_host(
        text.replace('workload   = "model.practice"', 'host = "api.models.example"').encode()
    )
    found = mistakes(adapter(f'host = "{host}"'), remote)
    assert [error.code for error in found] == ["model-host"]
    assert not mistakes(adapter('host = "chat.test"'), remote)


@pytest.mark.parametrize(
    ("claimed", "broken"),
    [
        ("api.chat.example", True),
        ("*.chat.example", True),
        ("*.example", True),
        ("other.example", False),
        ("*.api.chat.example", False),
        ("169.254.0.0/16", False),
    ],
)
def test_a_claim_on_a_host_is_held_against_net_rules(claimed: str, broken: bool) -> None:
    claim = f'\n[[claim]]\nid = "never-there"\nnever = {{ net = {{ host = "{claimed}" }} }}\n'
    found = mistakes(adapter('host = "api.chat.example"', claim))
    assert [error.code for error in found] == (["claim-broken"] if broken else [])
