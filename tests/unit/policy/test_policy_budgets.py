"""[[budget]] blocks and price tables: what they mean, and what is wrong with a bad one."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest
from policy_rig import HOST, POLICIES, SHIPPED, changed, compiled, context, mistakes, with_change

from proxy.egress.config import parse as parse_config
from supervisor.host import Host, parse_host
from supervisor.policy import pricing
from supervisor.policy.compile import compile_policies
from supervisor.policy.errors import PolicyErrors
from supervisor.policy.explain import explain
from supervisor.policy.parse import parse_policy
from supervisor.policy.pricing import PricesInvalid, price_of
from supervisor.policy.wiring import egress_config

BLOCK = """
[[budget]]
id       = "month"
why      = "What the family pays"
models   = ["llm-v1"]
requests = "1000/day"
tokens   = "2M/day"
money    = "5.25 USD/month"
"""
REMOTE = 'host = "api.openai.com"'


def budgeted(old: str = "", new: str = "") -> list:  # type: ignore[type-arg]
    return with_change("executor.main", "\n[limits]", BLOCK.replace(old, new, 1) + "\n[limits]")


def remote_host(more: str = "") -> Host:
    text = (SHIPPED / "hosts" / "demo.toml").read_text()
    text = text.replace('workload   = "model.practice"', REMOTE)
    return parse_host((text + more).encode())


def test_a_budget_becomes_one_bound_for_each_unit() -> None:
    plan = compiled(budgeted())["executor.main"]
    assert plan.egress is not None
    line = next(b.line for b in plan.policy.budgets)
    plain = {"id": "month", "line": line, "models": ["llm-v1"], "currency": ""}
    assert plan.egress["budgets"] == [
        {**plain, "unit": "requests", "limit": 1000, "window": "day"},
        {**plain, "unit": "tokens", "limit": 2_000_000, "window": "day"},
        {**plain, "unit": "money", "limit": 5_250_000_000, "window": "month", "currency": "USD"},
    ]
    said = explain(plan)
    assert "budget month, llm-v1: 1000 requests a day; 2000000 tokens a day; 5.25 USD a month" in (
        said
    )


def test_the_proxy_understands_what_it_is_told() -> None:
    import json

    told = egress_config(compiled(budgeted()), HOST)
    assert told["state"] == "/state"
    config = parse_config(json.dumps(told).encode(), frozenset({"standard"}))
    assert [b.unit for b in config.workloads["executor.main"].budgets] == [
        "requests", "tokens", "money",
    ]  # fmt: skip


def test_a_budget_changes_the_digest() -> None:
    assert compiled(budgeted())["executor.main"].digest != compiled()["executor.main"].digest


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ('"1000/day"', '"1000/week"', "bad-value"),
        ('"1000/day"', '"0/day"', "bad-value"),
        ('"2M/day"', '"2.5M/day"', "bad-value"),
        ('"5.25 USD/month"', '"5.25/month"', "bad-value"),
        ('"5.25 USD/month"', '"5.25 usd/month"', "bad-value"),
        ("tokens  ", "words  ", "unknown-key"),
        ('"month"', '"models"', "duplicate-id"),
    ],
)
def test_a_bad_budget_is_refused_with_its_line(old: str, new: str, code: str) -> None:
    text = (SHIPPED / "executor-main.toml").read_text()
    assert old in BLOCK
    lines = text.count("\n")
    text += BLOCK.replace(old, new, 1)
    policy, errors = parse_policy(text.encode(), "executor-main.toml")
    assert policy is None
    assert errors[0].code == code and errors[0].line > lines


def test_a_budget_that_limits_nothing_is_refused() -> None:
    text = (SHIPPED / "executor-main.toml").read_text()
    empty = '\n[[budget]]\nid = "month"\nwhy = "x"\n'
    policy, errors = parse_policy((text + empty).encode(), "executor-main.toml")
    assert policy is None and errors[0].message == "the budget limits nothing"


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ('["llm-v1"]', '["llm-v9"]', "unknown-model"),
        ("USD", "USD", None),
    ],
)
def test_models_of_a_budget_must_be_allowed(old: str, new: str, code: str | None) -> None:
    found = mistakes(budgeted(old, new))
    assert [error.code for error in found] == ([code] if code else [])


def test_money_needs_a_price_in_its_currency() -> None:
    """At a workload of this machine models are free; at a host somebody must know the price."""
    policies = budgeted()
    assert not mistakes(policies)
    errors = mistakes(policies, remote_host())
    assert [(e.code, e.rule) for e in errors] == [("no-price", "month")]
    own = """
