"""The control socket: one datagram in, one byte out, whatever comes."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from .harness import KEY, WORKLOAD, Proxy, Upstream

OK, MALFORMED, UNKNOWN_OPERATION, WRONG_DESCRIPTORS, UNKNOWN_WORKLOAD, FAILED = range(6)


@pytest.mark.parametrize(
    ("message", "fds", "answer"),
    [
        (b"{", 0, MALFORMED),
        (b"[]", 0, MALFORMED),
        (b'{"op": 1}', 0, MALFORMED),
        ({"op": "listen"}, 1, MALFORMED),
        ({"op": "listen", "workload": WORKLOAD, "more": 1}, 1, MALFORMED),
        ({"op": "keys", "workload": WORKLOAD}, 1, MALFORMED),
        (b" " * 5000, 0, MALFORMED),
        ({"op": "dance", "workload": WORKLOAD}, 0, UNKNOWN_OPERATION),
        ({"op": "listen", "workload": WORKLOAD}, 0, WRONG_DESCRIPTORS),
        ({"op": "listen", "workload": WORKLOAD}, 2, WRONG_DESCRIPTORS),
        ({"op": "listen", "workload": "nobody"}, 1, UNKNOWN_WORKLOAD),
        ({"op": "listen", "workload": 7}, 1, UNKNOWN_WORKLOAD),
        ({"op": "unlisten", "workload": "other.one"}, 0, UNKNOWN_WORKLOAD),
        ({"op": "listen", "workload": WORKLOAD}, -1, FAILED),
        ({"op": "log", "workload": ""}, 2, MALFORMED),
    ],
)
def test_bad_message_gets_its_code_and_leaks_no_descriptor(
    proxy: Proxy, message: object, fds: int, answer: int
) -> None:
    folder = Path(f"/proc/{proxy.process.pid}/fd")
    before = len(list(folder.iterdir()))
    with Path(os.devnull).open("rb") as null, socket.socket() as sock:
        # -1: something that is not a socket
        handed = [null.fileno()] if fds < 0 else [sock.fileno()] * fds
        assert proxy.command(message, *handed) == answer
    assert len(list(folder.iterdir())) == before
    assert proxy.ask("still there").status == 200


def test_socket_that_does_not_listen_is_refused(proxy: Proxy) -> None:
    with socket.socket() as sock:
        message = {"op": "listen", "workload": WORKLOAD}
        assert proxy.command(message, sock.fileno()) == WRONG_DESCRIPTORS


def test_unlisten_closes_the_socket_and_listen_opens_anew(
    start: Callable[..., Proxy], upstream: Upstream
) -> None:
    proxy = start()
    proxy.listen()
    proxy.unlock()
    assert proxy.ask("x").status == 200
    assert proxy.command({"op": "unlisten", "workload": WORKLOAD}) == OK

    def refused() -> bool:
        try:
            proxy.connect().close()
        except ConnectionRefusedError:
            return True
        return False

    proxy.wait_for(refused)
    proxy.listen()
    assert proxy.ask("x").status == 200


def test_unusable_keys_leave_the_vault_as_it_was(
    start: Callable[..., Proxy], upstream: Upstream
) -> None:
    proxy = start()
    proxy.listen()
    proxy.unlock()
    for table in (b"", b"\0\0\0\2\0\1a\0\1b", b"\xff" * 64, b"\0\0\0\1\0\1\xff\0\1b"):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        assert proxy.command({"op": "keys"}, theirs.fileno()) == OK
        theirs.close()
        before = len(proxy.records("keys"))
        fd = os.memfd_create("table")
        os.write(fd, table)
        socket.send_fds(ours, [b"k"], [fd])
        os.close(fd)
        ours.close()
        proxy.wait_for(lambda n=before: len(proxy.records("keys")) > n)  # type: ignore[misc]
        assert proxy.records("keys")[-1]["verdict"] == "failed"
        assert proxy.ask("x").status == 200
    assert upstream.seen[-1].headers["authorization"] == f"Bearer {KEY}"


def test_supervisor_gone_ends_the_proxy(start: Callable[..., Proxy]) -> None:
    proxy = start()
    proxy.listen()
    proxy.control.close()
    assert proxy.process.wait(3) == 0


def test_a_locked_vault_is_told_with_its_code(start: Callable[..., Proxy]) -> None:
    proxy = start()
    proxy.listen()
    assert "PCR_CHANGED" not in proxy.ask("x").json["error"]["message"]
    for wrong in ({}, {"why": 1}, {"why": "pcr"}, {"why": "A" * 65}, {"why": "A", "more": 1}):
        assert proxy.command({"op": "locked"} | wrong) == MALFORMED
    assert proxy.command({"op": "locked", "why": "PCR_CHANGED"}) == OK
    answer = proxy.ask("x")
    assert (answer.status, answer.code) == (503, "vault_locked")
    assert "PCR_CHANGED" in answer.json["error"]["message"]
    proxy.unlock()
    assert proxy.ask("x").status == 200
