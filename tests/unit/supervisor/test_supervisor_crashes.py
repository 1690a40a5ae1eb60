"""How often a workload may crash, and how long it waits."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from supervisor.workload import Crashes


def test_the_wait_doubles_and_the_fifth_crash_in_a_minute_is_quarantine() -> None:
    crashes = Crashes()
    assert [crashes.add(now) for now in (0, 10, 20, 30)] == [0.25, 0.5, 1.0, 2.0]
    assert crashes.add(59.9) is None


def test_crashes_older_than_a_minute_do_not_count() -> None:
    crashes = Crashes()
    for now in (0, 1, 2, 3):
        crashes.add(now)
    assert crashes.add(60.5) == 2.0  # the first one is a minute old: four are left
    assert crashes.add(200) == 0.25


def test_whoever_was_restarted_by_hand_begins_anew() -> None:
    crashes = Crashes()
    while crashes.add(0) is not None:
        pass
    crashes.forget()
    assert crashes.add(0) == 0.25


@given(st.lists(st.floats(0, 300), min_size=1, max_size=40).map(sorted))
def test_quarantine_comes_exactly_at_five_in_any_minute(moments: list[float]) -> None:
    crashes = Crashes()
    for index, now in enumerate(moments):
        recent = sum(1 for earlier in moments[: index + 1] if now - earlier < 60)
        delay = crashes.add(now)
        assert (delay is None) == (recent >= 5)
        assert delay is None or 0.25 <= delay <= 10
