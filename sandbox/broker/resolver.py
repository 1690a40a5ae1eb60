"""Names to addresses, in a process that has nothing to lose.

DNS answers are untrusted bytes and libc parses them, so that happens in a child with an
unprivileged uid, no capability, a filter, limits and a few seconds to live. The *spawner* (forked
once, before the broker drops its privileges) only forks such children; each one answers on its own
socket and sees one name, so a child that was taken over can lie about that name and nothing else.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import struct
import sys

from sandbox import passing
from sandbox.broker import lockdown

LIFETIME = 5  # seconds of wall time for one lookup
MAX_ADDRESSES = 16
ANSWER_MAX = 1 + MAX_ADDRESSES * 17
_ENTRY = struct.Struct("!B16s")


def spawn(uid: int, program: bytes, keep_out: tuple[int, ...]) -> tuple[int, socket.socket]:
    """Fork the spawner; (pid, the socket to ask it). `keep_out` are fds it must not hold.

    Raises OSError when it did not reach its locked-down state.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent = os.getpid()
    pid = os.fork()
    if pid:
        theirs.close()
        if ours.recv(8) != b"ready":
            raise OSError("the resolver did not start")
        return pid, ours
    try:
        ours.close()
        for fd in keep_out:
            os.close(fd)
        with open("/proc/self/comm", "w", encoding="ascii") as file:  # noqa: PTH123 - few imports
            file.write("anchor-resolve")
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are reaped by the kernel
        lockdown.limit(files=64, memory=512 << 20, processes=64)
        last = lockdown.last_capability()
        lockdown.drop_to(uid, (), last, parent, program)
        theirs.send(b"ready")
        _serve(theirs)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(0)


def ask(spawner: socket.socket, host: str) -> socket.socket:
    """Start a lookup; the socket that will carry the answer (or EOF). OSError if it is gone."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        socket.send_fds(spawner, [host.encode("ascii")], [theirs.fileno()], socket.MSG_DONTWAIT)
    except OSError:
        ours.close()
        raise
    finally:
        theirs.close()
    ours.setblocking(False)
    return ours


def unpack(answer: bytes) -> list[tuple[int, bytes]]:
    """The answer as (family, packed address) pairs, [] when the name has none.

    Every byte may come from an attacker: fixed-size entries, two families, nothing else. Raises
    ValueError when it is malformed.
    """
    body = answer[1:]
    if not answer or answer[0] * _ENTRY.size != len(body) or answer[0] > MAX_ADDRESSES:
        raise ValueError("malformed answer of the resolver")
    found = []
    for family, packed in _ENTRY.iter_unpack(body):
        if family == 4 and packed[4:] == bytes(12):
            found.append((int(socket.AF_INET), packed[:4]))
        elif family == 6:
            found.append((int(socket.AF_INET6), packed))
        else:
            raise ValueError("malformed answer of the resolver")
    return found


def _serve(requests: socket.socket) -> None:
    while True:
        host, fds, _ = passing.receive(requests, 256, 1)
        if not host or not fds:
            return
        if os.fork() == 0:
            requests.close()
            _look_up(host, fds[0])
        os.close(fds[0])


def _look_up(host: bytes, answer: int) -> None:
    try:
        # SIGALRM's default action ends the process in the middle of getaddrinfo(3).
        signal.setitimer(signal.ITIMER_REAL, LIFETIME)
        for what, bound in ((resource.RLIMIT_CPU, 2), (resource.RLIMIT_NPROC, 0)):
            resource.setrlimit(what, (bound, bound))
        entries = []
        for family, _kind, _protocol, _name, address in socket.getaddrinfo(
            host, None, type=socket.SOCK_STREAM
        ):
            packed = socket.inet_pton(family, str(address[0]).partition("%")[0])
            entries.append(_ENTRY.pack(4 if family == socket.AF_INET else 6, packed))
        entries = entries[:MAX_ADDRESSES]
        os.write(answer, bytes([len(entries)]) + b"".join(entries))
    except OSError:  # gaierror: no such name, no server, no answer
        os.write(answer, b"\0")
    finally:
        os._exit(0)
