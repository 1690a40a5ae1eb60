"""The launcher: turns plans into running, verified workloads.

Lives in the supervisor on its event loop; all privileged work happens in the zygote.
"""

from __future__ import annotations

import asyncio
import fcntl
import marshal
import os
import signal
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox import devices, passing, seccomp, syscalls
from sandbox.cgroup import Leaf
from sandbox.errors import LaunchFailed, SandboxError
from sandbox.flatten import flatten
from sandbox.job import Job
from sandbox.plan import SandboxPlan

_LAUNCH_TIME = 10.0  # seconds without a word; all steps together take milliseconds
_EXIT_TIME = 1.0  # seconds until the zygote has told of a death that the kernel has seen


class Cell:
    """A process in a leaf of its own and in new namespaces, not yet told what to become.

    `line` leads to it, SEQPACKET, until it executes its program:
      to it    b"j" + [job memfd]; b"d" or (stdin is /dev/null) b"n" + [(stdin,) stdout, ...]; b"g"
      from it  b"C" report, b"R" when it is ready, b"E" step NUL reason; end of file: it executes
    """

    def __init__(
        self, number: int, leaf: Leaf, line: socket.socket, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.number = number
        self.leaf = leaf
        self.line = line
        self.name = "spare cell"  # until it is told what to become
        self.plan: SandboxPlan | None = None
        self.told = 0.0  # when, by the loop's clock
        self.failed = self.released = False
        self.limited = False  # whether the plan's limits are in force on its cgroup
        self.spawned: asyncio.Future[tuple[int, int, int]] = loop.create_future()
        self.confined: asyncio.Future[dict[str, Any]] = loop.create_future()
        self.ready: asyncio.Future[None] = loop.create_future()
        self.running: asyncio.Future[None] = loop.create_future()
        self.exited: asyncio.Future[tuple[int, int]] = loop.create_future()
        self._loop = loop
        line.setblocking(False)
        loop.add_reader(line.fileno(), self.hear)

    @property
    def stage(self) -> str:
        """The step it is at, as far as can be told without its own word."""
        if not self.spawned.done():
            return "spawn"
        if not self.confined.done():
            return "confine"
        return "execute" if self.ready.done() else "seccomp"

    def hear(self) -> None:
        """Take what it has said so far."""
        while self.line.fileno() != -1:
            try:
                message = self.line.recv(4096)
            except BlockingIOError:
                return
            except ConnectionResetError:  # it left our last message unread; its own still come
                continue
            except OSError:
                message = b""
            kind = message[:1]
            if kind == b"C":
                _settle(self.confined, marshal.loads(message[1:]))  # noqa: S302 - our own child
            elif kind == b"R":
                _settle(self.ready, None)
            elif kind == b"E":
                step, _, reason = message[1:].decode(errors="replace").partition("\0")
                self.fail(LaunchFailed(self.name, step, reason))
            else:
                self.hang_up()
                if self.released:  # otherwise it is dead; its exit follows
                    _settle(self.running, None)

    def tell(self, message: bytes, fds: list[int] | None = None) -> None:
        """Say something to it. If it is dead, its exit says so."""
        with suppress(OSError):
            socket.send_fds(self.line, [message], fds or [])

    def hang_up(self) -> None:
        """Close the line. Who still waits for a word on it ends."""
        if self.line.fileno() != -1:
            self._loop.remove_reader(self.line.fileno())
            self.line.close()

    def close(self) -> None:
        """Close its descriptors, also those still under way."""
        self.hang_up()
        self.spawned.add_done_callback(_close_spawned)

    def fail(self, error: Exception) -> None:
        """End every wait that has not ended yet."""
        self.failed = True
        waits: tuple[asyncio.Future[Any], ...] = (
            self.spawned, self.confined, self.ready, self.running,
        )  # fmt: skip
        for future in waits:
            if not future.done():
                future.set_exception(error)
                future.exception()  # whoever does not wait for it need not hear of it


@dataclass(slots=True)
class Running:
    """A launched process, held before its first instruction until `Launcher.release`.

    `netns` is an open descriptor of its network namespace; `cell.close` closes it and `pidfd`.
    """

    plan: SandboxPlan
    cell: Cell
    pid: int
    pidfd: int
    netns: int
    report: dict[str, Any]

    @property
    def leaf(self) -> Leaf:
        """Its cgroup."""
        return self.cell.leaf

    @property
    def exited(self) -> asyncio.Future[tuple[int, int]]:
        """Exit code and signal, once it has ended."""
        return self.cell.exited


class Launcher:
    """Client of the zygote."""

    def __init__(self, control: socket.socket, stage: Path, filter_devices: bool = True) -> None:
        """`filter_devices`: False where the host lacks that layer and its host file says so."""
        self._control = control
        self._stage = stage
        self._filter_devices = filter_devices
        self._abi = syscalls.landlock_abi()
        self._last_capability = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
        self._jobs: dict[int, tuple[SandboxPlan, int, tuple[str, ...]]] = {}
        self._cells: dict[int, Cell] = {}
        self._number = 0
        control.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(control.fileno(), self._receive)
        self.lost: asyncio.Future[None] = self._loop.create_future()

    def spawn(self, leaf: Leaf) -> Cell:
        """A process in `leaf` that waits to be told what to become; it may wait for long.

        Raises OSError without a descriptor left, SandboxError if the zygote is gone or full.
        """
        self._number += 1
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                fd = leaf.open()
            except BaseException:
                ours.close()
                raise
            cell = Cell(self._number, leaf, ours, self._loop)
            try:
                order = ("spawn", cell.number, str(self._stage))
                socket.send_fds(self._control, [marshal.dumps(order)], [fd, theirs.fileno()])
            except OSError as error:
                cell.close()
                raise _busy() if isinstance(error, BlockingIOError) else _lost() from error
            finally:
                os.close(fd)
        self._cells[cell.number] = cell
        return cell

    def confine(self, cell: Cell, plan: SandboxPlan) -> None:
        """Let `cell` become what `plan` says, up to its descriptors and filters; once in its life.

        It holds the files of that moment: what is replaced on the host afterwards, it does not see.
        Raises SandboxError without its device program.
        """
        cell.plan, cell.name, cell.told = plan, plan.workload, self._loop.time()
        kept = self._jobs.get(id(plan))
        job = kept[1] if kept else _sealed(self._flatten(plan))
        try:
            cell.tell(b"j", [job])
        finally:
            if not kept:
                os.close(job)
        if self._filter_devices:
            devices.attach(cell.leaf.path, plan)

    def age(self, cell: Cell) -> float:
        """Seconds since `cell` was told what to become; 0 for one that was not."""
        return self._loop.time() - cell.told if cell.plan else 0.0

    async def launch(
        self, plan: SandboxPlan, cell: Cell, stdio: tuple[int, int, int], fds: Mapping[str, int]
    ) -> Running:
        """Bring `cell` up to the filters, which load while the caller looks at it.

        `stdio`: descriptors of stdin (-1: /dev/null), stdout and stderr; `fds` by name, in the
        order of `plan.fds`. Raises LaunchFailed with the step, SandboxError without device filter;
        the caller then aborts the cell.
        """
        if cell.plan is not plan:
            self.confine(cell, plan)
        outside = [fd for fd in stdio if fd != -1]
        kind = b"n" if stdio[0] == -1 else b"d"
        cell.tell(kind, [*outside, *(fds[name] for name in plan.fds)])
        pid, pidfd, netns = await _word(cell, cell.spawned)
        report = await _word(cell, cell.confined)
        return Running(plan, cell, pid, pidfd, netns, report)

    async def filtered(self, running: Running) -> None:
        """Wait until it is under its filters. Raises LaunchFailed."""
        await _word(running.cell, running.cell.ready)

    async def release(self, running: Running) -> None:
        """Let the workload execute its first instruction. Raises LaunchFailed if exec fails."""
        await self.filtered(running)
        running.cell.released = True
        running.cell.tell(b"g")
        await _word(running.cell, running.cell.running)

    async def end(self, running: Running) -> tuple[int, int]:
        """Kill everything in its cgroup; its exit code and signal."""
        running.leaf.kill()
        await running.leaf.empty()
        try:
            async with asyncio.timeout(_EXIT_TIME):
                return await asyncio.shield(running.exited)
        except TimeoutError:  # the kernel says that it is dead; the zygote is stopped or hangs
            return -1, signal.SIGKILL

    def abort(self, cell: Cell) -> None:
        """Kill a cell that was never released; or at its next word, if it is not there yet."""
        cell.hang_up()
        if cell.spawned.done() and not cell.spawned.exception():
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(cell.spawned.result()[1], signal.SIGKILL)

    def prepare(self, plan: SandboxPlan) -> tuple[str, ...]:
        """Compile `plan` once for all its launches; a plan not prepared is compiled each time.

        Returns the sha256 of each filter that they load. Raises SandboxError as `compile_filters`.
        """
        # By identity: hashing a plan means hashing every rule in it, at every launch.
        if id(plan) not in self._jobs:
            job = self._flatten(plan)
            self._jobs[id(plan)] = plan, _sealed(job), seccomp.digests(job.seccomp)
        return self._jobs[id(plan)][2]

    def _flatten(self, plan: SandboxPlan) -> Job:
        return flatten(plan, self._abi, self._last_capability)

    def _receive(self) -> None:
        while True:
            try:
                data, fds, _ = passing.receive(self._control, 65536, 8)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._loop.remove_reader(self._control.fileno())
                for cell in self._cells.values():
                    cell.fail(_lost())
                    cell.exited.set_result((-1, 9))  # PDEATHSIG: they died with the zygote
                self.lost.set_result(None)
                return
            kind, number, *rest = marshal.loads(data)  # noqa: S302 - our own zygote
            if number in self._cells:
                self._handle(kind, self._cells[number], rest, fds)

    def _handle(self, kind: str, cell: Cell, rest: list[Any], fds: list[int]) -> None:
        if kind == "spawned" and len(fds) == 2 and not cell.failed:
            cell.spawned.set_result((rest[0], *fds))
        elif kind == "spawned":  # recvmsg(2) drops what finds no place, or its own word came first
            for fd in fds:
                os.close(fd)
            cell.fail(LaunchFailed(cell.name, "spawn", "no descriptor left in the supervisor"))
        elif kind == "failed":
            step, reason = rest
            cell.hear()  # it may have said itself what went wrong
            cell.fail(LaunchFailed(cell.name, step, reason))
            if step == "spawn":  # there is no process to exit
                cell.exited.set_result((-1, 0))
                del self._cells[cell.number]
        elif kind == "exit":
            cell.hear()  # its last words
            code, number = rest
            reason = f"exit code {code}, signal {number}"
            cell.fail(LaunchFailed(cell.name, cell.stage, reason))
            cell.exited.set_result((code, number))
            del self._cells[cell.number]


def _sealed(job: Job) -> int:
    fd = os.memfd_create("job", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, job.pack())
    # The filters in it must be those that were compiled: F_SEAL_SEAL, SHRINK, GROW, WRITE.
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, 0xF)
    return fd


def _settle(future: asyncio.Future[Any], value: object) -> None:
    if not future.done():  # failed already, and the word was under way
        future.set_result(value)


def _close_spawned(spawned: asyncio.Future[tuple[int, int, int]]) -> None:
    if not spawned.cancelled() and spawned.exception() is None:
        for fd in spawned.result()[1:]:
            os.close(fd)


async def _word(cell: Cell, word: asyncio.Future[Any]) -> Any:
    """The answer that `word` waits for; nobody waits for ever."""
    try:
        async with asyncio.timeout(_LAUNCH_TIME):
            return await asyncio.shield(word)
    except TimeoutError:
        reason = f"no word for {_LAUNCH_TIME:g} s: it hangs, or the launcher process is stopped"
        raise LaunchFailed(cell.name, cell.stage, reason) from None


def _lost() -> SandboxError:
    return SandboxError("zygote_lost", "the launcher process died", "restart anchorhold")


def _busy() -> SandboxError:
    return SandboxError(
        "zygote_busy",
        "the launcher process takes no more orders: it hangs or is stopped",
        "look at the process anchor-launcher: continue it, or restart anchorhold",
    )
