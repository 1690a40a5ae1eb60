#!/usr/bin/python3
"""Runs commands that arrive on a virtio-serial port: one JSON line in, one JSON line out.

On start it says {"hello": boot id}. Requests:
    {"ping": n, "clock": seconds, "seed": base64}   answered by {"pong": n, "boot": boot id}
    {"id": n, "argv": [...], "stdin": base64, "timeout": seconds}
answered by {"id": n, "exit": int | null, "signal": int | null, "cut": why | null, "seconds": s,
"stdout": base64, "stderr": base64}; "cut" is "timeout" or "output" if the agent ended the command.
One command at a time. Standard library only: the guest has nothing of the tree.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import selectors
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

OUTPUT_LIMIT = 64 << 20
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "USER": "root",
    "LANG": "C.UTF-8",
}
# <linux/random.h>; Python has no names for them.
RNDADDENTROPY = 0x40085203
RNDRESEEDCRNG = 0x5207


def boot_id() -> str:
    """The kernel's name for this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def wake(clock: float, seed: bytes) -> None:
    """Make a machine that was asleep in a snapshot differ from its twins: time and randomness."""
    time.clock_settime(time.CLOCK_REALTIME, clock)
    with Path("/dev/urandom").open("wb", buffering=0) as random:
        pool = struct.pack(f"ii{len(seed)}s", 8 * len(seed), len(seed), seed)
        fcntl.ioctl(random, RNDADDENTROPY, pool)
        fcntl.ioctl(random, RNDRESEEDCRNG)


def oom_score(value: int) -> None:
    """What the OOM killer thinks of this process, and of the children it starts from now on."""
    Path("/proc/self/oom_score_adj").write_text(str(value))


class Command:
    """One running command. What it leaves running in the background keeps the pipes open, so the
    end is the end of the process, not of its output."""

    def __init__(self, argv: list[str], stdin: bytes) -> None:
        # The agent is exempt from the OOM killer, its commands are not. Setting this in the child
        # would cost a fork of the whole interpreter, 0.1 s under emulation.
        oom_score(0)
        self.process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT,
            cwd="/root",
            start_new_session=True,
        )
        oom_score(-1000)
        assert self.process.stdout and self.process.stderr
        self.output = {self.process.stdout: bytearray(), self.process.stderr: bytearray()}
        self.left = memoryview(stdin)
        self.selector = selectors.DefaultSelector()
        self.end = os.pidfd_open(self.process.pid)
        self.selector.register(self.end, selectors.EVENT_READ)
        for pipe in self.output:
            os.set_blocking(pipe.fileno(), False)
            self.selector.register(pipe, selectors.EVENT_READ)
        if self.process.stdin:
            os.set_blocking(self.process.stdin.fileno(), False)
            self.selector.register(self.process.stdin, selectors.EVENT_WRITE)

    def _read(self, pipe: Any) -> bool:
        """Take what the pipe holds now; False when there is nothing (more) to take."""
        try:
            data = os.read(pipe.fileno(), 1 << 16)
        except BlockingIOError:
            return False
        self.output[pipe] += data
        if not data:
            self.selector.unregister(pipe)
        return bool(data) and len(self.output[pipe]) <= OUTPUT_LIMIT

    def _write(self, pipe: Any) -> None:
        try:
            self.left = self.left[os.write(pipe.fileno(), self.left[: 1 << 16]) :]
        except BrokenPipeError:
            self.left = self.left[:0]
        if not self.left:
            self.selector.unregister(pipe)
            pipe.close()

    def run(self, timeout: float) -> str | None:
        """Until the process ends; why it was ended, if it did not end by itself."""
        deadline = time.monotonic() + timeout
        cut = None
        while cut is None:
            ready = {key.fileobj for key, _ in self.selector.select(deadline - time.monotonic())}
            for pipe in ready & set(self.output):
                self._read(pipe)
            if self.process.stdin in ready:
                self._write(self.process.stdin)
            if self.end in ready:
                break
            if any(len(text) > OUTPUT_LIMIT for text in self.output.values()):
                cut = "output"
            elif time.monotonic() >= deadline:
                cut = "timeout"
        if cut:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in set(self.output) & {key.fileobj for key in self.selector.get_map().values()}:
            while self._read(pipe):
                pass
        return cut

    def close(self) -> None:
        """Give back every descriptor."""
        self.selector.close()
        os.close(self.end)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe and not pipe.closed:
                pipe.close()


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Run one request's command."""
    began = time.monotonic()
    reply: dict[str, Any] = {"id": request["id"], "exit": None, "signal": None, "cut": None}
    try:
        command = Command(request["argv"], base64.b64decode(request["stdin"]))
    except OSError as error:
        reply |= {"exit": 127, "stdout": "", "stderr": base64.b64encode(str(error).encode())}
    else:
        reply["cut"] = command.run(request["timeout"])
        status = command.process.returncode
        reply["exit" if status >= 0 else "signal"] = abs(status)
        out, err = (base64.b64encode(text) for text in command.output.values())
        reply |= {"stdout": out, "stderr": err}
        command.close()
    return reply | {"seconds": time.monotonic() - began}


def lines(port: int) -> Iterator[bytes]:
    """Lines as they arrive."""
    parts: list[bytes] = []
    while True:
        chunk = os.read(port, 1 << 17)
        if not chunk:  # nobody holds the other end
            time.sleep(0.05)
            continue
        *whole, rest = chunk.split(b"\n")
        for line in whole:
            yield b"".join([*parts, line])
            parts = []
        parts.append(rest)


def send(port: int, message: dict[str, Any]) -> None:
    """Write one line."""
    data = memoryview((json.dumps(message, default=bytes.decode) + "\n").encode())
    while data:
        data = data[os.write(port, data) :]


def main(path: str) -> None:
    """Serve the port for ever."""
    oom_score(-1000)
    port = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    send(port, {"hello": boot_id()})
    for line in lines(port):
        request = json.loads(line)
        if "ping" in request:
            wake(request["clock"], base64.b64decode(request["seed"]))
            send(port, {"pong": request["ping"], "boot": boot_id()})
        else:
            send(port, answer(request))


if __name__ == "__main__":
    main(sys.argv[1])
