"""What workloads owe to the egress proxy and have from it: output there, a model socket from there.

The proxy may be restarted at any time. Until it is back, nobody who calls models runs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sandbox.errors import SandboxError
from sandbox.launcher import Running
from supervisor.egress import EgressRefused
from supervisor.keys import HELPER, SOFTWARE_TPM
from supervisor.policy.net import MODEL_PORT
from supervisor.policy.net import PORT as FORWARD_PORT
from supervisor.policy.plans import CompiledPolicy
from supervisor.watching import LOADER, READER
from supervisor.workload import Workload

if TYPE_CHECKING:
    from supervisor.supervise import Supervisor

EGRESS = "service.egress"
# Run before or beneath the egress proxy, which so cannot redact for them; they see no message.
_OWN_LOG = frozenset({EGRESS, LOADER, READER, HELPER, SOFTWARE_TPM})


class Callers:
    """The workloads of the supervisor `of`, as far as the egress proxy has to do with them."""

    def __init__(self, of: Supervisor) -> None:
        self._of = of
        # Read ends of the workloads' output. They are kept here, and never read, so that a restart
        # of the egress proxy (which redacts and writes the logs) breaks nobody's stdout.
        self._outputs: dict[str, int] = {}

    @contextmanager
    def output(self, compiled: CompiledPolicy) -> Iterator[tuple[int, int, int]]:
        """stdin, stdout, stderr for a launch, closed after it: a pipe to the redacting proxy, or
        the log file for our own."""
        name = compiled.policy.id
        if name in _OWN_LOG:
            writing = self._of.outfitter.append(f"logs/{name}.log")
        else:
            reading, writing = os.pipe2(os.O_CLOEXEC)
            self.forget(name)
            self._outputs[name] = reading
        try:
            yield -1, writing, writing
        finally:
            os.close(writing)

    def forget(self, name: str) -> None:
        """The workload has ended; the proxy still reads what it left."""
        if (output := self._outputs.pop(name, None)) is not None:
            os.close(output)

    async def announce(self, workload: Workload) -> None:
        """Tell the proxy who this is: its model socket and its output. Raises EgressRefused."""
        of = self._of
        output = self._outputs.get(workload.id)
        if output is None and workload.compiled.egress is None:
            return
        if of.egress is None:
            raise EgressRefused("the egress proxy is not running")
        if output is not None:
            log = of.outfitter.append(f"logs/{workload.id}.log")
            try:
                await of.egress.order([output, log], op="log", workload=workload.id)
            finally:
                os.close(log)
        if (egress := workload.compiled.egress) is not None:
            for port, way, order in (
                (MODEL_PORT, "models", "listen"),
                (FORWARD_PORT, "net", "forward"),
            ):
                if egress[way]:
                    with of.broker.listen(workload.id, port) as listening:
                        await of.egress.order([listening.fileno()], op=order, workload=workload.id)

    async def announce_all(self) -> None:
        """After a (re)start of the proxy: keys, then everybody, then let them run again."""
        await self._of.vault.unlock()
        for workload in self._of.workloads.values():
            if workload.running is None or workload.id == EGRESS:
                continue
            try:
                await self.announce(workload)
                self.let_run(workload)
            except (EgressRefused, SandboxError, OSError) as error:
                self._of.note("announce", workload.id, "failed", reason=str(error))

    def let_run(self, workload: Workload) -> None:
        """Thaw it if everything that it needs beside it is there."""
        if workload.running and workload.state == "running" and self._of.may_run(workload):
            workload.running.leaf.thaw()

    def freeze(self) -> None:
        """Stop whoever may not go on without what has just gone; who is ending ends."""
        for workload in self._of.workloads.values():
            if workload.running and workload.wanted and not self._of.may_run(workload):
                workload.running.leaf.freeze()
                self._of.lifecycle.spawn(self._stands_still(workload, workload.running))

    async def _stands_still(self, workload: Workload, running: Running) -> None:
        """What does not freeze in time is not left to run, unless it may again."""
        try:
            await running.leaf.still()
        except SandboxError as error:
            if not self._of.may_run(workload):
                self._of.note("freeze", workload.id, "failed", reason=f"{error}; killed")
                running.leaf.kill()