[[price]]
upstream = "practice"
models   = ["llm-*"]
currency = "USD"
input    = "0.15"
output   = "0.60"
"""
    assert not mistakes(policies, remote_host(own))
    errors = mistakes(policies, remote_host(own.replace("USD", "EUR")))
    assert [e.message for e in errors] == ["llm-v1 is priced in EUR, the budget in USD"]
    plans = compile_policies(policies, remote_host(own), context(policies))
    price = plans["executor.main"].egress["models"][0]["price"]  # type: ignore[index]
    assert (price["input"], price["output"], price["cached"]) == (150_000, 600_000, 150_000)


def test_a_budget_needs_the_proxys_state() -> None:
    without = changed("service.egress", 'state = { size = "16MiB" }', 'group = "tss"')
    policies = [without if p.id == "service.egress" else p for p in budgeted()]
    assert "no-state" in [error.code for error in mistakes(policies)]
    policies = [without if p.id == "service.egress" else p for p in POLICIES]
    assert not mistakes(policies)


def test_a_bad_price_of_the_host_file_is_refused() -> None:
    bad = '\n[[price]]\nupstream = "practice"\nmodels = ["x"]\ncurrency = "USD"\ninput = "cheap"\n'
    with pytest.raises(PolicyErrors) as errors:
        remote_host(bad + 'output = "1"\n')
    assert errors.value.errors[0].code == "bad-value"


def test_our_price_tables_load_and_the_longest_name_wins() -> None:
    rows = pricing.load()
    openai = "api.openai.com"
    mini, full = price_of(rows, openai, "gpt-4o-mini"), price_of(rows, openai, "gpt-4o")
    assert mini and full and mini.input == 150_000 and full.input == 2_500_000
    assert price_of(rows, openai, "gpt-4o-mini-2024-07-18") == mini
    assert price_of(rows, openai, "gpt-99") is None
    assert price_of(rows, "elsewhere.example", "gpt-4o") is None
    for row in rows:
        assert row.price.cached <= row.price.input <= row.price.output or not row.price.output


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("date = 2025-01-01", ""),
        ('input = "1.00"', ""),
        ('input = "1.00"', "input = 1.0"),
        ('["m"]', '["*m"]'),
        ('currency = "USD"', 'currency = "USD"\nnote = "x"'),
    ],
)
def test_a_bad_price_table_is_refused_whole(tmp_path: Path, old: str, new: str) -> None:
    good = (
        'hosts = ["h.example"]\ncurrency = "USD"\nsource = "s"\ndate = 2025-01-01\n'
        '[[price]]\nmodels = ["m"]\ninput = "1.00"\noutput = "2.00"\n'
    )
    (tmp_path / "a.toml").write_text(good)
    (row,) = pricing.load(tmp_path)
    assert row.price.output == 2_000_000
    assert old in good
    (tmp_path / "a.toml").write_text(good.replace(old, new, 1))
    with pytest.raises(PricesInvalid, match=r"a\.toml"):
        pricing.load(tmp_path)


def test_prices_say_how_old_they_are() -> None:
    import tomllib

    for path in pricing.FOLDER.glob("*.toml"):
        table = tomllib.loads(path.read_text())
        assert table["date"] <= date(2100, 1, 1) and table["source"].startswith("https://")
