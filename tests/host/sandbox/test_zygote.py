"""The launcher's own process: few modules, and none that is loaded once the root has changed."""

from __future__ import annotations

import builtins
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox import confine
from sandbox.errors import LaunchFailed
from tests.host.sandbox.conftest import PYTHON, Cell, shipped_plan

ROOT = Path(__file__).resolve().parents[3]

# What the launcher and so every cell has in memory beyond the interpreter's own. A name more here
# is memory in each launch; and code that must be trusted with everything.
OURS = {
    "sandbox", "sandbox.confine", "sandbox.credentials", "sandbox.job", "sandbox.landlock",
    "sandbox.mounts", "sandbox.passing", "sandbox.syscalls", "sandbox.zygote", "sandbox.delegation",
}  # fmt: skip
LIBRARY = {
    "array", "ctypes", "enum", "errno", "functools", "gc", "marshal", "math", "os", "resource",
    "select", "selectors", "signal", "socket", "stat", "struct", "types", "collections",
    "operator", "itertools", "keyword", "reprlib", "posixpath", "genericpath",
}  # fmt: skip


def test_the_launcher_loads_few_modules() -> None:
    code = (
        "import sys; before = set(sys.modules); sys.path.insert(0, sys.argv[1])\n"
        "from sandbox import credentials, delegation, syscalls, zygote\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([PYTHON, "-IS", "-c", code, ROOT], capture_output=True, check=True)
    names = {name for name in done.stdout.decode().split() if not name.startswith("_")}
    assert {name for name in names if name.partition(".")[0] == "sandbox"} == OURS
    others = {name.partition(".")[0] for name in names} - {"sandbox"}
    assert others <= LIBRARY


@pytest.fixture
def strict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cell]:
    """A launcher whose children cannot import anything."""
    prepare = confine.prepare

    def refuse(name: str, *_: object, **__: object) -> None:
        raise ImportError(f"{name} was imported in the child")

    def without_imports(*arguments: object) -> object:
        builtins.__import__ = refuse  # in the child, which is a copy
        return prepare(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(confine, "prepare", without_imports)
    made = Cell(shipped_plan(tmp_path, "adapter.rest"), tmp_path)
    yield made
    made.close()


def test_no_module_is_imported_in_a_child(strict: Cell) -> None:
    """It would come from the root that the workload may write to, or from none."""
    assert strict.run("print('ran')").out == "ran\n"


def test_a_module_imported_in_a_child_would_have_been_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """The control of the above: an import there does end the launch."""
    execute = confine.execute

    def importing(*arguments: object) -> None:
        import wave  # noqa: F401

        execute(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(confine, "execute", importing)
    strict: Cell = request.getfixturevalue("strict")
    with pytest.raises(LaunchFailed, match="wave was imported in the child"):
        strict.run("print('ran')")
