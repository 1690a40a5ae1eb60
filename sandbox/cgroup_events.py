"""Waiting for a cgroup to be frozen or empty: the kernel says when, instead of being asked.

cgroup.events can be polled: after each change poll(2) reports POLLPRI until the file is read again.
Source: the kernel's cgroup-v2.rst, "[Un]populated Notification".
"""

from __future__ import annotations

import asyncio
import os
import select
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sandbox.errors import SandboxError

# Seconds. The kernel tells of at most one change in 10 ms, the next one later, and never when the
# cgroup is removed by then: whoever waits for the same as another looks by himself at times.
_LOOK = 0.05


def says(cgroup: Path, key: str, value: str) -> bool:
    """Whether it is so now. A cgroup that was removed is empty and stands still."""
    with _events(cgroup) as fd:
        return _says(fd, key, value)


def wait(cgroup: Path, key: str, value: str, timeout: float) -> None:
    """Block until it is so. Raises SandboxError `cgroup_timeout`."""
    deadline = time.monotonic() + timeout
    with _events(cgroup) as fd:
        changes = select.poll()
        if fd is not None:
            changes.register(fd, select.POLLPRI)
        while not _says(fd, key, value):
            left = deadline - time.monotonic()
            if left <= 0:
                raise _timeout(cgroup, key, value, timeout)
            changes.poll(min(left, _LOOK) * 1000)


async def reached(cgroup: Path, key: str, value: str, timeout: float) -> None:
    """The same without holding up the event loop."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    with _events(cgroup) as fd, _changes(fd) as changed:
        while not _says(fd, key, value):
            left = deadline - loop.time()
            if left <= 0:
                raise _timeout(cgroup, key, value, timeout)
            timer = loop.call_later(min(left, _LOOK), changed.set)
            await changed.wait()
            timer.cancel()
            changed.clear()


@contextmanager
def _events(cgroup: Path) -> Iterator[int | None]:
    try:
        fd = os.open(cgroup / "cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _changes(fd: int | None) -> Iterator[asyncio.Event]:
    """Set at each change. The loop waits for "readable", which this file always is; an epoll of
    our own in between is readable only when the file has changed."""
    changed = asyncio.Event()
    loop = asyncio.get_running_loop()
    with select.epoll() as urgent:
        if fd is not None:
            urgent.register(fd, select.EPOLLPRI)
        loop.add_reader(urgent.fileno(), changed.set)
        try:
            yield changed
        finally:
            loop.remove_reader(urgent.fileno())


def _says(fd: int | None, key: str, value: str) -> bool:
    if fd is None:
        return True
    try:
        lines = os.pread(fd, 4096, 0).decode().splitlines()
    except OSError:  # ENODEV: removed since it was opened
        return True
    return dict(line.split() for line in lines)[key] == value


def _timeout(cgroup: Path, key: str, value: str, timeout: float) -> SandboxError:
    return SandboxError(
        "cgroup_timeout", f"{cgroup.name}: {key} is not {value} after {timeout:g} s"
    )
