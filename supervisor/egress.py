"""The supervisor's line to the egress proxy: sockets and pipes over, one byte back.

The proxy parses untrusted bytes, so the supervisor reads nothing from it but a status byte.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Sequence
from contextlib import suppress

_ANSWER_TIME = 5.0
_START_TIME = 120.0  # until the first answer: slow machines take long to compile the rules


class EgressRefused(Exception):
    """The egress proxy is gone, silent, or answered with an error byte."""

    code = "egress_refused"
    fix = "see `anchorhold status` and `anchorhold logs service.egress`"


class Egress:
    """Orders to the proxy, one at a time."""

    def __init__(self, control: socket.socket) -> None:
        control.setblocking(False)
        self._control = control
        self._turn = asyncio.Lock()
        self._owed = 0  # answers that have not come yet
        self._time = _START_TIME

    async def order(self, fds: Sequence[int] = (), **message: object) -> None:
        """Send one order with descriptors and wait for its byte. Raises EgressRefused."""
        async with self._turn:
            try:
                socket.send_fds(self._control, [json.dumps(message).encode()], list(fds))
                self._owed += 1
                async with asyncio.timeout(self._time):
                    answer = await self._answer()
            except TimeoutError as error:
                waited = f"no answer within {self._time:g} s"
                raise EgressRefused(f"{message['op']}: {waited}") from error
            except OSError as error:
                raise EgressRefused(f"{message['op']}: no answer ({error})") from error
        if answer != b"\0":
            code = answer[0] if answer else "end of file"
            raise EgressRefused(f"{message['op']}: refused with code {code}")

    async def _answer(self) -> bytes:
        """The last byte owed: those before it answer orders that nobody waits for any more."""
        answer = b""
        while self._owed:
            answer = await asyncio.get_running_loop().sock_recv(self._control, 1)
            if not answer:
                break
            self._owed -= 1
            self._time = _ANSWER_TIME
        return answer

    def close(self) -> None:
        """End the line, and with it the proxy and any order that still waits for its byte."""
        with suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)  # closed with the last reference
