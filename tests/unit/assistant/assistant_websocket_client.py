"""A WebSocket client for tests, on a blocking socket."""

from __future__ import annotations

import json
import socket
from typing import Any, Self

from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, CloseConnection, Event, Pong, Request, TextMessage
from wsproto.events import RejectConnection as Reject


class Client:
    """Connects at once; `receive` returns the next parsed JSON object."""

    def __init__(self, port: int, path: str = "/", **headers: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=15)
        self.wire = WSConnection(ConnectionType.CLIENT)
        extra = [(n.replace("_", "-").encode(), v.encode()) for n, v in headers.items()]
        self.send(Request(host=f"127.0.0.1:{port}", target=path, extra_headers=extra))
        self.pending: list[Event] = []
        self.closed: CloseConnection | None = None
        first = self.event()
        assert isinstance(first, AcceptConnection), (first, isinstance(first, Reject))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, event: Event) -> None:
        self.socket.sendall(self.wire.send(event))

    def say(self, value: object) -> None:
        """Send `value` as JSON, or a str as it is."""
        self.send(TextMessage(data=value if isinstance(value, str) else json.dumps(value)))

    def event(self) -> Event:
        while not self.pending:
            data = self.socket.recv(65536)
            self.wire.receive_data(data or None)
            self.pending += list(self.wire.events())
        return self.pending.pop(0)

    def receive(self) -> dict[str, Any]:
        text = ""
        while True:
            event = self.event()
            if isinstance(event, TextMessage):
                text += event.data
                if event.message_finished:
                    value: dict[str, Any] = json.loads(text)
                    return value
            elif isinstance(event, CloseConnection):
                self.closed = event
                raise ConnectionError(f"closed with {event.code}")
            else:
                assert isinstance(event, Pong), event

    def until_end(self, identity: str | None = None) -> list[dict[str, Any]]:
        """Events up to the reply or error (of `identity`)."""
        events = []
        while True:
            value = self.receive()
            events.append(value)
            if value["kind"] in ("reply", "error") and identity in (None, value["id"]):
                return events
