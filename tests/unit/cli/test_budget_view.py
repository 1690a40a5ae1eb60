"""`anchorhold budget`: the newest state of every budget, out of records that may be torn."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
ROW = {"workload": "tool.a", "id": "day", "unit": "tokens", "window": "day", "used": 1,
       "reserved": 2, "limit": 10, "currency": None, "resets": "2999-01-01T00:00:00Z",
       "place": "tool-a.toml:9"}  # fmt: skip


def record(event: str, *rows: dict[str, object], **more: object) -> str:
    return json.dumps({"event": event, "budgets": rows, **more}) + "\n"


def view(folder: Path, text: str, *words: str) -> subprocess.CompletedProcess[str]:
    audit = folder / "state" / "audit"
    audit.mkdir(parents=True)
    (audit / "service.egress.jsonl").write_text(text)
    host = (ROOT / "policies" / "hosts" / "demo.toml").read_text().splitlines()
    lines = [line for line in host if not line.startswith(("state ", "run "))]
    at = lines.index("[paths]") + 1
    lines[at:at] = [f'state = "{folder}/state"', f'run = "{folder}/run"']
    (folder / "host.toml").write_text("\n".join(lines) + "\n")
    command = [sys.executable, str(ROOT / "supervisor"), "--host-file", str(folder / "host.toml")]
    return subprocess.run(
        [*command, "budget", *words],
        capture_output=True,
        text=True,
        timeout=30,
        env={"COLUMNS": "160"},
    )


def test_the_newest_row_since_the_start_counts(tmp_path: Path) -> None:
    text = (
        record("completion", {**ROW, "id": "gone"})  # of a policy before the last start
        + record("budgets", {**ROW, "used": 0}, {**ROW, "id": "money", "unit": "money",
                                                  "limit": 5_000_000_000, "currency": "USD"})
        + record("completion", {**ROW, "used": 3})
        + record("completion", {**ROW, "used": 4, "reserved": 0})
        + '{"event": "completion", "budgets": [{"workload'
    )  # fmt: skip
    done = view(tmp_path, text, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["problem"] is None
    assert [(row["id"], row["used"], row["reserved"]) for row in found["budgets"]] == [
        ("day", 4, 0), ("money", 1, 2),
    ]  # fmt: skip


def test_a_window_that_is_over_counts_nothing(tmp_path: Path) -> None:
    text = record("budgets", {**ROW, "resets": "2020-01-01T00:00:00Z"})
    done = view(tmp_path, text, "--json")
    (row,) = json.loads(done.stdout)["budgets"]
    assert (row["used"], row["reserved"], row["resets"]) == (0, 0, None)


def test_the_table_names_what_people_need(tmp_path: Path) -> None:
    money = {**ROW, "unit": "money", "used": 1_234_500_000, "limit": 5_000_000_000,
             "currency": "USD"}  # fmt: skip
    done = view(tmp_path, record("budgets", money), "tool.a")
    assert done.returncode == 0
    for word in ("tool.a", "day", "1.2345", "5.0000 USD a day", "2999-01-01T00:00:00Z"):
        assert word in done.stdout


def test_a_book_that_cannot_be_opened_is_a_failure(tmp_path: Path) -> None:
    done = view(tmp_path, record("budgets", verdict="failed", reason="budget_unavailable"))
    assert done.returncode == 1 and "budget_unavailable" in done.stdout


@pytest.mark.parametrize("text", ["", record("budgets"), record("budgets", ROW)])
def test_without_a_budget_it_says_so(tmp_path: Path, text: str) -> None:
    done = view(tmp_path, text, "tool.b")
    assert done.returncode == 0
    assert "has a budget" in done.stdout or "has no budget" in done.stdout
