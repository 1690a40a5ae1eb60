"""One HTTP/1.1 connection: a stream pair and its h11 state machine, with time limits."""

from __future__ import annotations

import asyncio
import contextlib

import h11

READ = 65536


class Peer:
    """The client's or the adapter's side. `http` does the parsing, this class the input/output.

    Read errors and EOF look alike: the peer left. So does a peer that closes only its sending half.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        http: h11.Connection,
        write_timeout: float,
    ) -> None:
        self.http = http
        self.gone = False
        self._reader = reader
        self._writer = writer
        self._write_timeout = write_timeout

    async def read(self) -> bytes:
        """The next bytes; empty (and `gone`) when the peer has closed."""
        try:
            data = await self._reader.read(READ)
        except OSError:
            data = b""
        self.gone = self.gone or not data
        return data

    async def event(self) -> object:
        """The next h11 event. Raises h11.RemoteProtocolError for bytes that are not HTTP."""
        while True:
            event = self.http.next_event()
            if event is not h11.NEED_DATA:
                return event
            self.http.receive_data(await self.read())

    async def send(self, event: h11.Event) -> None:
        """Send one event, waiting while the peer takes no more (backpressure)."""
        data = self.http.send(event)
        if data:
            await self.write(data)

    async def write(self, data: bytes) -> None:
        """Send bytes as they are. Raises OSError when the peer left, or took none for too long."""
        self._writer.write(data)
        async with asyncio.timeout(self._write_timeout):
            await self._writer.drain()

    async def linger(self, seconds: float = 0.5, limit: int = 1 << 20) -> None:
        """Finish sending, then read and drop what still comes, so that no RST eats the answer."""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(seconds):
                await self._writer.drain()
                if self._writer.can_write_eof():
                    self._writer.write_eof()
                while limit > 0 and (data := await self._reader.read(READ)):
                    limit -= len(data)

    async def finish(self) -> None:
        """Close after everything written has been sent, within a second."""
        self._writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(1.0):
                await self._writer.wait_closed()

    def abort(self) -> None:
        """Drop the connection now, so that the peer cannot take a cut answer for a whole one."""
        self._writer.transport.abort()
