"""The launcher: turns plans into running, verified workloads.

Lives in the supervisor on its event loop; all privileged work happens in the zygote.
"""

from __future__ import annotations

import asyncio
import marshal
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox import credentials, landlock, seccomp, syscalls
from sandbox.cgroup import Leaf
from sandbox.confine import rlimits
from sandbox.errors import LaunchFailed, SandboxError
from sandbox.job import Job
from sandbox.plan import Bind, Device, Mount, SandboxPlan, Symlink, Tmpfs

ExitCallback = Callable[[int, int], None]


@dataclass(slots=True)
class Running:
    """A launched process, held before its first instruction until `Launcher.release`.

    `netns` is an open descriptor of its network namespace; the caller closes it.
    """

    plan: SandboxPlan
    leaf: Leaf
    pid: int
    pidfd: int
    netns: int
    report: dict[str, Any]
    exited: asyncio.Future[tuple[int, int]]


class Launcher:
    """Client of the zygote."""

    def __init__(self, control: socket.socket, stage: Path) -> None:
        self._control = control
        self._stage = stage
        self._abi = syscalls.landlock_abi()
        self._last_capability = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
        self._jobs: dict[int, tuple[SandboxPlan, int]] = {}
        self._number = 0
        self._pending: dict[int, asyncio.Future[tuple[int, dict[str, Any], list[int]]]] = {}
        self._releasing: dict[int, asyncio.Future[None]] = {}
        self._exits: dict[int, asyncio.Future[tuple[int, int]]] = {}
        control.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(control.fileno(), self._receive)
        self.lost: asyncio.Future[None] = self._loop.create_future()

    async def launch(
        self, plan: SandboxPlan, leaf: Leaf, stdio: tuple[int, int, int], fds: Mapping[str, int]
    ) -> Running:
        """Make the sandbox up to the last step before exec.

        `stdio`: descriptors of stdin (-1: /dev/null), stdout and stderr; `fds` by name, in the
        order of `plan.fds`. Raises LaunchFailed with the step.
        """
        kept = self._jobs.get(id(plan))
        job = kept[1] if kept else self._pack(plan)
        self._number += 1
        number = self._number
        cgroup = leaf.open()
        pending = self._pending[number] = self._loop.create_future()
        outside = [fd for fd in stdio if fd != -1]
        handed = [job, cgroup, *outside, *(fds[name] for name in plan.fds)]
        try:
            message = marshal.dumps(("launch", number, stdio[0] == -1))
            socket.send_fds(self._control, [message], handed)
            pid, report, received = await pending
        finally:
            self._pending.pop(number, None)
            os.close(cgroup)
            if not kept:
                os.close(job)
        pidfd, netns = received
        exited = self._exits.setdefault(pid, self._loop.create_future())
        return Running(plan, leaf, pid, pidfd, netns, report, exited)

    async def release(self, running: Running) -> None:
        """Let the workload execute its first instruction. Raises LaunchFailed if exec fails."""
        done = self._releasing[running.pid] = self._loop.create_future()
        self._control.send(marshal.dumps(("release", running.pid)))
        try:
            await done
        finally:
            self._releasing.pop(running.pid, None)

    def abort(self, running: Running) -> None:
        """Kill a workload that was never released."""
        self._control.send(marshal.dumps(("abort", running.pid)))

    def prepare(self, plan: SandboxPlan) -> None:
        """Compile `plan` once for all its launches; a plan not prepared is compiled each time."""
        # By identity: hashing a plan means hashing every rule in it, at every launch.
        self._jobs[id(plan)] = plan, self._pack(plan)

    def _pack(self, plan: SandboxPlan) -> int:
        job = flatten(plan, str(self._stage), self._abi, self._last_capability)
        fd = os.memfd_create("job", os.MFD_CLOEXEC)
        os.write(fd, job.pack())
        return fd

    def _receive(self) -> None:
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self._control, 65536, 8, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return
            if not data:
                self._loop.remove_reader(self._control.fileno())
                self.lost.set_result(None)
                error = SandboxError(
                    "zygote_lost", "the launcher process died", "restart anchorhold"
                )
                waiting: list[asyncio.Future[Any]] = [*self._pending.values()]
                waiting += self._releasing.values()
                for future in waiting:
                    if not future.done():
                        future.set_exception(error)
                return
            self._handle(marshal.loads(data), fds)  # noqa: S302 - our own zygote

    def _handle(self, message: tuple[Any, ...], fds: list[int]) -> None:
        kind = message[0]
        if kind == "ready":
            _, number, pid, report = message
            self._exits[pid] = self._loop.create_future()
            self._pending[number].set_result((pid, report, fds))
        elif kind == "failed":
            _, number, step, reason = message
            future: asyncio.Future[Any] | None = (
                self._pending.get(number) if number > 0 else self._releasing.get(-number)
            )
            if future and not future.done():
                future.set_exception(LaunchFailed("workload", step, reason))
        elif kind == "running":
            if future := self._releasing.get(message[1]):
                future.set_result(None)
        elif kind == "exit":
            _, pid, code, signal = message
            if not self._exits[pid].done():
                self._exits.pop(pid).set_result((code, signal))
            releasing = self._releasing.get(pid)
            if releasing and not releasing.done():
                reason = f"exit code {code}, signal {signal}"
                releasing.set_exception(LaunchFailed("workload", "execute", reason))


