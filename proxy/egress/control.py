"""The supervisor's control socket: one JSON datagram with descriptors in, one byte out."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import json
import os
import socket
from collections.abc import Callable
from typing import Any

from proxy import passing
from proxy.errors import ProxyError

SIZE_MAX = 4096
_DESCRIPTORS = 4


class Answer(enum.IntEnum):
    """The one byte that answers a message."""

    OK = 0
    MALFORMED = 1
    UNKNOWN_OPERATION = 2
    WRONG_DESCRIPTORS = 3
    UNKNOWN_WORKLOAD = 4
    FAILED = 5


class ControlError(ProxyError):
    """A control message cannot be carried out; `answer` is what the supervisor is told."""

    code = "control"

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.name.lower())
        self.answer = answer


# Takes the message and its descriptors. It owns those that it removes from the list; the rest
# are closed here.
Handler = Callable[[dict[str, Any], list[int]], None]


class Control:
    """Answers messages in order, in the event loop; `gone` is called when the supervisor is."""

    def __init__(self, sock: socket.socket, handle: Handler, gone: Callable[[], None]) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._handle = handle
        self._gone = gone

    def start(self) -> None:
        """Begin to listen."""
        asyncio.get_running_loop().add_reader(self._sock.fileno(), self._readable)

    def close(self) -> None:
        """Stop listening."""
        asyncio.get_running_loop().remove_reader(self._sock.fileno())
        self._sock.close()

    def _readable(self) -> None:
        try:
            data, handed, flags = passing.receive(self._sock, SIZE_MAX, _DESCRIPTORS)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data, handed, flags = b"", [], 0
        if not data:
            _close(handed)
            asyncio.get_running_loop().remove_reader(self._sock.fileno())
            self._gone()
            return
        answer = Answer.MALFORMED
        if not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            answer = self._answer(data, handed)
        _close(handed)
        with contextlib.suppress(OSError):
            self._sock.send(bytes([answer]))

    def _answer(self, data: bytes, handed: list[int]) -> Answer:
        try:
            message = json.loads(data)
        except ValueError:
            return Answer.MALFORMED
        if not isinstance(message, dict) or not isinstance(message.get("op"), str):
            return Answer.MALFORMED
        try:
            self._handle(message, handed)
        except ControlError as error:
            return error.answer
        except (ProxyError, OSError):
            return Answer.FAILED
        return Answer.OK


def _close(descriptors: list[int]) -> None:
    for fd in descriptors:
        with contextlib.suppress(OSError):
            os.close(fd)
