"""QEMU's own control channel (QMP): one command, one answer; events are kept."""

from __future__ import annotations

import json
import select
import socket
import time
from typing import Any

from tests.vm.failures import RigFailure


class Qmp:
    """The control channel over one end of a socket pair; QEMU has the other."""

    def __init__(self, line: socket.socket) -> None:
        self.events: list[dict[str, Any]] = []
        self._line = line
        self._buffer = b""
        self._ready = False

    def _messages(self, seconds: float) -> list[dict[str, Any]]:
        """What arrives within the time; as soon as something does."""
        if not select.select([self._line], [], [], seconds)[0]:
            return []
        try:
            chunk = self._line.recv(1 << 16)
        except ConnectionResetError:
            chunk = b""
        if not chunk:
            raise RigFailure("QEMU closed its control channel")
        *whole, self._buffer = (self._buffer + chunk).split(b"\n")
        messages = [json.loads(line) for line in whole if line.strip()]
        self.events += [message for message in messages if "event" in message]
        return [message for message in messages if "event" not in message]

    def poll(self) -> None:
        """Take in the events that have arrived. QEMU's end is the caller's to notice."""
        try:
            while self._messages(0):
                pass
        except RigFailure:
            return

    def execute(self, command: str, seconds: float = 60, **arguments: Any) -> Any:
        """Run one command and return its answer. Raises RigFailure."""
        if not self._ready:
            self._ready = True
            self.execute("qmp_capabilities")
        message = {"execute": command, "arguments": arguments}
        self._line.sendall(json.dumps(message).encode() + b"\n")
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            for answer in self._messages(left):
                if "error" in answer:
                    raise RigFailure(f"QEMU refused {command}: {answer['error']['desc']}")
                if "return" in answer:
                    return answer["return"]
        raise RigFailure(f"QEMU did not answer {command} within {seconds:g} s")