def flatten(plan: SandboxPlan, stage: str, abi: int, last_capability: int) -> Job:
    """The job that executes `plan` on a kernel with Landlock ABI `abi`."""
    mounts = sorted(plan.mounts, key=lambda mount: _target(mount).count("/"))
    paths = [
        (mount.target, landlock.rights_for(mount.access))
        for mount in mounts
        if isinstance(mount, Bind)
    ]
    paths += [
        (mount.target, landlock.rights_for(("read", "write")))
        for mount in mounts
        if isinstance(mount, Tmpfs)
    ]
    paths += [
        (mount.path, landlock.READ_FILE | landlock.WRITE_FILE)
        for mount in mounts
        if isinstance(mount, Device)
    ]
    paths.append(("/proc", landlock.rights_for(("read",))))
    # Importing a package lists the directory above it. Those directories hold nothing but mount
    # points of this plan; the root itself stays unlisted, which is the canary.
    above = {parent for mount in mounts if (parent := str(Path(_target(mount)).parent)) != "/"}
    paths += [(parent, landlock.READ_DIR) for parent in sorted(above)]
    listen = [("LISTEN_FDS", str(len(plan.fds))), ("LISTEN_FDNAMES", ":".join(plan.fds))]
    listen.append(("LISTEN_PID", "1"))
    environment = [*plan.environment, *(listen if plan.fds else [])]
    return Job(
        workload=plan.workload,
        hostname=plan.workload.replace(".", "-")[:63],
        stage=stage,
        executable=plan.argv[0],
        argv=[argument.encode() for argument in plan.argv],
        environment=[f"{name}={value}".encode() for name, value in environment],
        cwd=plan.cwd,
        uid=plan.uid,
        gid=plan.gid,
        groups=list(plan.groups),
        capabilities=credentials.mask(plan.capabilities),
        last_capability=last_capability,
        user_namespace=plan.user_namespace,
        jit=plan.jit,
        mounts=[("proc",), *(_flatten_mount(mount) for mount in mounts)],
        rlimits=rlimits(plan.limits.nofile, plan.limits.fsize, plan.limits.memlock),
        landlock_abi=abi,
        landlock=paths,
        tcp_bind=plan.tcp_bind,
        tcp_connect=plan.tcp_connect,
        seccomp=seccomp.compile_filters(plan.seccomp),
    )


def _target(mount: Mount) -> str:
    return mount.path if isinstance(mount, Device) else mount.target


def _flatten_mount(mount: Mount) -> tuple[object, ...]:
    if isinstance(mount, Bind):
        return ("bind", mount.source, mount.target, mount.access)
    if isinstance(mount, Tmpfs):
        return ("tmpfs", mount.target, mount.size, mount.inodes)
    if isinstance(mount, Symlink):
        return ("symlink", mount.target, mount.points_to)
    return ("device", mount.path, mount.major, mount.minor)
