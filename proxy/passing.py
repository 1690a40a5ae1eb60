"""Descriptors from another process, close-on-exec from the moment they arrive. A copy of the
sandbox's module of this name: neither room imports the other.

Not socket.recv_fds: in Python 3.11 it takes flags and drops them, MSG_CMSG_CLOEXEC with the rest.
"""

from __future__ import annotations

import socket

_INT = 4  # bytes


def receive(sock: socket.socket, size: int, most: int) -> tuple[bytes, list[int], int]:
    """One message of up to `size` bytes and `most` descriptors, and its flags (MSG_CTRUNC: there
    were more). recvmsg(2); raises OSError."""
    room = socket.CMSG_LEN(most * _INT)
    data, ancillary, flags, _ = sock.recvmsg(size, room, socket.MSG_CMSG_CLOEXEC)
    fds: list[int] = []
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds += memoryview(payload[: len(payload) // _INT * _INT]).cast("i")
    return data, fds, flags
