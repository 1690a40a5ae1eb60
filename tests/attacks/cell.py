"""Sandboxes straight from the launcher, for what no policy can say: a layer less, a planted link.

Rests on the harness of the sandbox's own tests. The zygote is forked from this process, so that a
step that is replaced before is replaced in every launch.
"""

from __future__ import annotations

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox.plan import Bind, SandboxPlan, Tmpfs
from sandbox.verify import Finding
from tests.attacks.control import outcome
from tests.attacks.scene import SHIPPED, Place
from tests.host.sandbox.conftest import Cell, shipped_plan


@dataclass(frozen=True)
class Told:
    """What a program answered, and what the verifier said of it before."""

    answer: str
    findings: list[Finding]


class Bench:
    """A launcher; `run` executes a program under the executor's plan, with two mounts of ours.

    Both stand inside where they stand outside, so that they are there without an own root too.
    """

    def __init__(self, place: Place, **changes: Any) -> None:
        self.place = place
        # Not a test's own: it takes part in the paths of sockets, which must be short.
        directory = Path(tempfile.mkdtemp(prefix="bench-", dir=place.folder))
        plan = shipped_plan(directory, SHIPPED)
        mounts = [m for m in plan.mounts if getattr(m, "target", "") != "/state"]
        mounts.append(Bind(str(place.programs), str(place.programs), ("read", "exec")))
        mounts.append(Bind(str(place.scratch), str(place.scratch), ("read", "write")))
        # The harness waives the other controllers, and has no disk of a state to limit.
        limits = dataclasses.replace(plan.limits, io=None)
        given = {"mounts": tuple(mounts), "fds": (), "limits": limits, **changes}
        self.plan: SandboxPlan = dataclasses.replace(plan, **given)
        assert any(isinstance(mount, Tmpfs) for mount in mounts)
        self.cell = Cell(self.plan, directory)

    def run(self, program: str, words: tuple[str, ...], *mounts: Any, look: bool = False,
            name: str = "attack") -> Told:  # fmt: skip
        """Launch, release, and wait; `look`: what the verifier finds before the release."""
        act, *rest = words
        argv = (str(self.place.programs / program), act, name, *rest)
        kept = {mount.path for mount in mounts if hasattr(mount, "path")}
        plan = dataclasses.replace(
            self.plan,
            argv=argv,
            mounts=(*(m for m in self.plan.mounts if getattr(m, "path", "") not in kept), *mounts),
        )
        told: Told = self.cell.do(self._run, plan, look)
        return told

    async def _run(self, plan: SandboxPlan, look: bool) -> Told:
        with tempfile.TemporaryFile() as out:
            running = await self.cell.hold(plan, out.fileno())
            findings = self.cell.inspect(running) if look else []
            try:
                await self.cell.launcher.release(running)
            finally:
                code, number = await running.exited
                running.leaf.destroy()
                running.cell.close()
            out.seek(0)
            said = out.read().decode(errors="replace")
            return Told(outcome(code if code > 0 else 0, number, said), findings)

    def close(self) -> None:
        """End the launcher and everything it started."""
        self.cell.close()
