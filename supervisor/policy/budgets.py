"""The [[budget]] blocks of a policy: from the text to what the egress proxy counts."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cache
from typing import TYPE_CHECKING, Any

from supervisor.policy.document import Table
from supervisor.policy.errors import PolicyError
from supervisor.policy.model import Bound, Budget, Policy, State
from supervisor.policy.pricing import Listed, Price, load, price_of

if TYPE_CHECKING:
    from supervisor.host import Host, Upstream

MODEL = r"[A-Za-z0-9][A-Za-z0-9._:/-]*"
_ID = r"[a-z][a-z0-9-]{0,62}"
_WINDOW = r"(?P<window>minute|hour|day|month)"
_COUNT = rf"(?P<count>[1-9][0-9]{{0,11}})(?P<factor>[kM]?)/{_WINDOW}"
_MONEY = rf"(?P<whole>[0-9]{{1,9}})(\.(?P<part>[0-9]{{1,6}}))? (?P<currency>[A-Z]{{3}})/{_WINDOW}"
_COUNTED = ("requests", "input_tokens", "output_tokens", "tokens")
_FACTORS = {"": 1, "k": 1_000, "M": 1_000_000}
_NANO_DIGITS = 9


def parse_budget(table: Table) -> Budget:
    """One block; mistakes are recorded in its document."""
    table.rule = table.string("id", _ID, what="a name in a-z, 0-9 and -")
    why = table.string("why")
    models = table.strings("models", MODEL, required=False, what="a model name")
    bounds: list[Bound] = []
    for unit in _COUNTED:
        text = table.string(unit, _COUNT, "", 'such as "1000/day" or "2M/month"')
        if found := re.fullmatch(_COUNT, text):
            limit = int(found["count"]) * _FACTORS[found["factor"]]
            bounds.append(Bound(unit, limit, found["window"]))
    text = table.string("money", _MONEY, "", 'such as "5.00 USD/month"')
    if found := re.fullmatch(_MONEY, text):
        limit = int(found["whole"] + (found["part"] or "").ljust(_NANO_DIGITS, "0"))
        bounds.append(Bound("money", limit, found["window"], found["currency"]))
    table.finish()
    if not bounds and not any(table.has(unit) for unit in (*_COUNTED, "money")):
        fix = f"give one of {', '.join(_COUNTED)}, money, or remove the block"
        table.fail("bad-value", "id", "the budget limits nothing", fix)
    return Budget(table.rule, why, table.line, tuple(sorted(models)), tuple(bounds))


def price_entry(host: Host, upstream: str, model: str) -> dict[str, Any]:
    """The `price` of a model's entry, by the host file or else by our tables; none: {}."""
    found = host.upstream(upstream)
    if found is None:
        return {}
    price: Price | None = price_of(host.prices, found.name, model)
    if price is None and found.host:
        price = price_of(_listed(), found.host, model)
    return {} if price is None else {"price": asdict(price)}


def plan_budgets(
    policy: Policy,
    models: list[dict[str, Any]],
    host: Host,
    proxy: Policy | None,
    errors: list[PolicyError],
) -> list[dict[str, Any]]:
    """What the proxy is told; `models` are its entries of models, with their prices.

    A model of a local workload without a price becomes free. `proxy` is the policy that keeps the
    counts. Mistakes go to `errors`.
    """

    def fail(budget: Budget, code: str, message: str, fix: str) -> None:
        place = (policy.file, budget.line, "budget")
        errors.append(PolicyError(code, *place, message, fix, budget.id))

    budgets, planned = policy.budgets, []
    upstreams = {entry["upstream"]: host.upstream(entry["upstream"]) for entry in models}
    if budgets and proxy and not proxy.of(State):
        message = f"{proxy.file} has no state rule, so no count outlives the proxy"
        fail(budgets[0], "no-state", message, "add its state rule, or remove the budget")
    known = {entry["name"] for entry in models}
    for budget in budgets:
        if not models:
            fail(budget, "unknown-model", "no rule allows a model", "remove it, or add the rule")
        for name in budget.models:
            if name not in known:
                fail(budget, "unknown-model", f"no model rule allows {name}", "name allowed ones")
        for bound in budget.bounds:
            for entry in models:
                counted = not budget.models or entry["name"] in budget.models
                if bound.unit == "money" and counted:
                    _priced(budget, bound, entry, upstreams, fail)
            planned.append(
                {
                    "id": budget.id,
                    "line": budget.line,
                    "unit": bound.unit,
                    "limit": bound.limit,
                    "window": bound.window,
                    "models": list(budget.models),
                    "currency": bound.currency,
                }
            )
    return planned


def _priced(
    budget: Budget,
    bound: Bound,
    entry: dict[str, Any],
    upstreams: Mapping[str, Upstream | None],
    fail: Callable[[Budget, str, str, str], None],
) -> None:
    """A model that a money budget counts must have a price in its currency."""
    name, upstream = entry["name"], upstreams.get(entry["upstream"])
    free = {"currency": bound.currency, "input": 0, "output": 0, "cached": 0, "cache_write": 0}
    if entry.get("price") is None and upstream and upstream.workload:
        entry["price"] = free
    price = entry.get("price")
    if price is None:
        message = f"{name} at {entry['upstream']} has no price, so no money can be counted"
        fix = "add a [[price]] to the host file, or bound tokens in place of money"
        fail(budget, "no-price", message, fix)
    elif price["currency"] != bound.currency:
        message = f"{name} is priced in {price['currency']}, the budget in {bound.currency}"
        fail(budget, "no-price", message, f"write the budget in {price['currency']}")


@cache
def _listed() -> tuple[Listed, ...]:
    """Our price tables, read once, and only where money is counted or may be."""
    return load()
