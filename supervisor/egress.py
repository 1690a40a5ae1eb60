"""The supervisor's line to the egress proxy: sockets and pipes over, one byte back.

The proxy parses untrusted bytes, so the supervisor reads nothing from it but a status byte.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Sequence

_ANSWER_TIME = 5.0


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

    async def order(self, fds: Sequence[int] = (), **message: str) -> None:
        """Send one order with descriptors and wait for its byte. Raises EgressRefused."""
        loop = asyncio.get_running_loop()
        async with self._turn:
            try:
                socket.send_fds(self._control, [json.dumps(message).encode()], list(fds))
                async with asyncio.timeout(_ANSWER_TIME):
                    answer = await loop.sock_recv(self._control, 1)
            except (OSError, TimeoutError) as error:
                raise EgressRefused(f"{message['op']}: no answer ({error})") from error
        if answer != b"\0":
            code = answer[0] if answer else "end of file"
            raise EgressRefused(f"{message['op']}: refused with code {code}")

    def close(self) -> None:
        """Drop the line; the proxy ends with it."""
        self._control.close()
