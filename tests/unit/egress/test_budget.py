"""Budgets: never overspent, kept over restarts, and a refusal says which, where and until when."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from proxy.egress.budget import FILE, NANO, Budget, Budgets, shown, window
from proxy.egress.config import Grant, Workload
from proxy.egress.errors import Refusal
from proxy.egress.usage import Price, Tokens, output_bound, tokens_of

from .harness import Proxy, Upstream, chat, completion, delta, reply, stream

NOON = 1_764_000_000  # 2025-11-24T16:00:00Z
PRICE = Price("USD", input=2_000_000, output=8_000_000, cached=500_000, cache_write=2_500_000)
GRANT = Grant("llm-v1", "practice", "models", 42, "standard", PRICE)
OTHER = Grant("llm-v2", "practice", "models", 42, "standard", PRICE)


def workload(*budgets: Budget) -> Workload:
    models = {grant.name: grant for grant in (GRANT, OTHER)}
    return Workload("tool.a", "p", "d", "tool-a.toml", models, 1000, 4, 5.0, budgets=budgets)


class Clock:
    def __init__(self) -> None:
        self.now = float(NOON)

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def book(folder: Path, who: Workload, clock: Clock) -> Budgets:
    return Budgets(folder, [who], clock)


def left(of: Budgets) -> dict[str, int]:
    return {
        f"{row['id']}.{row['unit']}": row["limit"] - row["used"] - row["reserved"]  # type: ignore[operator]
        for row in of.state()
    }


def test_requests_are_counted_and_the_window_ends(tmp_path: Path, clock: Clock) -> None:
    who = workload(Budget("few", 61, "requests", 2, "minute"))
    budgets = book(tmp_path, who, clock)
    for _ in range(2):
        budgets.reserve(who, GRANT, size=10, output=1).settle(None)
    with pytest.raises(Refusal) as refused:
        budgets.reserve(who, GRANT, size=10, output=1)
    assert refused.value.status == 429 and refused.value.retry_after == 60
    assert "tool-a.toml:61 (few)" in refused.value.message
    assert "resets at 2025-11-24T16:01:00Z" in refused.value.message
    clock.now += 60
    budgets.reserve(who, GRANT, size=10, output=1)


def test_what_was_used_replaces_what_was_reserved(tmp_path: Path, clock: Clock) -> None:
    who = workload(
        Budget("day", 1, "tokens", 1000, "day"),
        Budget("cost", 2, "money", NANO, "month", currency="USD"),
    )
    budgets = book(tmp_path, who, clock)
    taken = budgets.reserve(who, GRANT, size=300, output=400)
    # 300 at the price of writing the cache, which is the dearest that input can be.
    assert left(budgets) == {"day.tokens": 300, "cost.money": NANO - 3_950_000}
    taken.settle({"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150})
    assert left(budgets) == {"day.tokens": 850, "cost.money": NANO - 600_000}
    assert taken.as_record() == {"cost": {"nano": 600_000, "currency": "USD"}}
    taken.settle({"prompt_tokens": 1, "completion_tokens": 1})
    assert left(budgets)["day.tokens"] == 850, "a request is settled once"


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": -1}, {"prompt_tokens": True}])
def test_without_a_usable_report_the_reservation_stands(
    tmp_path: Path, clock: Clock, usage: dict[str, Any] | None
) -> None:
    who = workload(Budget("day", 1, "tokens", 1000, "day"))
    budgets = book(tmp_path, who, clock)
    budgets.reserve(who, GRANT, size=300, output=400).settle(usage)
    assert left(budgets) == {"day.tokens": 300}
    assert budgets.state()[0]["used"] == 700


def test_what_was_not_sent_costs_no_tokens(tmp_path: Path, clock: Clock) -> None:
    who = workload(Budget("a", 1, "tokens", 1000, "day"), Budget("b", 2, "requests", 5, "day"))
    budgets = book(tmp_path, who, clock)
    budgets.reserve(who, GRANT, size=300, output=400).cancel()
    assert left(budgets) == {"a.tokens": 1000, "b.requests": 4}


def test_cached_tokens_have_their_own_price() -> None:
    assert PRICE.cost(Tokens(1_000_000, 0)) == 2 * NANO
    assert PRICE.cost(Tokens(1_000_000, 0, cached=1_000_000)) == NANO // 2
    assert PRICE.cost(Tokens(1_000_000, 0, written=1_000_000)) == 5 * NANO // 2
    assert PRICE.cost(Tokens(0, 1)) == 8_000
    assert Price("USD", 1, 1, 1, 1).cost(Tokens(1, 0)) == 1, "rounded up"


def test_models_share_a_budget_that_names_none_and_no_other(tmp_path: Path, clock: Clock) -> None:
    who = workload(
        Budget("one", 1, "requests", 1, "day", frozenset({"llm-v1"})),
        Budget("all", 2, "requests", 2, "day"),
    )
    budgets = book(tmp_path, who, clock)
    budgets.reserve(who, GRANT, size=1, output=1)
    with pytest.raises(Refusal, match=r"\(one\)"):
        budgets.reserve(who, GRANT, size=1, output=1)
    budgets.reserve(who, OTHER, size=1, output=1)
    with pytest.raises(Refusal, match=r"\(all\)"):
        budgets.reserve(who, OTHER, size=1, output=1)
    assert left(budgets)["one.requests"] == 0, "what is refused takes nothing"


def test_side_by_side_nothing_is_overspent(tmp_path: Path) -> None:
    """Eight writers with connections of their own, as eight processes would have."""
    who = workload(Budget("day", 1, "tokens", 1000, "day"))
    taken: list[int] = []

    def spend() -> None:
        budgets = Budgets(tmp_path, [who], lambda: float(NOON))
        for _ in range(20):
            try:
                budgets.reserve(who, GRANT, size=7, output=3)
            except Refusal as refusal:
                assert refusal.code == "budget_exceeded"
            else:
                taken.append(10)
        budgets.close()

    Budgets(tmp_path, [who], lambda: float(NOON)).open()
    threads = [threading.Thread(target=spend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(taken) == 1000, "all of it can be spent, and not one token more"


def test_counts_outlive_the_process_and_open_requests_count_in_full(
    tmp_path: Path, clock: Clock
) -> None:
    who = workload(Budget("day", 1, "tokens", 1000, "day"))
    first = book(tmp_path, who, clock)
    first.reserve(who, GRANT, size=100, output=0).settle({"input_tokens": 40, "output_tokens": 2})
    first.reserve(who, GRANT, size=200, output=100)  # never settled
    second = book(tmp_path, who, clock)
    (row,) = second.state()
    assert (row["used"], row["reserved"]) == (342, 0)
    clock.now += 86400
    assert left(second) == {"day.tokens": 1000}


@pytest.mark.parametrize("damage", ["bytes", "release", "folder"])
def test_a_book_that_cannot_be_read_refuses_what_it_counts(
    tmp_path: Path, clock: Clock, damage: str
) -> None:
    who = workload(Budget("day", 1, "requests", 10, "day"))
    book(tmp_path, who, clock).reserve(who, GRANT, size=1, output=1)
    if damage == "bytes":
        for path in tmp_path.iterdir():
            path.unlink()
        (tmp_path / FILE).write_bytes(b"no database at all" * 500)
    elif damage == "release":
        with sqlite3.connect(tmp_path / FILE) as other:
            other.execute("PRAGMA user_version = 9")
        other.close()
    budgets = book(tmp_path / "absent" if damage == "folder" else tmp_path, who, clock)
    with pytest.raises(Refusal) as refused:
        budgets.reserve(who, GRANT, size=1, output=1)
    assert (refused.value.code, refused.value.status) == ("budget_unavailable", 503)
    free = workload()
    budgets.reserve(free, GRANT, size=1, output=1)  # who has no budget needs no book


def test_a_request_larger_than_the_whole_budget_is_not_told_to_wait(
    tmp_path: Path, clock: Clock
) -> None:
    who = workload(Budget("cost", 7, "money", NANO // 100, "day", currency="USD"))
    with pytest.raises(Refusal) as refused:
        book(tmp_path, who, clock).reserve(who, GRANT, size=1, output=1_000_000)
    assert refused.value.retry_after is None
    assert "8.0000025 USD, more than all of 0.01 USD a day" in refused.value.message


def test_windows_are_those_of_the_calendar_in_utc() -> None:
    def ends(name: str) -> list[str]:
        from proxy.egress.budget import stamp

        return [stamp(each) for each in window(name, NOON + 61.5)]

    assert ends("minute") == ["2025-11-24T16:01:00Z", "2025-11-24T16:02:00Z"]
    assert ends("hour") == ["2025-11-24T16:00:00Z", "2025-11-24T17:00:00Z"]
    assert ends("day") == ["2025-11-24T00:00:00Z", "2025-11-25T00:00:00Z"]
    assert ends("month") == ["2025-11-01T00:00:00Z", "2025-12-01T00:00:00Z"]
    assert window("month", 1_767_000_000)[1] == 1_767_225_600, "December ends with the year"


def test_amounts_are_shown_in_full() -> None:
    money = Budget("m", 1, "money", 1, "day", currency="EUR")
    assert shown(money, 5 * NANO) == "5.00 EUR"
    assert shown(money, 1) == "0.000000001 EUR"
    assert shown(Budget("t", 1, "output_tokens", 1, "day"), 12) == "12 output tokens"


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 9, "completion_tokens": 4,
          "prompt_tokens_details": {"cached_tokens": 5}}, Tokens(9, 4, 5)),
        ({"prompt_tokens": 9, "total_tokens": 9}, Tokens(9, 0)),
        ({"input_tokens": 9, "output_tokens": 4, "input_tokens_details": {"cached_tokens": 5}},
         Tokens(9, 4, 5)),
        ({"input_tokens": 2, "output_tokens": 4, "cache_read_input_tokens": 5,
          "cache_creation_input_tokens": 3}, Tokens(10, 4, 5, 3)),
        ({"promptTokenCount": 9, "candidatesTokenCount": 4, "thoughtsTokenCount": 6,
          "cachedContentTokenCount": 5}, Tokens(9, 10, 5)),
        ({"prompt_eval_count": 9, "eval_count": 4}, Tokens(9, 4)),
        ({"something": 1}, None),
    ],
)  # fmt: skip
def test_every_providers_report_is_understood(usage: dict[str, Any], tokens: Tokens | None) -> None:
    assert tokens_of(usage) == tokens


def test_the_bound_of_a_request_counts_all_its_answers() -> None:
    assert output_bound({"max_tokens": 10, "n": 3}) == 30
    assert output_bound({"generationConfig": {"maxOutputTokens": 10, "candidateCount": 2}}) == 20
    assert output_bound({"options": {"num_predict": 7}}) == 7
    assert output_bound({"messages": []}) is None
    for odd in ({"max_tokens": None}, {"max_tokens": 1e9}, {"options": {"num_predict": -1}}):
        with pytest.raises(ValueError, match=r"max_tokens|num_predict"):
            output_bound(odd)


# --- through a real proxy -------------------------------------------------------------------------


def _with(folder: Path, *budgets: dict[str, Any]) -> dict[str, Any]:
    prices = {"currency": "USD", "input": 2_000_000, "output": 8_000_000, "cached": 500_000,
              "cache_write": 2_000_000}  # fmt: skip
    grant = {"name": "llm-v1", "upstream": "practice", "rule": "models", "line": 42,
             "redact": "standard", "price": prices}  # fmt: skip
    plain = {"line": 61, "window": "month", "models": [], "currency": ""}
    return {
        "workload": {"models": [grant], "budgets": [{**plain, **each} for each in budgets]},
        "config": {"state": str(folder)},
    }


def test_a_spent_budget_answers_429_and_the_upstream_sees_nothing(
    start: Callable[..., Proxy], upstream: Upstream, tmp_path: Path
) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    changes = _with(
        folder,
        {"id": "calls", "unit": "requests", "limit": 2},
        {"id": "cost", "unit": "money", "limit": 5 * NANO, "currency": "USD"},
    )
    proxy = start(**json.loads(json.dumps(changes)))
    proxy.listen()
    proxy.unlock()
    assert proxy.ask("one").status == 200
    assert upstream.seen[0].json["max_tokens"] == 4096, "the proxy bounds what has no bound"
    record = proxy.last()
    assert record["cost"] == {"nano": 3 * 2000 + 2 * 8000, "currency": "USD"}
    assert [row["used"] for row in record["budgets"]] == [1, 22000]
    assert proxy.ask("two", max_tokens=5).status == 200
    assert upstream.seen[1].json["max_tokens"] == 5
    refused = proxy.ask("three")
    assert (refused.status, refused.code) == (429, "budget_exceeded")
    assert int(refused.headers["retry-after"]) >= 1
    assert "executor-main.toml:61 (calls)" in refused.json["error"]["message"]
    assert len(upstream.seen) == 2
    assert proxy.last()["rule"]["file"] == "executor-main.toml"
    assert proxy.ask("odd", max_tokens=None).status == 400
    proxy.stop()
    again = start(**json.loads(json.dumps(changes)))
    again.listen()
    again.unlock()
    assert again.ask("four").code == "budget_exceeded", "a restart forgets nothing"
    assert [row["used"] for row in again.records("budgets")[-1]["budgets"][:2]] == [2, 44000]


def test_an_aborted_stream_keeps_its_reservation_and_an_error_does_not(
    start: Callable[..., Proxy], upstream: Upstream, tmp_path: Path
) -> None:
    proxy = start(**_with(tmp_path, {"id": "day", "unit": "output_tokens", "limit": 1000}))
    proxy.listen()
    proxy.unlock()

    def used() -> int:
        return int(proxy.last()["budgets"][0]["used"])

    upstream.answer = reply({"error": {"type": "overloaded"}}, "529 x")
    assert proxy.ask("x", max_tokens=100).status == 529
    assert used() == 0
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    ending = b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n"
    done = b"data: [DONE]\n\n"
    upstream.answer = stream([delta("hello"), ending, done])
    assert proxy.ask("x", max_tokens=100, stream=True).status == 200
    assert used() == 2
    upstream.answer = stream([delta("hello"), ending], abort=True)
    proxy.ask("x", max_tokens=100, stream=True)
    assert used() == 102
    upstream.answer = stream([delta("hello"), done])
    proxy.ask("x", max_tokens=100, stream=True)
    assert used() == 202, "no report: what was reserved counts"
    upstream.answer = reply(completion("ok"))
    proxy.request(chat("x", max_tokens=799))
    assert proxy.last()["reason"] == "budget_exceeded"
    proxy.request(chat("x", max_tokens=798))
    assert proxy.last()["verdict"] == "allowed"


def test_a_damaged_book_answers_503(
    start: Callable[..., Proxy], upstream: Upstream, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (state / FILE).write_bytes(b"\0" * 8192)
    proxy = start(**_with(state, {"id": "day", "unit": "requests", "limit": 10}))
    proxy.listen()
    proxy.unlock()
    assert proxy.records("budgets")[0]["reason"] == "budget_unavailable"
    answer = proxy.ask("x")
    assert (answer.status, answer.code) == (503, "budget_unavailable")
    assert not upstream.seen
    (state / FILE).unlink()
    assert proxy.ask("x").status == 200, "put aside, a new book is begun"
