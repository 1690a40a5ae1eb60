"""Making room in the cgroup tree: in what a service manager gave away, and only there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.cgroup import find_mount

ROOT = Path(__file__).resolve().parents[3]
# In a cgroup of its own: make room, make the slice, say where everything went; wait to be killed.
PROGRAM = """
import os, sys
sys.path.insert(0, sys.argv[1])
open(sys.argv[2] + "/cgroup.procs", "w").write("0")
from sandbox import cgroup
tree = cgroup.Slice(cgroup.make_room("anchorhold-test-elsewhere"))
leaf = tree.leaf()
given = set((tree.path / "cgroup.controllers").read_text().split()) & {"memory", "pids"}
assert given <= set((leaf.path / "cgroup.controllers").read_text().split())
print(tree.path, leaf.path.name, cgroup.make_room("anchorhold-test-elsewhere"), flush=True)
leaf.destroy()
tree.remove()
"""


@pytest.fixture
def unit() -> Iterator[Path]:
    """A cgroup such as a service has; the test says whether it is delegated."""
    path = find_mount() / f"anchorhold-test-unit-{os.getpid()}"
    path.mkdir()
    yield path
    for below in ("main", "workloads"):
        if (path / below).exists():
            (path / below).rmdir()
    path.rmdir()


def run(unit: Path) -> tuple[str, ...]:
    done = subprocess.run(
        [sys.executable, "-I", "-c", PROGRAM, str(ROOT), str(unit)],
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.returncode == 0, done.stderr
    return tuple(done.stdout.split())


@pytest.mark.parametrize("mark", ["trusted.delegate", "user.delegate"])
def test_in_a_delegated_subtree_all_cgroups_are_made_below_it(unit: Path, mark: str) -> None:
    os.setxattr(unit, mark, b"1")
    # The second question comes from `main`, and the answer is the same.
    assert run(unit) == (f"{unit}/workloads", "cell-1", f"{unit}/workloads")
    assert not (find_mount() / "anchorhold-test-elsewhere").exists()
    assert (unit / "main").is_dir()
    assert (unit / "cgroup.procs").read_text() == ""


def test_what_was_not_delegated_is_left_alone(unit: Path) -> None:
    elsewhere = str(find_mount() / "anchorhold-test-elsewhere")
    assert run(unit) == (elsewhere, "cell-1", elsewhere)
    assert not (unit / "main").exists()
