"""CONNECT (RFC 9110, section 9.3.6): bytes both ways, once the name in the handshake is right."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from .hello import SIZE_MAX, NotHello, server_name

HELLO_TIME = 10.0
IDLE = 300.0  # seconds in which nothing moves either way
BYTES_MAX = 4 << 30  # each way
ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"
_READ = 64 * 1024


class TunnelRefused(Exception):
    """The tunnel was closed by us; `reason` is a code for the record."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(detail or reason)
        self.reason = reason


class Tunnel:
    """One tunnel from a workload's connection to `upstream`, a connected socket, for `host`."""

    def __init__(
        self,
        host: str,
        upstream: socket.socket,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        idle: float = IDLE,
    ) -> None:
        self.sent = self.received = 0  # bytes to and from the upstream
        self._host = host
        self._upstream = upstream
        self._reader, self._writer = reader, writer
        self._idle = idle

    async def run(self, early: bytes) -> None:
        """Answer the CONNECT, then carry bytes until both ends are done.

        `early` is what came behind the request. Not one byte goes to the upstream before the whole
        ClientHello is there and names `host`. Raises TunnelRefused, OSError.
        """
        self._writer.write(ESTABLISHED)
        try:
            hello = await self._hello(early)
        except BaseException:
            self._upstream.close()
            raise
        reader, writer = await asyncio.open_connection(sock=self._upstream)
        try:
            await self._carry(hello, reader, writer)
        finally:
            writer.close()

    async def _hello(self, data: bytes) -> bytes:
        try:
            async with asyncio.timeout(HELLO_TIME):
                while (name := server_name(data)) is None:
                    more = await self._reader.read(SIZE_MAX)
                    if not more:
                        raise TunnelRefused("client_gone")
                    data += more
        except NotHello as error:
            raise TunnelRefused("handshake_refused", str(error)) from None
        except TimeoutError:
            raise TunnelRefused("handshake_refused", "no ClientHello came") from None
        if name != self._host:
            raise TunnelRefused("sni_mismatch", "the ClientHello names another host")
        return data

    async def _carry(
        self, hello: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        loop = asyncio.get_running_loop()
        writer.write(hello)
        self.sent = len(hello)

        def there(count: int) -> int:
            idle.reschedule(loop.time() + self._idle)
            self.sent += count
            return self.sent

        def back(count: int) -> int:
            idle.reschedule(loop.time() + self._idle)
            self.received += count
            return self.received

        try:
            async with asyncio.timeout(self._idle) as idle, asyncio.TaskGroup() as both:
                both.create_task(_pump(self._reader, writer, there))
                both.create_task(_pump(reader, self._writer, back))
        except TimeoutError:
            raise TunnelRefused("idle") from None
        except ExceptionGroup as group:
            raise group.exceptions[0] from None


async def _pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, count: Callable[[int], int]
) -> None:
    while data := await reader.read(_READ):
        if count(len(data)) > BYTES_MAX:
            raise TunnelRefused("too_many_bytes")
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()
