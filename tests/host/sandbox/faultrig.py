"""Making launches fail, and finding what is left: for the tests of every step.

The failures are the kernel's own. A step of confine.py fails because a seccomp filter answers one
of its system calls with ENOMEM; it is loaded by a `confine.Sync` of ours, put in place before the
launcher is forked, when the child names the step. No result is made up: what is done about the
error is the product's code alone.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import signal
import struct
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import seccomp as libseccomp

from sandbox import broker, confine, syscalls, zygote
from tests.host.sandbox.stand import PYTHON, Stand

ENOMEM = 12
RAN = "open('/data/ran', 'w').close()"


class Saboteur(confine.Sync):
    """Refuses one system call from the moment on at which the child names a step."""

    order = mmap.mmap(-1, 4096)  # shared with the children: step NUL call number NUL

    @classmethod
    def refuse(cls, step: str = "", call: str = "") -> None:
        """For every launch from now on; nothing without arguments."""
        number = libseccomp.resolve_syscall(libseccomp.Arch(), call) if call else 0
        cls.order.seek(0)
        cls.order.write(f"{step}\0{number}\0".encode())

    def at(self, step: str) -> None:
        super().at(step)
        wanted, number, _ = self.order[:128].split(b"\0", 2)
        if step == wanted.decode():
            program = [  # struct sock_filter: load the call's number; if it is this one, refuse it
                (0x20, 0, 0, 0), (0x15, 0, 1, int(number)),
                (0x06, 0, 0, 0x0005_0000 | ENOMEM), (0x06, 0, 0, 0x7FFF_0000),
            ]  # fmt: skip
            syscalls.prctl(38, 1)  # without capabilities, filters are for who gains no privileges
            syscalls.seccomp_load(b"".join(struct.pack("=HBBI", *line) for line in program))


class Rig:
    """A stand whose launcher was forked with the saboteur in place."""

    def __init__(self, directory: Path) -> None:
        Saboteur.refuse()
        original, confine.Sync = confine.Sync, Saboteur  # type: ignore[misc]
        try:
            started = zygote.start()
        finally:
            confine.Sync = original  # type: ignore[misc]
        self.loop = asyncio.new_event_loop()
        self.stand: Stand = self.do(self._stand, directory, started, broker.start(4242424))
        self.plan = self.stand.plan((PYTHON, "-I", "-c", RAN))
        self.ran = self.stand.volume / "ran"
        self.works()  # and everything that is made once is made
        self.before = self.traces()

    async def _stand(self, *parts: Any) -> Stand:
        return Stand(*parts)

    def do(self, step: Callable[..., Awaitable[Any]], *arguments: Any, **named: Any) -> Any:
        """Run one coroutine function to its end."""
        waiting = asyncio.wait_for(step(*arguments, **named), 60)
        return self.loop.run_until_complete(waiting)

    def works(self) -> None:
        """The control: a launch succeeds and does what the others must not have done."""
        running = self.do(self.stand.start, self.plan)
        assert self.do(self.stand.finish, running) == (0, 0)
        assert self.ran.exists()
        self.ran.unlink()

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """A plain function that needs the running loop."""

        async def now() -> Any:
            return function(*arguments)

        return self.do(now)

    def fails(self, kind: type[BaseException], **more: Any) -> BaseException:
        """One launch that fails with `kind`, runs nothing and leaves nothing; its error."""
        plan = more.pop("plan", self.plan)
        with pytest.raises(kind) as failure:
            self.do(self.stand.start, plan, **more)
        self.left_nothing()
        return failure.value

    def left_nothing(self) -> None:
        """Nothing ran, and everything is as it was before the first failure."""
        end = time.monotonic() + 30  # hundreds of refused cells, on a busy machine
        while (now := self.traces()) != self.before and time.monotonic() < end:
            self.do(asyncio.sleep, 0.01)
        for what, found in now.items():
            assert found == self.before[what], what
        assert not self.ran.exists()

    def remember(self) -> None:
        """What is there now is how it was, once all have heard of the last end."""
        self.do(asyncio.sleep, 0.1)
        self.before = self.traces()

    def traces(self) -> dict[str, Any]:
        self.do(self.stand.drop_spare)
        self.do(asyncio.sleep, 0.02)
        return self.stand.traces()

    def close(self) -> None:
        Saboteur.refuse()
        os.kill(self.stand.zygote, signal.SIGKILL)
        os.waitpid(self.stand.zygote, 0)
        self.stand.broker.close()
        self.do(asyncio.sleep, 0.01)
        self.stand.close()
        self.loop.close()
