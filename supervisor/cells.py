"""Making one verified process under a plan, and keeping the next cell ready for the one after.

The one place that knows the order: descriptors, cgroup and limits, sandbox, verification from
outside, probes, whatever the caller connects, and only then the first instruction.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, suppress

from probes.rules import WatchRules
from sandbox import verify
from sandbox.cgroup import Slice
from sandbox.errors import SandboxError, VerificationFailed
from sandbox.launcher import Cell, Launcher, Running
from sandbox.plan import SandboxPlan
from supervisor.descriptors import Descriptors, Outfitter
from supervisor.policy.plans import CompiledPolicy
from supervisor.watching import Watching

# Seconds after which a cell that became a plan in advance is not used any more: the host's files
# may have been replaced. Longer than the longest wait before a restart.
_FRESH = 15.0

Connect = Callable[[Running, Descriptors], Awaitable[None]]


class Cells:
    """Launches for the supervisor. `waived`: controllers and layers the host gave up."""

    def __init__(
        self,
        launcher: Launcher,
        tree: Slice,
        outfitter: Outfitter,
        watching: Watching,
        waived: frozenset[str],
    ) -> None:
        self._launcher = launcher
        self._tree = tree
        self._outfitter = outfitter
        self._watching = watching
        self._waived = waived
        self._spare: Cell | None = None
        self._short: dict[int, Running] = {}  # one-shots and trials, by cgroup id

    async def launch(
        self,
        compiled: CompiledPolicy,
        plan: SandboxPlan,
        stdio: tuple[int, int, int],
        config: object = None,
        extra: Mapping[str, int] | None = None,
        connect: Connect | None = None,
        trial: bool = False,
    ) -> Running:
        """One process under `plan`, verified and released. Nothing is left behind on failure.

        `config` and `extra` are for its planned descriptors (see Outfitter); `connect` gives its
        network what the policy says, and whoever passes it undoes that on failure; a `trial` is
        watched down to its denials. Raises SandboxError, ProbeError, OSError, and what `connect`
        raises.
        """
        if plan is compiled.sandbox:
            self._launcher.prepare(plan)
        async with AsyncExitStack() as undo, AsyncExitStack() as after:
            cell = await self._take(plan)
            undo.push_async_callback(self._discard, cell)
            descriptors = self._outfitter.open(plan, config, extra or {})
            after.callback(descriptors.close)
            undo.callback(descriptors.close_ours)
            launching = asyncio.ensure_future(
                self._launcher.launch(plan, cell, stdio, descriptors.fds)
            )
            undo.callback(launching.cancel)
            await asyncio.sleep(0)  # on its way; the limits are in force before it is released
            if not cell.limited:
                cell.leaf.apply(plan.limits, self._waived)
            running = await launching
            seen = (plan, cell.leaf, running.pid, running.report, self._waived)
            findings = verify.inspect(*seen, unreleased=True)
            await self._launcher.filtered(running)
            findings.append(verify.inspect_filters(plan, running.pid))
            wrong = [f"{f.layer}: {f.evidence}" for f in findings if f.verdict == "FAIL"]
            if wrong:
                raise VerificationFailed(plan.workload, wrong)
            # Not earlier: the launcher's own steps in the cgroup are high-risk calls.
            self._watching.register(cell.leaf.id, plan.workload, self._rules(compiled, trial))
            undo.callback(self._watching.unregister, cell.leaf.id)
            if connect is not None:
                await connect(running, descriptors)
            await self._launcher.release(running)
            undo.pop_all()
        # Ready-made for the next launch, while nobody waits for it.
        with suppress(SandboxError, OSError):  # the next launch will say what is wrong
            self._spare = self._spare or self._spawn()
        return running

    async def to_its_end(self, running: Running, timeout: float) -> tuple[int, int]:
        """Wait for a short run and clean up; its exit code and signal. Late: killed."""
        self._short[running.leaf.id] = running
        try:
            async with asyncio.timeout(timeout):
                ended = await asyncio.shield(running.exited)
        except TimeoutError:
            ended = await self._launcher.end(running)
        finally:
            del self._short[running.leaf.id]
            await self.clean_up(running)
        return ended

    def kill_short(self, cgroup: int) -> None:
        """End the short run in this cgroup, if there is one: nobody would resume it."""
        if running := self._short.get(cgroup):
            running.leaf.kill()

    async def clean_up(self, running: Running) -> None:
        """Take back what `launch` gave to a process that has ended; kills what is left of it.

        Raises SandboxError, OSError when its cgroup does not become empty.
        """
        cgroup = running.leaf.id
        try:
            await running.leaf.remove()
        finally:
            self._watching.unregister(cgroup)
            running.cell.close()

    def filters(self, plan: SandboxPlan) -> tuple[str, ...]:
        """The sha256 of each seccomp filter that a launch of `plan` loads. Raises SandboxError."""
        return self._launcher.prepare(plan)

    def expect(self, plan: SandboxPlan) -> None:
        """`plan` will probably be launched next, and soon: the spare cell becomes it already."""
        self._launcher.prepare(plan)
        cell = self._spare
        if cell is None or cell.plan is not None:
            return
        try:
            self._launcher.confine(cell, plan)
            cell.leaf.apply(plan.limits, self._waived)
            cell.limited = True
        except (SandboxError, OSError):
            cell.failed = True  # another one will be taken, and the launch will say what is wrong

    async def _take(self, plan: SandboxPlan) -> Cell:
        """The spare cell if it can still become `plan`, or a new one."""
        cell = self._spare
        if cell is not None and (cell.failed or self._launcher.age(cell) > _FRESH):
            self._spare = None
            await self._discard(cell)
            cell = None
        if cell is None or (cell.plan is not None and cell.plan is not plan):
            return self._spawn()
        self._spare = None
        return cell

    def _spawn(self) -> Cell:
        leaf = self._tree.leaf()
        try:
            return self._launcher.spawn(leaf)
        except BaseException:
            leaf.destroy()
            raise

    async def _discard(self, cell: Cell) -> None:
        try:
            self._launcher.abort(cell)
            await cell.leaf.remove()
        finally:
            cell.close()

    def _rules(self, compiled: CompiledPolicy, trial: bool) -> WatchRules:
        watch = compiled.watch
        return WatchRules(
            allowed=frozenset(watch.allowed),
            high_risk=frozenset(watch.high_risk),
            on_high_risk=watch.on_high_risk,
            on_unseen=watch.on_unseen,
            denials=self._watching.denials and (watch.denials or trial),
        )
