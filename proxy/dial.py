"""The client of the socket broker: the only way a proxy gets a connection.

Wire format (SOCK_SEQPACKET, one datagram each way per dial): request ``!IB`` id, op 1, then the
target in ASCII; reply ``!IB`` id, status, then an ASCII reason, or for status 0 one descriptor.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import os
import socket
import struct
from collections.abc import Callable

from . import passing
from .errors import DialError

__all__ = ["Broker", "DialError", "Status"]

_HEAD = struct.Struct("!IB")
_DIAL = 1
_TARGET_MAX = 200
_REPLY_MAX = 1024


class Status(enum.IntEnum):
    """Why a dial failed; up to 5 the broker's own byte, from 100 on decided on this side."""

    OK = 0
    NOT_ALLOWED = 1
    UNKNOWN = 2
    RESOLVE_FAILED = 3
    REFUSED_ADDRESS = 4
    CONNECT_FAILED = 5
    TIMED_OUT = 100
    BROKER_GONE = 101
    BAD_REPLY = 102


class Broker:
    """Dials many targets at once over one SEQPACKET socket, matching replies by id.

    Give it the connected socket (it is made non-blocking); use it in one event loop only.
    """

    def __init__(self, sock: socket.socket, *, timeout: float = 10.0) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._timeout = timeout
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: dict[int, asyncio.Future[socket.socket]] = {}
        self._next = 0
        self._gone = False
        self._lost: Callable[[], None] | None = None
        self._sending = asyncio.Lock()

    def watch(self, lost: Callable[[], None]) -> None:
        """Listen from now on, and call `lost` once if the broker goes away (not for `close`).

        No dial succeeds after that: the socket cannot be made anew, so the process must end and be
        started again with another. Call it in the running loop.
        """
        if self._gone:
            lost()
            return
        self._lost = lost
        self._listen()

    async def dial(self, target: str) -> socket.socket:
        """Return a connected non-blocking TCP socket to `target`; the caller closes it.

        `target` is ``upstream.<name>`` or ``workload.<id>:<port>``. Raises DialError when the
        broker refuses, is gone, or the connection is not there within the timeout (seconds).
        """
        name = target.encode("ascii", "replace")
        if not name or len(name) > _TARGET_MAX:
            raise DialError(Status.UNKNOWN, f"a target has 1 to {_TARGET_MAX} characters")
        try:
            async with asyncio.timeout(self._timeout):
                sock = await self._ask(name)
                try:
                    await self._connected(sock)
                except BaseException:
                    sock.close()
                    raise
                return sock
        except TimeoutError:
            reason = f"no connection within {self._timeout:g} s"
            raise DialError(Status.TIMED_OUT, reason) from None

    def close(self) -> None:
        """Stop listening to the broker; every dial under way fails."""
        self._lost = None
        self._lose("the broker connection was closed")

    async def _ask(self, name: bytes) -> socket.socket:
        self._listen()
        number = self._number()
        reply: asyncio.Future[socket.socket] = asyncio.get_running_loop().create_future()
        self._waiting[number] = reply
        try:
            await self._send(_HEAD.pack(number, _DIAL) + name)
            return await reply
        except BaseException:
            # The reply may have come in the same turn of the loop as the cancellation.
            if reply.done() and not reply.cancelled() and reply.exception() is None:
                reply.result().close()
            raise
        finally:
            del self._waiting[number]

    def _listen(self) -> None:
        if self._loop is None and not self._gone:
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self._sock.fileno(), self._readable)

    def _number(self) -> int:
        while True:
            self._next = (self._next + 1) & 0xFFFFFFFF
            if self._next not in self._waiting:
                return self._next

    async def _send(self, datagram: bytes) -> None:
        async with self._sending:
            while True:
                if self._gone:
                    self._sock.close()
                    raise DialError(Status.BROKER_GONE, "the broker is gone")
                try:
                    self._sock.send(datagram, socket.MSG_NOSIGNAL)
                    return
                except (BlockingIOError, InterruptedError):
                    await _writable(self._sock)
                except OSError as error:
                    self._lose("the broker is gone")
                    raise DialError(Status.BROKER_GONE, "the broker is gone") from error

    async def _connected(self, sock: socket.socket) -> None:
        # connect(2): after EINPROGRESS wait for writability, then SO_ERROR holds the outcome.
        await _writable(sock)
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise DialError(Status.CONNECT_FAILED, os.strerror(code))

    def _readable(self) -> None:
        try:
            data, handed, flags = passing.receive(self._sock, _REPLY_MAX, 1)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._lose("the broker is gone")
            return
        if not data:
            _close(handed)
            self._lose("the broker is gone")
            return
        waiting = None
        if len(data) >= _HEAD.size:
            number, status = _HEAD.unpack_from(data)
            waiting = self._waiting.get(number)
        if waiting is None or waiting.done():
            _close(handed)  # its dial was cancelled or timed out
            return
        if status != Status.OK:
            _close(handed)
            reason = data[_HEAD.size :].decode("ascii", "replace")
            waiting.set_exception(DialError(status, reason or "the broker gave no reason"))
        elif len(handed) != 1 or flags & socket.MSG_CTRUNC:
            _close(handed)
            waiting.set_exception(DialError(Status.BAD_REPLY, "the broker sent no socket"))
        else:
            sock = socket.socket(fileno=handed[0])
            sock.setblocking(False)
            waiting.set_result(sock)

    def _lose(self, reason: str) -> None:
        if self._gone:
            return
        self._gone = True
        if self._loop is not None:
            self._loop.remove_reader(self._sock.fileno())
        if self._sending.locked():
            # Someone waits to send: wake it, and let it close the socket it watches.
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
        else:
            self._sock.close()
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(DialError(Status.BROKER_GONE, reason))
        if self._lost is not None:
            self._lost()


async def _writable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_writer(sock.fileno(), wake)
    try:
        await ready
    finally:
        loop.remove_writer(sock.fileno())


def _close(descriptors: list[int]) -> None:
    for fd in descriptors:
        with contextlib.suppress(OSError):
            os.close(fd)
