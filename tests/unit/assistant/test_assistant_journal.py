"""The journal keeps what a crash must not lose, and no more than that."""

from __future__ import annotations

from pathlib import Path

import pytest

from assistant.errors import AssistantError
from assistant.workflows.journal import Journal, JournalError, Key, Order

KEY = Key("adapter.rest", "alice", "r1")
ORDER = Order("00aa", "email_management", "digest", "From: a@example.org\n\nhello")


def test_a_reopened_journal_knows_the_unfinished_run_and_its_steps(tmp_path: Path) -> None:
    path = str(tmp_path / "j.sqlite")
    journal = Journal(path)
    assert journal.begin(KEY, ORDER).outputs == {}
    journal.step(KEY, "one", {"dates": ["today"]})
    journal.close()
    again = Journal(path)
    assert again.unfinished() == [(KEY, ORDER)]
    assert again.begin(KEY, ORDER).outputs == {"one": {"dates": ["today"]}}


def test_a_finished_run_gives_its_outcome_and_has_no_content_left(tmp_path: Path) -> None:
    path = tmp_path / "j.sqlite"
    journal = Journal(str(path))
    journal.begin(KEY, ORDER)
    content = b"From: a@example.org"
    assert any(content in file.read_bytes() for file in tmp_path.iterdir())  # positive control
    journal.finish(KEY, b'{"kind":"reply"}')
    assert journal.unfinished() == []
    assert journal.begin(KEY, ORDER).outcome == b'{"kind":"reply"}'
    assert not any(content in file.read_bytes() for file in tmp_path.iterdir())


def test_the_same_name_with_other_content_is_a_conflict() -> None:
    journal = Journal()
    journal.begin(KEY, ORDER)
    with pytest.raises(AssistantError) as caught:
        journal.begin(KEY, Order("00aa", "email_management", "digest", "other"))
    assert (caught.value.code, caught.value.status) == ("run_conflict", 409)


def test_an_edited_workflow_does_not_use_old_outputs() -> None:
    journal = Journal()
    journal.begin(KEY, ORDER)
    journal.step(KEY, "one", 1)
    changed = Order(ORDER.request, ORDER.workflow, "another", ORDER.content)
    assert journal.begin(KEY, changed).outputs == {}


def test_a_run_that_kills_the_program_is_given_up_after_three_attempts(tmp_path: Path) -> None:
    path = str(tmp_path / "j.sqlite")
    for attempt in range(3):
        journal = Journal(path)
        assert len(journal.unfinished()) == (attempt > 0)
        journal.begin(KEY, ORDER)
        journal.close()
    assert Journal(path).unfinished() == []


def test_results_are_kept_in_bounded_number_and_time(tmp_path: Path) -> None:
    journal = Journal(keep=3)
    for number in range(10):
        key = KEY._replace(run=f"r{number}")
        journal.begin(key, ORDER)
        journal.finish(key, b"{}")
    journal.begin(KEY._replace(run="last"), ORDER)
    known = [journal.begin(KEY._replace(run=f"r{n}"), ORDER).outcome for n in range(10)]
    assert known.count(b"{}") <= 3
    assert known[9] == b"{}"
    brief = Journal(keep_seconds=0.0)
    brief.begin(KEY, ORDER)
    brief.finish(KEY, b"{}")
    assert brief.begin(KEY, ORDER).outcome is None


def test_a_full_disk_is_507_and_leaves_nothing_half_done(tmp_path: Path) -> None:
    """The size bound makes SQLite itself report SQLITE_FULL, as a full disk does."""
    path = str(tmp_path / "j.sqlite")
    journal = Journal(path, size_max=64 << 10)
    large = Order("00aa", "email_management", "digest", "x" * (128 << 10))
    with pytest.raises(JournalError) as caught:
        journal.begin(KEY, large)
    assert (caught.value.code, caught.value.status) == ("state_full", 507)
    assert "free space" in caught.value.message
    assert journal.unfinished() == []
    journal.begin(KEY, ORDER)  # a small one still fits
    with pytest.raises(JournalError):
        journal.step(KEY, "one", "y" * (128 << 10))
    assert journal.begin(KEY, ORDER).outputs == {}


def test_a_file_that_is_no_journal_is_named_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "j.sqlite"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(JournalError) as caught:
        Journal(str(path))
    assert caught.value.code == "journal_failed"
    assert path.read_bytes() == b"not a database" * 100
