"""The command channel: JSON lines to and from guest/agent.py over a virtio-serial port."""

from __future__ import annotations

import base64
import json
import os
import socket
import time
from collections.abc import Callable
from typing import Any, NoReturn

# How long the channel stays silent before it looks whether the machine still lives, in seconds.
WATCH = 0.25


class ChannelLost(Exception):
    """The agent started anew or its line closed: what was asked will not be answered."""


class TooSlow(Exception):
    """No answer within the time."""


class Channel:
    """Our end of the line. `watch` raises if the machine behind it is beyond answering."""

    def __init__(self, line: socket.socket, watch: Callable[[], None]) -> None:
        self.boot: str | None = None
        self._line = line
        self._watch = watch
        self._line.settimeout(WATCH)
        self._parts: list[bytes] = []
        self._lines: list[bytes] = []
        self._number = 0

    def fileno(self) -> int:
        """For select()."""
        return self._line.fileno()

    def _receive(self, deadline: float) -> dict[str, Any]:
        while not self._lines:
            if time.monotonic() > deadline:
                raise TooSlow
            try:
                chunk = self._line.recv(1 << 18)
            except TimeoutError:
                self._watch()
                continue
            except ConnectionResetError:
                chunk = b""
            if not chunk:
                self._closed()
            *whole, rest = chunk.split(b"\n")
            for line in whole:
                self._lines.append(b"".join([*self._parts, line]))
                self._parts = []
            self._parts.append(rest)
        message: dict[str, Any] = json.loads(self._lines.pop(0))
        return message

    def _closed(self) -> NoReturn:
        """Raise; with QEMU's own reason, once it has ended for good."""
        for _ in range(20):
            self._watch()
            time.sleep(0.1)
        raise ChannelLost("QEMU closed the command channel")

    def _send(self, message: dict[str, Any], deadline: float) -> None:
        data = memoryview(json.dumps(message).encode() + b"\n")
        while data:
            if time.monotonic() > deadline:
                raise TooSlow
            try:
                data = data[self._line.send(data) :]
            except TimeoutError:
                self._watch()
            except (BrokenPipeError, ConnectionResetError):
                self._closed()

    def await_boot(self, seconds: float) -> None:
        """Wait until an agent says hello from another boot than the last one. Raises TooSlow."""
        deadline = time.monotonic() + seconds
        while True:
            boot = self._receive(deadline).get("hello")
            if boot is not None and boot != self.boot:
                self.boot = boot
                return

    def wake(self, seconds: float) -> None:
        """Tell a machine that comes out of a snapshot the time, and make it random again."""
        deadline = time.monotonic() + seconds
        seed = base64.b64encode(os.urandom(32)).decode()
        self._send({"ping": 1, "clock": time.time(), "seed": seed}, deadline)
        while "pong" not in (answer := self._receive(deadline)):
            pass
        self.boot = answer["boot"]

    def ask(self, argv: list[str], stdin: bytes, timeout: float, slack: float) -> None:
        """Send one command; `answer` takes its end."""
        self._number += 1
        message = {
            "id": self._number,
            "argv": argv,
            "stdin": base64.b64encode(stdin).decode(),
            "timeout": timeout,
        }
        self._send(message, time.monotonic() + timeout + slack)

    def answer(self, seconds: float) -> dict[str, Any]:
        """The end of the command asked last, outputs as bytes. Raises TooSlow or ChannelLost."""
        deadline = time.monotonic() + seconds
        while True:
            message = self._receive(deadline)
            if "hello" in message:
                again = "started anew" if message["hello"] == self.boot else "comes from a new boot"
                self.boot = message["hello"]
                raise ChannelLost(f"the agent in the guest {again}")
            if message.get("id") == self._number:
                for stream in ("stdout", "stderr"):
                    message[stream] = base64.b64decode(message[stream])
                return message
