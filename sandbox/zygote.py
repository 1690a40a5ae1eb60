"""The launcher's privileged half: a small, single-threaded process that only forks sandboxes.

Forked from the supervisor before any event loop or thread exists. It gets one packed job and its
descriptors at a time, never a policy and never a key. If the supervisor dies so does the zygote,
and with the zygote every child (PDEATHSIG), so nothing it started outlives the supervisor.

Messages, SEQPACKET, marshal tuples; both ends are this same image:
  to the zygote   ("launch", id, stdin is null)
                      + [job memfd, cgroup fd, (stdin,) stdout, stderr, fds...]
                  ("release", pid) | ("abort", pid)
  from the zygote ("ready", id, pid, report) + [pidfd, netns fd] | ("failed", id, step, reason)
                  ("running", pid) | ("exit", pid, code, signal)
"""

from __future__ import annotations

import gc
import marshal
import os
import select
import signal
import socket

from sandbox import confine, credentials, syscalls
from sandbox.job import Job

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_NAMESPACES = (
    syscalls.CLONE_NEWNS
    | syscalls.CLONE_NEWPID
    | syscalls.CLONE_NEWIPC
    | syscalls.CLONE_NEWUTS
    | syscalls.CLONE_NEWTIME
    | syscalls.CLONE_CLEAR_SIGHAND
)
_STEP_TIMEOUT = 10_000  # ms that a child may take for one step before it is killed
_MESSAGE, _FDS = 65536, 64


class _Child:
    def __init__(self, pid: int, pidfd: int, sync: socket.socket) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.sync = sync
        self.released = False


class Zygote:
    """The loop: launch on request, report exits."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._children: dict[int, _Child] = {}
        self._poll = select.poll()
        self._poll.register(control.fileno(), select.POLLIN)
        self._by_fd: dict[int, _Child] = {}
        self._home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._network = self._fresh_network()

    def run(self) -> None:
        """Until the supervisor closes its end."""
        while True:
            for fd, _ in self._poll.poll():
                if fd == self._control.fileno():
                    if not self._request():
                        return
                elif fd in self._by_fd:
                    child = self._by_fd[fd]
                    if fd == child.pidfd:
                        self._reap(child)
                    else:
                        self._executed(child)

    def _fresh_network(self) -> int:
        """A network namespace with a live `lo` and nothing else, owned by the initial user."""
        syscalls.unshare(syscalls.CLONE_NEWNET)
        try:
            syscalls.loopback_up()
            return os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            syscalls.setns(self._home, syscalls.CLONE_NEWNET)

    def _send(self, message: tuple[Any, ...], fds: list[int] | None = None) -> None:
        socket.send_fds(self._control, [marshal.dumps(message)], fds or [])

    def _request(self) -> bool:
        data, fds, _, _ = socket.recv_fds(self._control, _MESSAGE, _FDS, socket.MSG_CMSG_CLOEXEC)
        if not data:
            return False
        verb, number, *rest = marshal.loads(data)  # noqa: S302 - written by the supervisor
        if verb == "launch":
            job, cgroup, *handed = fds
            try:
                self._launch(number, job, cgroup, [-1, *handed] if rest[0] else handed)
            finally:
                for fd in fds:
                    os.close(fd)
        elif child := self._children.get(number):
            if verb == "release":
                child.sync.send(b"g", socket.MSG_NOSIGNAL)
                # The child's end closes at its exec: the workload runs from there on.
                self._watch(child.sync.fileno(), child)
            else:
                child.sync.close()
                _kill(child.pidfd)
        return True

    def _launch(self, number: int, job_fd: int, cgroup: int, handed: list[int]) -> None:
        job = Job.unpack(os.pread(job_fd, os.fstat(job_fd).st_size, 0))
        network = self._network
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            pid, pidfd = syscalls.clone3(_NAMESPACES, cgroup)
        except OSError as error:
            self._send(("failed", number, "clone3", str(error)))
            return
        if pid == 0:
            ours.close()
            confine.run_child(job, handed, network, theirs.fileno())
        theirs.close()
        child = _Child(pid, pidfd, ours)
        try:
            report = self._guide(job, child)
        except _StepFailedError as failure:
            self._network = self._fresh_network()
            os.close(network)
            _kill(pidfd)
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
            os.close(pidfd)
            ours.close()
            self._send(("failed", number, failure.step, failure.reason))
            return
        self._children[pid] = child
        self._watch(pidfd, child)
        self._send(("ready", number, pid, report), [pidfd, network])
        os.close(network)
        # Made now for the next launch: a new network namespace costs more than all the rest.
        self._network = self._fresh_network()

    def _guide(self, job: Job, child: _Child) -> dict[str, object]:
        """Answer the child's questions until it is ready; its report."""
        waiting = select.poll()
        waiting.register(child.sync.fileno(), select.POLLIN)
        while True:
            if not waiting.poll(_STEP_TIMEOUT):
                raise _StepFailedError("unknown", f"no answer within {_STEP_TIMEOUT} ms")
            message = child.sync.recv(4096)
            if message == b"U":
                _map_ids(job, child.pid)
                child.sync.send(b"u", socket.MSG_NOSIGNAL)
            elif message[:1] == b"R":
                report: dict[str, object] = marshal.loads(message[1:])  # noqa: S302 - our own child
                return report
            elif message[:1] == b"E":
                step, _, reason = message[1:].decode(errors="replace").partition("\0")
                raise _StepFailedError(step, reason)
            else:
                raise _StepFailedError("unknown", "the child died without a word")

    def _watch(self, fd: int, child: _Child) -> None:
        self._by_fd[fd] = child
        self._poll.register(fd, select.POLLIN)

    def _unwatch(self, fd: int) -> None:
        if self._by_fd.pop(fd, None):
            self._poll.unregister(fd)

    def _executed(self, child: _Child) -> None:
        """EOF on the line: exec succeeded. A message: it did not, and says why."""
        message = child.sync.recv(4096)
        self._unwatch(child.sync.fileno())
        child.sync.close()
        if message:
            step, _, reason = message[1:].decode(errors="replace").partition("\0")
            self._send(("failed", -child.pid, step, reason))
        else:
            self._send(("running", child.pid))

    def _reap(self, child: _Child) -> None:
        status = os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED)
        if child.sync.fileno() != -1:
            if child.sync.fileno() in self._by_fd:
                self._executed(child)
            else:
                child.sync.close()
        self._unwatch(child.pidfd)
        os.close(child.pidfd)
        del self._children[child.pid]
        exited = status is not None and status.si_code == os.CLD_EXITED
        value = status.si_status if status is not None else -1
        self._send(("exit", child.pid, value if exited else -1, 0 if exited else value))


class _StepFailedError(Exception):
    def __init__(self, step: str, reason: str) -> None:
        super().__init__(step, reason)
        self.step = step
        self.reason = reason


def _map_ids(job: Job, pid: int) -> None:
    for name, value in (
        ("setgroups", "deny"),
        ("uid_map", f"{job.uid} {job.uid} 1"),
        ("gid_map", f"{job.gid} {job.gid} 1"),
    ):
        fd = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)


def _kill(pidfd: int) -> None:
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
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
            # A session without a terminal for us and all children; defaults where Python ignores.
            os.setsid()
            for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, [])
            # A collection in a child would write to every page and so copy it.
            gc.disable()
            gc.freeze()
            Zygote(theirs).run()
        finally:
            os._exit(0)
    theirs.close()
    return pid, ours
