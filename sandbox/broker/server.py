"""What runs inside the broker process: one epoll loop over control, clients and lookups.

Client wire format (SEQPACKET). Request `!IB` id, operation (1 = dial), then the target in ASCII.
Reply `!IB` id, status; status 0 carries one descriptor, any other an ASCII reason. The descriptor
is a non-blocking TCP socket whose connect is done or in progress: the client waits, never we.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import select
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sandbox import addresses, passing, syscalls
from sandbox.broker import resolver
from sandbox.broker.target import TARGET_MAX, Target, find, port, text

TYPE_CHECKING = False  # known to type checkers; the typing module would be 0.7 MB here
if TYPE_CHECKING:
    from typing import Any, NoReturn

HEADER = struct.Struct("!IB")
OP_DIAL = 1
OK, NOT_ALLOWED, UNKNOWN, RESOLVE_FAILED, REFUSED, CONNECT_FAILED = range(6)

PIN_TIME = 300.0  # seconds for which the answer for a name is kept
_PINS = 1024
_CONTROL_MAX = 65536
_TURN = 16  # requests of one client in one turn of the loop
_WAITING = 64  # lookups that one client may wait for
_LOOKUP_TIME = resolver.LIFETIME + 1.0
_NS_GET_NSTYPE = 0xB703  # ioctl_ns(2)
_PORT_MIN = 1024  # the broker has no CAP_NET_BIND_SERVICE, and no workload needs less


class _OrderError(Exception):
    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class _Client:
    def __init__(self, name: str, sock: socket.socket, targets: dict[str, Target]) -> None:
        self.name = name
        self.sock = sock
        self.targets = targets
        self.waiting = 0
        # Replies that wait for room. A client that is `blocked` is not read from.
        self.unsent: list[tuple[bytes, socket.socket | None]] = []
        self.blocked = False


class _Lookup:
    def __init__(self, host: str, sock: socket.socket) -> None:
        self.host = host
        self.sock = sock
        self.deadline = time.monotonic() + _LOOKUP_TIME
        self.waiters: list[tuple[_Client, int, Target]] = []


class _Pin:
    def __init__(self, found: list[tuple[int, bytes]]) -> None:
        self.found = found
        self.until = time.monotonic() + PIN_TIME
        self.turn = 0


class Server:
    """The broker's state. `home` is a descriptor of the host's network namespace."""

    def __init__(
        self, control: socket.socket, home: int, spawner: socket.socket | None = None
    ) -> None:
        self._control = control
        self._home = home
        self._spawner = spawner
        self._netns: dict[str, int] = {}
        self._clients: dict[str, _Client] = {}
        self._by_fd: dict[int, _Client | _Lookup] = {}
        self._lookups: dict[str, _Lookup] = {}
        self._pins: dict[str, _Pin] = {}
        self._epoll = select.epoll()
        self._epoll.register(control, select.EPOLLIN)
        if spawner:
            self._epoll.register(spawner, 0)  # hang-up alone: the spawner never writes

    def run(self) -> NoReturn:
        """Serve until the supervisor goes away. Never raises to the caller: the process ends."""
        while True:
            for fd, events in self._epoll.poll(self._patience(), 64):
                if fd == self._control.fileno():
                    self._on_control()
                elif self._spawner and fd == self._spawner.fileno():
                    os._exit(71)  # lost its resolver: gone loudly rather than half alive
                else:
                    owner = self._by_fd.get(fd)  # gone if an earlier event of this turn dropped it
                    if isinstance(owner, _Client):
                        self._on_client(owner, events)
                    elif owner:
                        self._on_lookup(owner)
            now = time.monotonic()
            for lookup in [x for x in self._lookups.values() if x.deadline <= now]:
                self._end_lookup(lookup, None)

    def _patience(self) -> float | None:
        if not self._lookups:
            return None
        return max(0.0, min(x.deadline for x in self._lookups.values()) - time.monotonic())

    # --- orders of the supervisor -------------------------------------------------------------

    def _on_control(self) -> None:
        raw, fds, _ = passing.receive(self._control, _CONTROL_MAX, 4)
        if not raw:
            os._exit(0)
        order = json.loads(raw)
        answer: dict[str, Any] = {"id": order["id"]}
        made: socket.socket | None = None
        try:
            made = self._obey(order, fds)
            answer["ok"] = True
        except _OrderError as error:
            answer["error"] = [error.code, str(error)]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            answer["error"] = ["bad_request", f"{order.get('op')}: {error}"]
        except OSError as error:
            answer["error"] = ["system", f"{order.get('op')}: {error}"]
        finally:
            for fd in fds:
                os.close(fd)
        socket.send_fds(
            self._control, [json.dumps(answer).encode("ascii")], [made.fileno()] if made else []
        )
        if made:
            made.close()

    def _obey(self, order: dict[str, Any], fds: list[int]) -> socket.socket | None:
        """One order. Descriptors in `fds` are closed by the caller: what is kept is duplicated."""
        match order["op"], len(fds):
            case "register", 1:
                self._register(text(order["workload"], "workload"), fds[0])
            case "unregister", 0:
                self._unregister(order["workload"])
            case "listen", 0:
                return self._listen(order["workload"], port(order["port"], _PORT_MIN))
            case "client", 1:
                self._add_client(text(order["name"], "name"), order["targets"], fds[0])
            case "allow", 0:
                self._allow(order["client"], order["name"], order["target"], order)
            case "drop-client", 0:
                client = self._clients.get(order["name"])
                if client:
                    self._drop(client)
            case operation, count:
                raise _OrderError("bad_request", f"unknown order {operation!r} with {count} fds")
        return None

    def _register(self, workload: str, netns: int) -> None:
        if fcntl.ioctl(netns, _NS_GET_NSTYPE) != syscalls.CLONE_NEWNET:
            raise _OrderError("bad_request", f"{workload}: the descriptor is no network namespace")
        theirs, ours = os.fstat(netns), os.fstat(self._home)
        if (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino):
            raise _OrderError("bad_request", f"{workload}: that is the host's network namespace")
        copy = fcntl.fcntl(netns, fcntl.F_DUPFD_CLOEXEC, 3)
        self._unregister(workload)
        self._netns[workload] = copy

    def _unregister(self, workload: str) -> None:
        netns = self._netns.pop(workload, None)
        if netns is not None:
            os.close(netns)

    def _listen(self, workload: str, port: int) -> socket.socket:
        netns = self._netns.get(workload)
        if netns is None:
            raise _OrderError("unknown_workload", f"{workload} is not registered")
        with self._inside(netns):
            made = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(("127.0.0.1", port))
            made.listen(128)
        except OSError as error:
            made.close()
            raise _OrderError("system", f"listen {workload}:{port}: {error}") from error
        return made

    def _add_client(self, name: str, raw: dict[str, dict[str, Any]], fd: int) -> None:
        targets = {target: Target(target, dict(body)) for target, body in raw.items()}
        sock = socket.socket(fileno=fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3))
        if (sock.family, sock.type) != (socket.AF_UNIX, socket.SOCK_SEQPACKET):
            sock.close()
            raise _OrderError("bad_request", f"client {name}: not a Unix SEQPACKET socket")
        sock.setblocking(False)
        old = self._clients.get(name)
        if old:
            self._drop(old)
        client = _Client(name, sock, targets)
        self._clients[name] = client
        self._by_fd[sock.fileno()] = client
        self._epoll.register(sock, select.EPOLLIN | select.EPOLLRDHUP)

    def _allow(self, name: str, target: str, body: dict[str, Any], order: dict[str, Any]) -> None:
        """One more target for a client, for a while and a few uses."""
        client = self._clients.get(name)
        if client is None:
            raise _OrderError("unknown_client", f"there is no client {name}")
        seconds, uses = order["seconds"], order["uses"]
        if type(seconds) is not int or type(uses) is not int or seconds < 1 or uses < 1:
            raise ValueError("seconds and uses are whole numbers from 1 on")
        made = Target(target, dict(body)).bound(time.monotonic() + seconds, uses)
        client.targets[target] = made

    # --- requests of clients: every byte is hostile ---------------------------------------------

    def _on_client(self, client: _Client, events: int) -> None:
        gone = bool(events & (select.EPOLLHUP | select.EPOLLRDHUP | select.EPOLLERR))
        if client.blocked and not gone:
            self._flush(client)
        for _ in range(_TURN):
            if client.blocked and not gone:
                return
            try:
                message, _control, flags, _address = client.sock.recvmsg(
                    HEADER.size + TARGET_MAX + 1
                )
            except BlockingIOError:
                return
            except OSError:
                self._drop(client)
                return
            if gone:
                # Nobody is left to take an answer; what it asked before it went is void.
                self._drop(client)
                return
            self._on_request(client, message, bool(flags & socket.MSG_TRUNC))
            if client.name not in self._clients:
                return

    def _on_request(self, client: _Client, message: bytes, too_long: bool) -> None:
        if len(message) < HEADER.size:
            self._reply(client, 0, NOT_ALLOWED, "malformed request: shorter than its header")
            return
        number, operation = HEADER.unpack_from(message)
        name = message[HEADER.size :]
        if operation != OP_DIAL:
            self._reply(client, number, NOT_ALLOWED, "unknown operation")
        elif too_long or len(name) > TARGET_MAX:
            self._reply(client, number, NOT_ALLOWED, f"target longer than {TARGET_MAX} bytes")
        elif not name or not name.isascii():
            self._reply(client, number, NOT_ALLOWED, "target is not ASCII text")
        elif (target := find(client.targets, name.decode("ascii"))) is None:
            self._reply(client, number, UNKNOWN, "unknown target")
        elif not target.spend(time.monotonic()):
            del client.targets[name.decode("ascii")]
            self._reply(client, number, NOT_ALLOWED, "what was allowed is used up")
        elif target.workload:
            self._dial_workload(client, number, target)
        else:
            self._dial_host(client, number, target)

    def _dial_workload(self, client: _Client, number: int, target: Target) -> None:
        netns = self._netns.get(target.workload)
        if netns is None:
            self._reply(client, number, UNKNOWN, "workload is down")
            return
        try:
            with self._inside(netns):
                made = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            self._reply(client, number, CONNECT_FAILED, _name(error.errno))
            return
        failure = made.connect_ex(("127.0.0.1", target.port))
        if failure in (0, errno.EINPROGRESS):
            self._send(client, HEADER.pack(number, OK), made)
        else:
            made.close()
            self._reply(client, number, CONNECT_FAILED, _name(failure))

    def _dial_host(self, client: _Client, number: int, target: Target) -> None:
        if target.literal:
            self._dial_addresses(client, number, target, [target.literal])
            return
        pin = self._pins.get(target.host)
        if pin and pin.until > time.monotonic():
            pin.turn += 1
            first = pin.turn % len(pin.found)
            self._dial_addresses(client, number, target, pin.found[first:] + pin.found[:first])
            return
        if client.waiting >= _WAITING:
            self._reply(client, number, NOT_ALLOWED, "too many lookups are waiting")
            return
        lookup = self._lookups.get(target.host) or self._start_lookup(target.host)
        if lookup is None:
            self._reply(client, number, RESOLVE_FAILED, "no resolver")
            return
        client.waiting += 1
        lookup.waiters.append((client, number, target))

    def _dial_addresses(
        self, client: _Client, number: int, target: Target, found: list[tuple[int, bytes]]
    ) -> None:
        """Start a connect to the first address that is allowed and takes it."""
        status, reason = RESOLVE_FAILED, "the name has no address"
        for family, packed in found:
            address = socket.inet_ntop(family, packed)
            why = addresses.refusal(family, packed, target.allowed)
            if why:
                if status != CONNECT_FAILED:
                    status, reason = REFUSED, f"{address} is {why}"
                continue
            try:
                made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            except OSError as error:  # no IPv6 here, or no descriptor left
                status, reason = CONNECT_FAILED, _name(error.errno)
                continue
            failure = made.connect_ex((address, target.port))
            if failure in (0, errno.EINPROGRESS):
                self._send(client, HEADER.pack(number, OK), made)
                return
            made.close()
            status, reason = CONNECT_FAILED, _name(failure)
        self._reply(client, number, status, reason)

    # --- lookups ---------------------------------------------------------------------------------

    def _start_lookup(self, host: str) -> _Lookup | None:
        if self._spawner is None:
            return None
        try:
            lookup = _Lookup(host, resolver.ask(self._spawner, host))
        except OSError:
            return None
        self._lookups[host] = lookup
        self._by_fd[lookup.sock.fileno()] = lookup
        self._epoll.register(lookup.sock, select.EPOLLIN)
        return lookup

    def _on_lookup(self, lookup: _Lookup) -> None:
        try:
            found = resolver.unpack(lookup.sock.recv(resolver.ANSWER_MAX + 1))
        except (OSError, ValueError):
            found = None
        self._end_lookup(lookup, found)

    def _end_lookup(self, lookup: _Lookup, found: list[tuple[int, bytes]] | None) -> None:
        self._epoll.unregister(lookup.sock)
        del self._by_fd[lookup.sock.fileno()], self._lookups[lookup.host]
        lookup.sock.close()
        if found:
            if len(self._pins) >= _PINS:  # a client may name many hosts below one domain
                del self._pins[next(iter(self._pins))]
            self._pins[lookup.host] = _Pin(found)
        for client, number, target in lookup.waiters:
            client.waiting -= 1
            if self._clients.get(client.name) is not client:
                continue
            if found is None:
                self._reply(client, number, RESOLVE_FAILED, "the lookup failed or took too long")
            else:
                self._dial_addresses(client, number, target, found)

    # --- answers ---------------------------------------------------------------------------------

    def _reply(self, client: _Client, number: int, status: int, reason: str) -> None:
        self._send(client, HEADER.pack(number, status) + reason.encode("ascii", "replace"), None)

    def _send(self, client: _Client, message: bytes, made: socket.socket | None) -> None:
        client.unsent.append((message, made))
        if not client.blocked:
            self._flush(client)

    def _flush(self, client: _Client) -> None:
        while client.unsent:
            message, made = client.unsent[0]
            try:
                socket.send_fds(
                    client.sock, [message], [made.fileno()] if made else [], socket.MSG_NOSIGNAL
                )
            except BlockingIOError:
                if not client.blocked:
                    client.blocked = True
                    self._epoll.modify(client.sock, select.EPOLLOUT | select.EPOLLRDHUP)
                return
            except OSError:
                self._drop(client)
                return
            client.unsent.pop(0)
            if made:
                made.close()
        if client.blocked:
            client.blocked = False
            self._epoll.modify(client.sock, select.EPOLLIN | select.EPOLLRDHUP)

    def _drop(self, client: _Client) -> None:
        self._epoll.unregister(client.sock)
        del self._by_fd[client.sock.fileno()], self._clients[client.name]
        client.sock.close()
        for _message, made in client.unsent:
            if made:
                made.close()
        client.unsent.clear()

    @contextmanager
    def _inside(self, netns: int) -> Iterator[None]:
        """Be in another network namespace for the body; back in ours or dead."""
        syscalls.setns(netns, syscalls.CLONE_NEWNET)
        try:
            yield
        finally:
            try:
                syscalls.setns(self._home, syscalls.CLONE_NEWNET)
            except OSError:
                os._exit(72)  # one more socket made here would be in the wrong namespace


def _name(code: int | None) -> str:
    return errno.errorcode.get(code or 0, "unknown error")
