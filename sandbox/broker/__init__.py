"""The socket broker, seen from the supervisor: start it, tell it who may reach what.

The broker is the only code that enters network namespaces after launch. It makes sockets and passes
them; no payload byte ever goes through it. `server.py` is what runs in the process, `lockdown.py`
what it gives up first, `resolver.py` the processes that read DNS answers.

Control protocol, one JSON datagram each way on a SEQPACKET socket, fds by SCM_RIGHTS:
`{"id": n, "op": ...}` is answered by `{"id": n, "ok": true}` or `{"id": n, "error": [code, text]}`.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from contextlib import suppress

from sandbox import credentials, passing, syscalls
from sandbox.broker import lockdown
from sandbox.errors import SandboxError

TYPE_CHECKING = False  # known to type checkers; the typing module would be 0.7 MB here
if TYPE_CHECKING:
    from typing import Any

CONTROL_MAX = 65536
_ANSWER_TIME = 5.0  # seconds; the broker answers within a millisecond or is broken


class BrokerError(SandboxError):
    """The broker refused an order or is gone."""


def start(uid: int, *, resolver_uid: int | None = 65534) -> BrokerHandle:
    """`fork()` and `BrokerHandle.lock_down()` in one."""
    handle = fork()
    handle.lock_down(uid, resolver_uid=resolver_uid)
    return handle


def fork() -> BrokerHandle:
    """Fork the broker; it waits, still root, for `lock_down`, and dies with the caller.

    Call it as root, from a process with one thread, and early: what is imported by then stays in
    the broker's memory, and in its resolver's.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            _become_broker(theirs, parent)
        except BaseException:
            # Not the traceback module: nothing can be imported after the lock-down.
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(70)
    theirs.close()
    return BrokerHandle(pid, ours)


class BrokerHandle:
    """The supervisor's end. Every method blocks for well under a millisecond.

    `control` turns readable (EOF) when the broker is gone; `pid` is a child to wait for. Errors are
    BrokerError: `broker_gone`, or the code that the broker gave (`bad_request`, `unknown_workload`,
    `system`).
    """

    def __init__(self, pid: int, control: socket.socket) -> None:
        self.pid = pid
        self.control = control
        self._last = 0
        control.settimeout(_ANSWER_TIME)

    def lock_down(self, uid: int, *, resolver_uid: int | None = 65534) -> None:
        """Let the broker become `uid` and give up everything else; once, before any other order.

        `resolver_uid` is what looks names up; with None nobody does (and 12 MB are saved): every
        dial to a host name then answers "resolve failed". Raises BrokerError `broker_start` with
        the broker's own reason.
        """
        try:
            self._order({"op": "lock-down", "uid": uid, "resolver_uid": resolver_uid})
        except BrokerError:
            self.close()
            raise

    def register(self, workload: str, netns: int) -> None:
        """Make `workload` known by a descriptor of its network namespace (duplicated, not kept)."""
        self._order({"op": "register", "workload": workload}, [netns])

    def unregister(self, workload: str) -> None:
        """Forget `workload`; later dials to it answer "workload is down". Unknown ids are fine."""
        self._order({"op": "unregister", "workload": workload})

    def listen(self, workload: str, port: int) -> socket.socket:
        """A listening TCP socket on 127.0.0.1:`port` inside the workload's namespace."""
        (fd,) = self._order({"op": "listen", "workload": workload, "port": port}, expect=1)
        return socket.socket(fileno=fd)

    def client(self, name: str, targets: dict[str, dict[str, Any]], end: socket.socket) -> None:
        """Serve `end` (SEQPACKET; the caller closes its copy) as client `name`.

        It may dial `targets` and nothing else: name → {"workload": id, "port": n}, or {"host": name
        or address, "port": n, "addresses": [CIDR, ...]} where `addresses` are the non-public
        networks that this target may resolve to. A second call for a name replaces the first.
        """
        self._order({"op": "client", "name": name, "targets": targets}, [end.fileno()])

    def allow(
        self, client: str, name: str, target: dict[str, Any], *, seconds: int, uses: int
    ) -> None:
        """One more target, as in `client()`, for so many seconds and dials; `unknown_client`."""
        limits = {"seconds": seconds, "uses": uses}
        self._order({"op": "allow", "client": client, "name": name, "target": target, **limits})

    def drop_client(self, name: str) -> None:
        """Close a client's socket. Unknown names are fine."""
        self._order({"op": "drop-client", "name": name})

    def close(self) -> None:
        """End the broker and reap it."""
        with suppress(OSError):  # already gone
            self.control.shutdown(socket.SHUT_RDWR)  # a copy of it may live in a forked child
        self.control.close()
        with suppress(ChildProcessError):  # reaped elsewhere
            os.waitpid(self.pid, 0)

    def _order(
        self, order: dict[str, Any], fds: list[int] | None = None, expect: int = 0
    ) -> list[int]:
        self._last += 1
        message = json.dumps({"id": self._last, **order}).encode("ascii")
        if len(message) > CONTROL_MAX:
            raise BrokerError("bad_request", f"{order['op']}: more than {CONTROL_MAX} bytes")
        try:
            socket.send_fds(self.control, [message], fds or [])
        except OSError as error:
            raise _gone(error) from error
        received = self._answer(self._last)
        if len(received) != expect:
            for fd in received:
                os.close(fd)
            raise BrokerError("broker_gone", "the broker answered with the wrong descriptors")
        return received

    def _answer(self, number: int) -> list[int]:
        try:
            raw, fds, _ = passing.receive(self.control, CONTROL_MAX, 1)
        except TimeoutError as error:
            # Stopped or hanging: it is as good as dead, and no order waits for it again.
            self.control.shutdown(socket.SHUT_RDWR)
            raise _gone(error) from error
        except OSError as error:
            raise _gone(error) from error
        if not raw:
            raise _gone(None)
        answer = json.loads(raw)
        if answer["id"] != number:
            raise BrokerError("broker_gone", "the broker answered another order")
        if "error" in answer:
            code, text = answer["error"]
            raise BrokerError(code, text)
        return fds


