"""A whole launch without a daemon: launcher, broker, cells, descriptors and a watch's maps.

What the supervisor builds, built the same way, for tests that start thousands of sandboxes, break a
step, or kill a part. The maps are the kernel's, without programs. Import it after `zygote.start()`:
what is loaded by then is copied at every launch.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import re
import socket
import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from probes import bpf, layout
from probes.maps import Watch
from sandbox.broker import BrokerError, BrokerHandle
from sandbox.cgroup import Slice, find_mount
from sandbox.launcher import Launcher, Running
from sandbox.plan import Bind, SandboxPlan
from supervisor.cells import Cells
from supervisor.channels import Channels
from supervisor.descriptors import Descriptors, Outfitter
from supervisor.host import load_host
from supervisor.policy.compile import compile_policies
from supervisor.policy.context import host_context
from supervisor.policy.parse import load_directory
from supervisor.policy.plans import CompiledPolicy
from supervisor.watching import Watching

ROOT = Path(__file__).resolve().parents[3]
WAIVED = frozenset({"memory", "pids", "cpu"})
PYTHON = "/usr/bin/python3"


def compile_shipped(
    directory: Path, workload: str, policies: Path = ROOT / "policies"
) -> CompiledPolicy:
    """A policy compiled for this tree, shipped if not from elsewhere; its directories below
    `directory`."""
    text = (ROOT / "policies/hosts/demo.toml").read_text()
    for key, value in {"app": ROOT, "policies": policies, "runtime": ROOT / ".runtime",
                       "state": directory, "run": directory}.items():  # fmt: skip
        text = re.sub(rf"(?m)^{key} +=.*$", f'{key} = "{value}"', text)
    (directory / "host.toml").write_text(text)
    host = load_host(directory / "host.toml")
    found, errors = load_directory(host.paths.policies)
    assert not errors, errors
    tokens = {policy.id: f"anchorhold-placeholder-{'0' * 32}" for policy in found}
    compiled = compile_policies(found, host, host_context(found, host, tokens))[workload]
    # The channel's socket is another room's business: here nobody serves it.
    mounts = compiled.sandbox.mounts
    kept = tuple(m for m in mounts if not str(getattr(m, "source", "")).endswith(".sock"))
    return dataclasses.replace(compiled, sandbox=dataclasses.replace(compiled.sandbox, mounts=kept))


def maps(slots: int = layout.SLOTS) -> Watch:
    """A watch with real maps for `slots` workloads and no program that reads them."""
    fds = {"slots": bpf.create(bpf.HASH, 8, layout.SLOT.size, slots)}
    for name, size in (("rules", layout.RULES.size), ("state", layout.STATE.size),
                       ("counters", layout.COUNTERS.size)):  # fmt: skip
        fds[name] = bpf.create(bpf.ARRAY, 4, size, layout.SLOTS)
    return Watch(fds, Path("/nowhere"), 0, denials=False)


class Stand:
    """Everything for launches of one policy; needs a running loop.

    `tree` is the name of the slice. `volume` is the one place where the workload may write; `plan`
    makes a plan for a command.
    """

    def __init__(
        self,
        directory: Path,
        zygote: tuple[int, socket.socket],
        broker: BrokerHandle,
        tree: str = "",
    ) -> None:
        self.zygote, control = zygote
        self.broker = broker
        self.directory = directory
        self.compiled = compile_shipped(directory, "adapter.rest")
        self.volume = directory / "volume"
        self.volume.mkdir(exist_ok=True)
        self.volume.chmod(0o777)
        directory.chmod(0o711)
        stage = directory / "stage"
        stage.mkdir(exist_ok=True)
        self.slice = Slice(find_mount() / (tree or f"anchorhold-test-{os.getpid()}"))
        self.launcher = Launcher(control, stage)
        self.watching = Watching(directory / "bpf", self.slice, lambda _: None, denials=False)
        self.watch(maps())
        self.channels = Channels(directory / "channel", {})
        self.listening = socket.socket(socket.AF_UNIX)
        self.outfitter = Outfitter(directory, self.channels, broker, self.listening, {})
        self.cells = self.make_cells()

    def make_cells(self, waived: frozenset[str] = WAIVED) -> Cells:
        """Another one that launches in the same slice."""
        return Cells(self.launcher, self.slice, self.outfitter, self.watching, waived)

    def watch(self, watch: Watch) -> None:
        """Register workloads with `watch` from now on."""
        if (old := getattr(self.watching, "_watch", None)) is not None:
            old.close()
        self.watching._watch = watch

    def plan(self, argv: tuple[str, ...], **changes: Any) -> SandboxPlan:
        """The policy's plan with `argv`, a writable /data and every kind of descriptor."""
        shipped = self.compiled.sandbox
        found = {"fds": ("config", "audit", "control", "broker"), **changes}
        found["mounts"] = (
            *shipped.mounts,
            Bind(str(self.volume), "/data", ("read", "write")),
            *changes.get("mounts", ()),
        )
        return dataclasses.replace(shipped, argv=argv, **found)

    async def start(self, plan: SandboxPlan, cells: Cells | None = None, **more: Any) -> Running:
        """One launch as the supervisor makes it, registered with the broker too."""
        more.setdefault("connect", self.connect)
        with tempfile.TemporaryFile() as out:
            stdio = (-1, out.fileno(), out.fileno())
            try:
                return await (cells or self.cells).launch(self.compiled, plan, stdio, {}, **more)
            except BaseException:
                self.disconnect(plan)
                raise

    async def connect(self, running: Running, given: Descriptors) -> None:
        """What the supervisor does to a new network namespace."""
        self.broker.register(running.plan.workload, running.netns)
        given.close_ours()

    async def finish(self, running: Running, timeout: float = 20.0) -> tuple[int, int]:
        """Wait for the end, late: kill; take everything back."""
        try:
            return await self.cells.to_its_end(running, timeout)
        finally:
            self.disconnect(running.plan)

    def disconnect(self, plan: SandboxPlan) -> None:
        """What the supervisor does when a workload has ended, or never began."""
        with suppress(BrokerError):  # without a broker everything is about to end
            self.broker.unregister(plan.workload)

    async def drop_spare(self) -> None:
        """Give the cell up that waits for the next launch."""
        spare, self.cells._spare = self.cells._spare, None
        if spare is not None:
            await self.cells._discard(spare)

    def traces(self) -> dict[str, Any]:
        """What a launch could leave behind, on every side.

        A namespace needs none of its own: it lives by a process, a descriptor or a mount.
        """
        registered = self.watching._watch._registered() if self.watching._watch else []
        return {
            "our descriptors": links(os.getpid()),
            "the launcher's descriptors": links(self.zygote),
            "the broker's descriptors": links(self.broker.pid),
            "our mounts": Path("/proc/self/mountinfo").read_text(),
            "the launcher's mounts": Path(f"/proc/{self.zygote}/mountinfo").read_text(),
            "cgroups": sorted(str(path) for path in self.slice.path.glob("**/")),
            "the launcher's children": children(self.zygote),
            "watched cgroups": [cgroup for cgroup, _ in registered],
            "names": dict(self.watching._names),
            "cells": sorted(self.launcher._cells),
            "files": sorted(str(p) for p in self.directory.rglob("*") if "audit" not in p.parts),
        }

    def close(self) -> None:
        """Take down what outlives the launcher."""
        self.slice.remove()
        self.listening.close()
        self.channels.close()


def links(pid: int) -> Counter[str]:
    """What the descriptors of a process lead to."""
    found: Counter[str] = Counter()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found[str(fd.readlink())] += 1
        except OSError:  # the listing's own
            continue
    found.pop(f"/proc/{pid}/fd", None)
    return found


def children(pid: int) -> list[int]:
    """The pids of its children. proc(5)"""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def keys() -> int:
    """How many keys there are on the machine; the kernel removes dead ones later. keyrings(7)"""
    return sum(int(n) for n in re.findall(r": +\d+ (\d+)/", Path("/proc/key-users").read_text()))


def collect(loop: asyncio.AbstractEventLoop, seconds: float = 0.0) -> None:
    """Let the loop hear what is under way."""
    loop.run_until_complete(asyncio.sleep(seconds))
