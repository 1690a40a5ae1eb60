"""Descriptors that arrive over a socket are close-on-exec, in both rooms that receive some."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Callable

import pytest

from proxy import passing as proxys
from sandbox import passing as sandboxs

Receive = Callable[[socket.socket, int, int], tuple[bytes, list[int], int]]


@pytest.mark.parametrize("receive", [sandboxs.receive, proxys.receive], ids=["sandbox", "proxy"])
def test_a_received_descriptor_is_close_on_exec(receive: Receive) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        for _ in range(2):
            socket.send_fds(ours, [b"two"], [0, 1])
        data, fds, flags = receive(theirs, 16, 2)
        # The control: without the flag they are not.
        _, kept, _, _ = socket.recv_fds(theirs, 16, 2)
    try:
        assert (data, len(fds), flags & socket.MSG_CTRUNC) == (b"two", 2, 0)
        assert all(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC for fd in fds)
        assert not any(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC for fd in kept)
    finally:
        for fd in (*fds, *kept):
            os.close(fd)


@pytest.mark.parametrize("receive", [sandboxs.receive, proxys.receive], ids=["sandbox", "proxy"])
def test_more_descriptors_than_expected_are_cut_and_said(receive: Receive) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        socket.send_fds(ours, [b"x"], [0, 1, 2])
        _, fds, flags = receive(theirs, 16, 1)
    for fd in fds:
        os.close(fd)
    assert flags & socket.MSG_CTRUNC
