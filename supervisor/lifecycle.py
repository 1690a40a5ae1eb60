"""Starting, watching, restarting and stopping workloads: what follows from what becomes of them."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import time
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from probes.errors import ProbeError
from proxy.errors import AuditUnwritable
from sandbox.cgroup import Leaf
from sandbox.errors import SandboxError
from sandbox.launcher import Running
from supervisor import doctor
from supervisor.callers import EGRESS, Callers
from supervisor.descriptors import Descriptors
from supervisor.egress import Egress, EgressRefused
from supervisor.keys import HELPER, SOFTWARE_TPM
from supervisor.policy.compile import with_words
from supervisor.policy.plans import CompiledPolicy
from supervisor.watching import LOADER, READER
from supervisor.workload import Workload

if TYPE_CHECKING:
    from supervisor.supervise import Supervisor

_STOP_TIME = 3.0
_HELPER_TIME = 60.0
# A second or two on a quiet PC; a minute was seen on a busy machine that emulates its processor,
# and without the probes nothing runs. Below the unit's TimeoutStartSec.
_COMPILE_TIME = 200.0
# What opens the vault, whose signers vouch for the policies of everything else.
_BEFORE_THE_VAULT = (LOADER, READER, SOFTWARE_TPM, HELPER)
_RECORD_AGAIN = 5.0  # seconds until a start is tried again that could not be recorded

StartError = (SandboxError, ProbeError, EgressRefused, OSError)


class GuaranteeMissing(SandboxError):
    """A policy requires what this host cannot give and its host file does not waive."""

    def __init__(self, lacking: Sequence[doctor.Guarantee]) -> None:
        said = "; ".join(f"{need.name}: {need.evidence}. {need.fix}" for need in lacking)
        super().__init__("guarantee_missing", f"required guarantee missing: {said}")


def no_policy(id_: str) -> SandboxError:
    """The error for a part whose policy is missing or broken."""
    fix = "`anchorhold status` names the mistake in its policy"
    return SandboxError("no_policy", f"{id_} has no valid policy", fix)


class Lifecycle:
    """Runs workloads for the supervisor `of`."""

    def __init__(self, of: Supervisor) -> None:
        self._of = of
        self._tasks: set[asyncio.Task[None]] = set()
        self._callers = Callers(of)
        self._turns: dict[str, asyncio.Lock] = {}  # of one-shots

    async def start(self, workload: Workload) -> None:
        """Start and keep running. A failure becomes the workload's state, never an exception."""
        workload.wanted = True
        async with workload.turn:
            if workload.running is None and workload.wanted:
                await self._start(workload)

    async def _start(self, workload: Workload) -> None:
        workload.enter("starting")
        compiled = workload.compiled
        try:
            self._require(compiled)
        except SandboxError as lacking:
            workload.enter("failed", str(lacking))
            self._of.note("start", workload.id, "refused", reason=workload.error)
            return
        try:
            # On record before anything of it runs.
            filters = self._of.cells.filters(compiled.sandbox)
            what = {"digest": compiled.sandbox.digest, "filters": filters}
            self._of.record("start", workload.id, "allowed", **what)
            running = await self._launch(workload)
        except AuditUnwritable as error:
            workload.enter("backoff", str(error))
            self.spawn(self._restart(workload, _RECORD_AGAIN))
            return
        except StartError as error:
            self._of.note("start", workload.id, "failed", reason=str(error))
            self._crashed(workload, str(error))
            return
        workload.running = running
        workload.enter("running")
        self.spawn(self._follow(workload, running))
        if workload.id == EGRESS:
            await self._callers.announce_all()
        elif workload.id == SOFTWARE_TPM:
            self.spawn(self._of.reopen())
        elif workload.id == READER:
            for other in self._of.workloads.values():
                self._callers.let_run(other)

    async def _launch(self, workload: Workload) -> Running:
        of, compiled = self._of, workload.compiled

        async def connect(running: Running, given: Descriptors) -> None:
            await self._connect(workload, running, given)

        extra = of.watching.reader_fds() if workload.id == READER else {}
        try:
            with self._callers.output(compiled) as stdio:
                config = of.config_of(compiled)
                return await of.cells.launch(
                    compiled, compiled.sandbox, stdio, config, extra, connect
                )
        except BaseException:
            self._disconnect(workload)
            self._callers.forget(workload.id)
            raise
        finally:
            for fd in extra.values():
                os.close(fd)

    async def one_shot(self, id_: str, verbs: tuple[str, ...], extra: Mapping[str, int]) -> int:
        """Run a service to its end; its exit code, or 128 + signal. One at a time of each.

        `verbs` are a verb and options that its policy names; `extra` its descriptors.

        Raises what launch raises, and SandboxError where the policy is missing or cannot be kept.
        """
        compiled = self._of.compiled.get(id_)
        if compiled is None:
            raise no_policy(id_)
        self._require(compiled)
        plan = with_words(compiled, verbs, tuple(extra)) if verbs else compiled.sandbox
        cells = self._of.cells
        with self._callers.output(compiled) as stdio:
            async with self._turns.setdefault(id_, asyncio.Lock()):
                running = await cells.launch(compiled, plan, stdio, extra=extra)
                seconds = _COMPILE_TIME if id_ == LOADER else _HELPER_TIME
                code, number = await cells.to_its_end(running, seconds)
        return 128 + number if number else code

    async def try_out(
        self, id_: str, argv: tuple[str, ...], stdio: tuple[int, int, int], timeout: float
    ) -> tuple[int, int]:
        """Run `argv` in a fresh sandbox of `id_`'s policy, under a uid of its own.

        Its exit code and signal.
        """
        compiled = self._of.compiled[id_]
        self._require(compiled)
        uid = self._of.spare_uid
        plan = dataclasses.replace(
            compiled.sandbox, workload=f"try.{id_}", argv=argv, uid=uid, gid=uid, fds=()
        )
        running = await self._of.cells.launch(compiled, plan, stdio, trial=True)
        return await self._of.cells.to_its_end(running, timeout)

    async def stop(self, workload: Workload) -> None:
        """SIGTERM, a few seconds, then cgroup.kill. The state is "stopped" when this returns."""
        workload.wanted = False
        async with workload.turn:
            if (running := workload.running) is not None:
                # What was contained must not run again, not even to say goodbye.
                await self._end(running, at_once=workload.contained)
                self._settle(workload, running)
            workload.enter("stopped")

    async def _end(self, running: Running, at_once: bool) -> None:
        lost = self._of.launcher.lost.done()  # then nobody tells us of exits
        if not at_once and not lost and _hears(running.pid, signal.SIGTERM):
            running.leaf.thaw()
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(running.pidfd, signal.SIGTERM)
            with suppress(TimeoutError):
                async with asyncio.timeout(_STOP_TIME):
                    await asyncio.shield(running.exited)
        if not running.exited.done():
            await self._of.launcher.end(running)

    async def serving(self, workload: Workload, seconds: float = 10.0) -> bool:
        """Wait until it listens on every port of its policy; False: not in time, or it ended.

        Read from the kernel's table of its network namespace, proc(5); nobody knocks.
        """
        wanted = {port.port for port in workload.compiled.listen}
        end = time.monotonic() + seconds
        while (running := workload.running) is not None and time.monotonic() < end:
            with suppress(OSError):
                if wanted <= _listening(running.pid):
                    return True
            await asyncio.sleep(0.02)
        return False

    def contain(self, workload: Workload, reason: str, kill: bool) -> None:
        """A high-risk call: freeze everything of the workload, or kill it, and say so.

        The kernel is told at once. The workload is called quarantined when the kernel has done it.
        """
        if workload.running is None or workload.contained:
            return
        workload.wanted = False
        workload.enter("containing", reason)
        leaf = workload.running.leaf
        leaf.kill() if kill else leaf.freeze()
        self.spawn(self._contained(workload, leaf, reason, kill))

    async def _contained(self, workload: Workload, leaf: Leaf, reason: str, kill: bool) -> None:
        verdict = "refused"
        try:
            await (leaf.empty() if kill else leaf.still())
        except SandboxError:  # what does not freeze in time is not left to run
            leaf.kill()
            try:
                await leaf.empty()
            except SandboxError as error:
                verdict, reason = "failed", f"{reason}; {error}"
        if workload.state == "containing":
            workload.enter("quarantined", reason)
        self._of.note("contain", workload.id, verdict, reason=reason)

    def spawn(self, job: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Run `job` beside everything else, whoever asked for it."""
        task = asyncio.get_running_loop().create_task(job)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _require(self, compiled: CompiledPolicy) -> None:
        if self._of.unsigned is not None and compiled.policy.id not in _BEFORE_THE_VAULT:
            raise self._of.unsigned
        if lacking := doctor.unmet(compiled.sandbox.requires, self._of.guarantees):
            raise GuaranteeMissing(lacking)
        self._of.directories.require(compiled)

    async def _follow(self, workload: Workload, running: Running) -> None:
        code, number = await asyncio.shield(running.exited)
        if workload.running is not running:
            return  # stop() settled it
        how = workload.last_end = _how(code, number, running)
        self._settle(workload, running)
        self._of.note("exit", workload.id, "failed" if code else "allowed", reason=how)
        if workload.contained or not workload.wanted:
            return
        if code == 0 and workload.compiled.restart != "always":
            workload.enter("stopped")
        elif workload.compiled.restart == "never":
            workload.enter("failed", how)
        else:
            self._crashed(workload, how)

    def _settle(self, workload: Workload, running: Running) -> None:
        """The process is gone: take back all that was given for it."""
        if workload.running is not running:
            return
        workload.running = None
        self.spawn(self._clean_up(workload.id, running))
        self._disconnect(workload)
        self._callers.forget(workload.id)
        if workload.id in (EGRESS, READER):
            self._callers.freeze()

    async def _clean_up(self, id_: str, running: Running) -> None:
        try:
            await self._of.cells.clean_up(running)
        except (SandboxError, OSError) as error:  # tried again when everything ends
            self._of.note("clean-up", id_, "failed", reason=str(error))

    def _crashed(self, workload: Workload, how: str) -> None:
        delay = workload.crashes.add()
        if delay is None:
            workload.enter("quarantined", f"crashed five times in a minute, last: {how}")
            self._of.note("quarantine", workload.id, "refused", reason=how)
            return
        workload.enter("backoff", how)
        self._of.cells.expect(workload.compiled.sandbox)
        self.spawn(self._restart(workload, delay))

    async def _restart(self, workload: Workload, delay: float) -> None:
        await asyncio.sleep(delay)
        if workload.wanted and workload.state == "backoff":
            workload.restarts += 1
            await self.start(workload)

    async def _connect(self, workload: Workload, running: Running, given: Descriptors) -> None:
        """Give the new network namespace what its policy says, before the first instruction."""
        of = self._of
        of.broker.register(workload.id, running.netns)
        if workload.id == EGRESS:
            of.egress = Egress(given.ours.pop("control"))
        elif workload.id == READER:
            of.watching.attach_reader(given.ours.pop("control"))
        else:
            await self._callers.announce(workload)

    def _disconnect(self, workload: Workload) -> None:
        of = self._of
        with suppress(SandboxError):  # without broker everything is about to end
            of.broker.unregister(workload.id)
        if workload.id == EGRESS and of.egress is not None:
            of.egress.close()
            of.egress = None
        if workload.id == READER:
            of.watching.detach_reader()


def _how(code: int, number: int, running: Running) -> str:
    """How a process ended; its cgroup, which is still there, tells whose the signal was."""
    if not number:
        return f"exit code {code}"
    how = f"signal {signal.Signals(number).name}"
    with suppress(OSError):  # it tells nothing, and what follows must not depend on it
        if running.leaf.out_of_memory:
            how += f": it needed more memory than its limit of {running.plan.limits.memory} bytes"
    return how


def _hears(pid: int, number: int) -> bool:
    """Whether process 1 of a pid namespace takes this signal: the kernel drops what it neither
    catches nor blocks. pid_namespaces(7)"""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return False
    masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigCgt:", "SigBlk:"))]
    return any(mask & 1 << (number - 1) for mask in masks)


def _listening(pid: int) -> set[int]:
    """The TCP ports on which anybody in the network namespace of `pid` listens."""
    lines = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    fields = (line.split() for line in lines)
    return {int(local.rpartition(":")[2], 16) for _, local, _, state, *_ in fields if state == "0A"}
