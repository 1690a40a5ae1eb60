"""What a leaf's files tell."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandbox.cgroup import Leaf


@pytest.mark.parametrize(("kills", "told"), [(0, False), (2, True)])
def test_a_kill_for_memory_is_read_from_the_kernels_count(
    tmp_path: Path, kills: int, told: bool
) -> None:
    events = f"low 0\nhigh 0\nmax 37\noom {kills}\noom_kill {kills}\noom_group_kill {kills // 2}\n"
    (tmp_path / "memory.events").write_text(events)
    assert Leaf(tmp_path).out_of_memory is told


def test_without_the_controller_nothing_is_claimed(tmp_path: Path) -> None:
    assert Leaf(tmp_path).out_of_memory is False
