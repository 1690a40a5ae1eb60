"""Real sandboxes for tests: the shipped REST adapter's policy with another command in it."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sandbox import verify, zygote
from sandbox.cgroup import Slice, find_mount
from sandbox.launcher import Launcher, Running
from sandbox.plan import SandboxPlan
from tests.host.sandbox.faultrig import Rig, Saboteur
from tests.host.sandbox.stand import PYTHON, WAIVED, compile_shipped


@dataclass
class Result:
    """How a confined process ended."""

    code: int
    signal: int
    out: str
    findings: list[verify.Finding]


class Cell:
    """A launcher of its own; `run` and `hold` make sandboxes from `plan`."""

    def __init__(self, plan: SandboxPlan, directory: Path) -> None:
        self.plan = plan
        self.slice = Slice(find_mount() / f"anchorhold-test-{os.getpid()}")
        self.stage = directory / "stage"
        self.stage.mkdir()
        self.zygote, self._control = zygote.start()
        self.loop = asyncio.new_event_loop()
        self.launcher: Launcher = self.do(self._launcher)

    async def _launcher(self) -> Launcher:
        return Launcher(self._control, self.stage)

    def do(self, step: Callable[..., Any], *arguments: Any) -> Any:
        """Run one coroutine function to its end."""
        return self.loop.run_until_complete(asyncio.wait_for(step(*arguments), 60))

    def run(self, code: str, *mounts: Any, **changes: Any) -> Result:
        """Run Python `code` under the plan with `mounts` added and `changes` made."""
        plan = self.command((PYTHON, "-I", "-c", code), *mounts, **changes)
        return self.do(self._run, plan)

    def command(self, argv: tuple[str, ...], *mounts: Any, **changes: Any) -> SandboxPlan:
        """The plan for `argv`."""
        mounts = (*self.plan.mounts, *mounts)
        return dataclasses.replace(self.plan, **{"argv": argv, "mounts": mounts, **changes})

    async def _run(self, plan: SandboxPlan) -> Result:
        with tempfile.TemporaryFile() as out:
            running = await self.hold(plan, out.fileno())
            findings = self.inspect(running)
            try:
                await self.launcher.release(running)
            finally:
                code, number = await running.exited
                running.leaf.destroy()
                running.cell.close()
            out.seek(0)
            return Result(code, number, out.read().decode(), findings)

    async def hold(self, plan: SandboxPlan, out: int = 2) -> Running:
        """A sandbox that waits before its first instruction."""
        leaf = self.slice.leaf()
        leaf.apply(plan.limits, WAIVED)
        fds = dict.fromkeys(plan.fds, out)
        running = await self.launcher.launch(plan, self.launcher.spawn(leaf), (-1, out, out), fds)
        await running.cell.ready
        return running

    def inspect(self, running: Running) -> list[verify.Finding]:
        """Every layer, from outside."""
        found = (running.plan, running.leaf, running.pid, running.report, WAIVED)
        filters = verify.inspect_filters(running.plan, running.pid)
        return [*verify.inspect(*found, unreleased=True), filters]

    def close(self) -> None:
        """End the launcher and everything it started."""
        os.kill(self.zygote, signal.SIGKILL)
        os.waitpid(self.zygote, 0)
        self.loop.close()
        self.slice.remove()


def shipped_plan(directory: Path, workload: str) -> SandboxPlan:
    """The plan of a shipped policy, with this tree as the installed application."""
    return compile_shipped(directory, workload).sandbox


@pytest.fixture
def cell(tmp_path: Path) -> Iterator[Cell]:
    """A fresh launcher with the REST adapter's plan."""
    made = Cell(shipped_plan(tmp_path, "adapter.rest"), tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    made = Rig(tmp_path_factory.mktemp("faults"))
    yield made
    made.close()


@pytest.fixture
def rig(shared: Rig) -> Iterator[Rig]:
    yield shared
    Saboteur.refuse()
    shared.works()
    shared.left_nothing()
