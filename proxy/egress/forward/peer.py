"""Reading an HTTP/1.1 peer event by event."""

from __future__ import annotations

import asyncio
from typing import Any

import h11

_READ = 64 * 1024


async def next_event(connection: h11.Connection, reader: asyncio.StreamReader) -> Any:
    """Return the next event of the peer. Raises h11.RemoteProtocolError."""
    while (event := connection.next_event()) is h11.NEED_DATA:
        connection.receive_data(await reader.read(_READ))
    return event
