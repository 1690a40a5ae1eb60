"""uvicorn's HTTP protocol with limits that it lacks: size and time of the head, connections."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

HEAD_MAX = 32 * 1024
HEAD_TIME = 10.0
CONNECTIONS_MAX = 256
_TOO_LARGE = b"HTTP/1.1 431 \r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class _Joined:
    """A transport that sends together what is written in one turn of the loop.

    uvicorn writes head and body apart; each write wakes the client, which costs more than the
    whole of the masking.
    """

    __slots__ = ("_loop", "_parts", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> None:
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def _flush(self) -> None:
        if self._parts:
            data = b"".join(self._parts)
            self._parts.clear()
            self._transport.write(data)


class EgressProtocol(HttpToolsProtocol):
    """One connection on a workload's socket."""

    def __init__(
        self, config: Config, server_state: ServerState, app_state: dict[str, Any]
    ) -> None:
        super().__init__(config, server_state, app_state)
        self._head = 0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Close at once what exceeds the number of connections a workload may have."""
        super().connection_made(cast(asyncio.Transport, _Joined(transport, self.loop)))
        if len(self.connections) > CONNECTIONS_MAX:
            transport.abort()
        else:
            self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timer."""
        self._head_done()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what arrives of a head before it is complete."""
        super().data_received(data)
        if self._timer is not None:
            self._head += len(data)
            if self._head > HEAD_MAX and not self.transport.is_closing():
                self.transport.write(_TOO_LARGE)
                self.transport.close()

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        if self._timer is None:
            self._wait_for_head()

    def on_headers_complete(self) -> None:
        """The head is complete; from here on the application's limits hold."""
        self._head_done()
        super().on_headers_complete()

    def _wait_for_head(self) -> None:
        self._head = 0
        self._timer = self.loop.call_later(HEAD_TIME, self.transport.close)

    def _head_done(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def config_for(app: Any) -> Config:
    """Return uvicorn's settings for one application: no logs, no lifespan, no WebSocket."""
    config = Config(
        app,
        http=EgressProtocol,
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=60,
    )
    config.load()
    return config
