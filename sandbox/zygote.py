"""The launcher's privileged half: a small, single-threaded process that only forks sandboxes.

Forked from the supervisor before any event loop or thread exists. It sees neither policies nor
keys. If the supervisor dies so does the zygote, and with the zygote every child (PDEATHSIG), so
nothing it started outlives the supervisor.

It makes children, writes their id maps and tells how they ended. A child is told what to become by
the supervisor itself, over a line that came along with the order (see confine.py).

Messages, SEQPACKET, marshal tuples; both ends are this same image.
  to the zygote   ("spawn", cell, stage directory) + [cgroup fd, the child's end of its line]
  from the zygote ("spawned", cell, pid) + [pidfd, netns fd] | ("failed", cell, step, reason)
                  ("exit", cell, code, signal)
"""

from __future__ import annotations

import errno
import gc
import marshal
import os
import select
import signal
import socket
import sys

from sandbox import confine, credentials, passing, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_NAMESPACES = (
    syscalls.CLONE_NEWNS
    | syscalls.CLONE_NEWPID
    | syscalls.CLONE_NEWNET
    | syscalls.CLONE_NEWIPC
    | syscalls.CLONE_NEWUTS
    | syscalls.CLONE_NEWTIME
    | syscalls.CLONE_CLEAR_SIGHAND
)
_MESSAGE, _FDS = 65536, 64


class _Child:
    """`line` carries its one request, for an id map, and hangs up when we are gone."""

    def __init__(self, cell: int, pid: int, pidfd: int, line: socket.socket) -> None:
        self.cell = cell
        self.pid = pid
        self.pidfd = pidfd
        self.line = line


class Zygote:
    """The loop: spawn on request, report what becomes of it."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._by_fd: dict[int, _Child] = {}
        self._poll = select.poll()
        self._poll.register(control.fileno(), select.POLLIN)

    def run(self) -> None:
        """Until the supervisor closes its end."""
        while True:
            for fd, _ in self._poll.poll():
                if fd == self._control.fileno():
                    if not self._request():
                        return
                elif child := self._by_fd.get(fd):
                    if fd == child.pidfd:
                        self._reap(child)
                    else:
                        self._hear(child)

    def _send(self, message: tuple[Any, ...], fds: list[int] | None = None) -> None:
        socket.send_fds(self._control, [marshal.dumps(message)], fds or [])

    def _request(self) -> bool:
        data, fds, _ = passing.receive(self._control, _MESSAGE, _FDS)
        if not data:
            return False
        _, cell, stage = marshal.loads(data)  # noqa: S302 - written by the supervisor
        try:
            if len(fds) != 2:  # recvmsg(2) drops what finds no place
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), "launcher")
            self._spawn(cell, stage, *fds)
        except OSError as error:
            self._send(("failed", cell, "spawn", str(error)))
        finally:
            for fd in fds:
                os.close(fd)
        return True

    def _spawn(self, cell: int, stage: str, cgroup: int, sync: int) -> None:
        """Raises OSError if there is no child."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid, pidfd = syscalls.clone3(_NAMESPACES, cgroup)
        if pid == 0:
            try:
                confine.run_child(sync, theirs.detach(), stage)
            finally:  # whatever happens, no child goes on as another launcher
                os._exit(126)
        theirs.close()
        child = _Child(cell, pid, pidfd, ours)
        for fd in (pidfd, ours.fileno()):
            self._by_fd[fd] = child
            self._poll.register(fd, select.POLLIN)
        try:
            netns = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return  # it has ended already; its exit follows
        except OSError as error:  # no descriptor left
            self._send(("failed", cell, "network namespace", str(error)))
            _kill(child)
            return
        self._send(("spawned", cell, pid), [pidfd, netns])
        os.close(netns)

    def _hear(self, child: _Child) -> None:
        """The request for an id map; end of file is its exec, or its death, which follows."""
        try:
            message = child.line.recv(64)
        except OSError:
            message = b""
        if message:
            try:
                _map_ids(child, *marshal.loads(message))  # noqa: S302 - our own child, before exec
            except (OSError, ValueError, TypeError) as error:
                # It is killed already, or may not go on without its map; no word of it ends us.
                self._send(("failed", child.cell, "user namespace", str(error)))
                _kill(child)
        else:
            self._forget(child.line.fileno())
            child.line.close()

    def _forget(self, fd: int) -> None:
        del self._by_fd[fd]
        self._poll.unregister(fd)

    def _reap(self, child: _Child) -> None:
        status = os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED)
        if child.line.fileno() != -1:
            self._forget(child.line.fileno())
            child.line.close()
        self._forget(child.pidfd)
        os.close(child.pidfd)
        exited = status is not None and status.si_code == os.CLD_EXITED
        value = status.si_status if status is not None else -1
        self._send(("exit", child.cell, value if exited else -1, 0 if exited else value))


def _map_ids(child: _Child, uid: int, gid: int) -> None:
    for name, value in (
        ("setgroups", "deny"),
        ("uid_map", f"{uid} {uid} 1"),
        ("gid_map", f"{gid} {gid} 1"),
    ):
        path = f"/proc/{child.pid}/{name}"
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        except OSError as error:
            raise OSError(error.errno, error.strerror, f"{path}: {value}") from None
        finally:
            os.close(fd)
    child.line.send(b"u", socket.MSG_NOSIGNAL)


def _kill(child: _Child) -> None:
    try:
        signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
    except ProcessLookupError:
        pass


def start() -> tuple[int, socket.socket]:
    """Fork the zygote; (pid, the caller's end of its line).

    Call it first of all: what the caller has imported by then is copied at every launch.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        ours.close()
        try:
            credentials.die_with_parent()
            credentials.not_dumpable()
            os.umask(0o077)
            with open("/proc/self/comm", "w") as comm:  # for whoever looks at `ps`
                comm.write("anchor-launcher")
            # A session without a terminal for us and all children; defaults where Python ignores.
            os.setsid()
            syscalls.default_signals()
            signal.pthread_sigmask(signal.SIG_SETMASK, [])
            # A collection in a child would write to every page and so copy it.
            gc.disable()
            gc.freeze()
            Zygote(theirs).run()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(70)
        os._exit(0)
    theirs.close()
    return pid, ours