def _gone(error: OSError | None) -> BrokerError:
    reason = f": {error}" if error else ""
    return BrokerError(
        "broker_gone",
        f"the socket broker is gone or does not answer{reason}",
        "its last words are in the supervisor's log; workloads stop because none can be reached",
    )


def _become_broker(control: socket.socket, parent: int) -> None:
    """The broker process, in order. Never returns."""
    try:
        credentials.die_with_parent()
        if os.getppid() != parent:
            return
        os.setsid()  # Ctrl-C in the supervisor's terminal is not for us
        os.umask(0o077)
        _only_descriptor(control)
        with open("/proc/self/comm", "w", encoding="ascii") as file:  # noqa: PTH123 - few imports
            file.write("anchor-broker")

        from sandbox.broker import resolver, server

        raw = control.recv(CONTROL_MAX)
        if not raw:
            return
        order = json.loads(raw)
        uid, resolver_uid = order["uid"], order["resolver_uid"]
        programs = {who: lockdown.compile_filter(who) for who in ("broker", "resolver")}
        home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        spawner = None
        if resolver_uid is not None:
            keep_out = (control.fileno(), home)
            _pid, spawner = resolver.spawn(resolver_uid, programs["resolver"], keep_out)
        serving = server.Server(control, home, spawner)
        lockdown.limit(files=8192, memory=1 << 30, processes=0)
        last = lockdown.last_capability()
        lockdown.leave_files()
        lockdown.drop_to(uid, ("sys_admin",), last, parent, programs["broker"])
    except Exception as error:
        failure = {"id": 1, "error": ["broker_start", f"the socket broker cannot start: {error}"]}
        control.send(json.dumps(failure).encode("ascii"))
        return
    control.send(b'{"id": 1, "ok": true}')
    serving.run()


def _only_descriptor(control: socket.socket) -> None:
    """Close what the supervisor had open: all but stderr and the control socket."""
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    kept = control.fileno()
    if kept > 3:
        syscalls.close_range(3, kept - 1)
    syscalls.close_range(kept + 1)
