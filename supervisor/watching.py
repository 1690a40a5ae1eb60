"""The supervisor's side of the probes: load them, name workloads to the reader, act on notices.

From the reader come fixed-size numbers only; what a workload calls itself never reaches root.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from probes import events, maps
from probes.errors import ProbeError
from probes.layout import Counters
from probes.rules import WatchRules
from sandbox import syscalls
from sandbox.cgroup import Slice

LOADER, READER = "service.probe-loader", "service.probe-reader"
_PINS = "watch"  # the loader's own directory in the supervisor's bpf file system

OneShot = Callable[[str, tuple[str, ...], Mapping[str, int]], Awaitable[int]]


def mount_bpf(directory: Path) -> None:
    """A bpf file system of our own, in the supervisor's private mount namespace.

    It goes with the supervisor, and every pinned probe with it. Raises OSError.
    """
    directory.mkdir(mode=0o700, exist_ok=True)
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
    syscalls.mount("bpf", str(directory), "bpf", flags, "mode=0700")


class Watching:
    """Loaded probes and the line to their reader."""

    def __init__(
        self,
        directory: Path,
        tree: Slice,
        react: Callable[[events.Notice], None],
        denials: bool,
    ) -> None:
        self.denials = denials
        self._pins = directory / _PINS
        self._slice = tree
        self._react = react
        self._watch: maps.Watch | None = None
        self._names: dict[int, str] = {}
        self._line: socket.socket | None = None
        self.status: dict[str, Any] = {"ok": False}

    async def load(self, uid: int, one_shot: OneShot) -> None:
        """Compile and attach through the loader. Raises ProbeError with the loader's own reason."""
        self._pins.mkdir(mode=0o700, exist_ok=True)
        os.chown(self._pins, uid, uid)
        maps.clear(self._pins)
        config = {
            # Depth below the root of the hierarchy: slice, then leaf.
            "level": len(_hierarchy_path(self._slice.path).strip("/").split("/")) + 1,
            "denials": self.denials,
            "pins": "/sys/fs/bpf",
        }
        sealed = memfd(config)
        reading, writing = os.pipe2(os.O_CLOEXEC)
        try:
            code = await one_shot(LOADER, (), {"config": sealed, "result": writing})
            os.close(writing)
            writing = -1
            said = os.read(reading, 65536)
        finally:
            for fd in (sealed, reading, writing):
                if fd != -1:
                    os.close(fd)
        self.status = _told(said)
        if code != 0:
            maps.clear(self._pins)
            why = self.status.get("error")
            why = why if isinstance(why, dict) else {}
            raise ProbeError(
                str(why.get("code", "loader_failed")),
                str(why.get("message", f"The loader ended with {code} and no word.")),
                str(why.get("fix", f"Look at its log: anchorhold logs {LOADER}")),
            )
        self._watch = maps.Watch.open(self._pins)

    @property
    def loaded(self) -> bool:
        """Whether calls are being watched."""
        return self._watch is not None

    @property
    def heard(self) -> bool:
        """Whether a reader listens, so that what the probes see is recorded and acted on."""
        return self._line is not None

    def reader_fds(self) -> dict[str, int]:
        """Fresh map descriptors for a starting reader; the caller closes them."""
        if self._watch is None:
            raise ProbeError("not_loaded", "The watch is not loaded.", "Load it first.")
        return self._watch.fds_for_reader()

    def attach_reader(self, line: socket.socket) -> None:
        """Listen to a reader that was just started and tell it every name."""
        self.detach_reader()
        line.setblocking(False)
        self._line = line
        for cgroup, name in self._names.items():
            self._tell(cgroup, name)
        asyncio.get_running_loop().add_reader(line.fileno(), self._receive)

    def detach_reader(self) -> None:
        """The reader is gone."""
        if self._line is not None:
            asyncio.get_running_loop().remove_reader(self._line.fileno())
            self._line.close()
            self._line = None

    def register(self, cgroup: int, workload: str, rules: WatchRules) -> None:
        """Watch a leaf; before its release. Raises ProbeError."""
        if self._watch is None:
            return
        self._watch.register(cgroup, rules)
        self._names[cgroup] = workload
        self._tell(cgroup, workload)

    def unregister(self, cgroup: int) -> None:
        """Forget a leaf that is gone."""
        if self._watch is not None and self._names.pop(cgroup, None) is not None:
            self._watch.unregister(cgroup)

    def counters(self) -> dict[str, Counters]:
        """Seen, suppressed and lost events by workload."""
        if self._watch is None:
            return {}
        found = self._watch.counters()
        return {self._names[cgroup]: counts for cgroup, counts in found.items()}

    def counters_of(self, cgroup: int) -> Counters | None:
        """The counters of one leaf; None when it is not watched."""
        return None if self._watch is None else self._watch.counters().get(cgroup)

    def _tell(self, cgroup: int, workload: str) -> None:
        if self._line is not None:
            message = {"op": "workload", "cgroup": cgroup, "id": workload}
            with suppress(OSError):  # the reader is going; the next one is told every name
                self._line.send(json.dumps(message).encode())

    def _receive(self) -> None:
        while self._line is not None:
            try:
                data = self._line.recv(4096)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.detach_reader()
                return
            notice = events.from_wire(data)
            if notice is not None:
                self._react(notice)

    def name_of(self, cgroup: int) -> str | None:
        """The workload whose leaf has this id."""
        return self._names.get(cgroup)


def _told(said: bytes) -> dict[str, Any]:
    """The loader's line, whatever it is."""
    try:
        status = json.loads(said)
    except (ValueError, RecursionError):
        status = None
    return status if isinstance(status, dict) else {"ok": False}


def memfd(content: object) -> int:
    """A sealed memfd that holds `content` as JSON."""
    import fcntl

    fd = os.memfd_create("config", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, json.dumps(content, separators=(",", ":")).encode())
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def _hierarchy_path(path: Path) -> str:
    from sandbox.cgroup import find_mount

    return str(path.relative_to(find_mount()))
