"""The two framings of a stream: server-sent events, and one JSON object a line.

Event streams: WHATWG HTML, section 9.2.6. Of each event only the data goes on, in our own framing;
ids, comments and retry are dropped, and a name is ours, made from the data.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from .deltas import Event, StreamInvalid

EVENT_MAX = 1024 * 1024
DONE = b"data: [DONE]\n\n"
ALIVE = b":\n\n"  # a comment, while text is held back
_LINE_END = re.compile(rb"\r\n|\n|\r(?!\Z)")  # a CR at the very end may yet get its LF


class EventReader:
    """Feed it bytes as they arrive; it yields the data of each complete event."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._data: list[bytes] = []
        self._size = 0
        self._first = True

    def feed(self, chunk: bytes) -> Iterator[str]:
        """Yield the data of every event completed by `chunk`. Raises StreamInvalid."""
        self._buffer += chunk
        if self._first and len(self._buffer) >= 3:
            self._first = False
            if self._buffer.startswith(b"\xef\xbb\xbf"):
                del self._buffer[:3]
        if self._size + len(self._buffer) > EVENT_MAX + len(chunk):
            raise StreamInvalid(f"an event is larger than {EVENT_MAX} bytes")
        if b"\r" in self._buffer:
            lines = _LINE_END.split(bytes(self._buffer))
        elif b"\n" in chunk:
            lines = bytes(self._buffer).split(b"\n")
        else:
            return
        self._buffer = bytearray(lines.pop())
        for line in lines:
            if not line:
                if self._data:
                    yield self._event()
                continue
            name, _, value = line.partition(b":")
            if name == b"data":
                self._data.append(value.removeprefix(b" "))
                self._size += len(value)

    def close(self) -> Iterator[str]:
        """The stream has ended: yield an event that lacks only its blank line."""
        yield from self.feed(b"\n\n")

    def _event(self) -> str:
        data = b"\n".join(self._data)
        self._data, self._size = [], 0
        return _decoded(data)


class LineReader:
    """As EventReader, for one JSON object a line (application/x-ndjson)."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, chunk: bytes) -> Iterator[str]:
        """Yield every line completed by `chunk`. Raises StreamInvalid."""
        self._buffer += chunk
        if len(self._buffer) > EVENT_MAX + len(chunk):
            raise StreamInvalid(f"a line is longer than {EVENT_MAX} bytes")
        if b"\n" not in chunk:
            return
        *lines, rest = self._buffer.split(b"\n")
        self._buffer = rest
        for line in lines:
            if line.strip():
                yield _decoded(bytes(line))

    def close(self) -> Iterator[str]:
        """The stream has ended: yield a line that lacks only its end."""
        yield from self.feed(b"\n")


def frame_event(event: Event) -> bytes:
    """Return `event` as a server-sent event."""
    name = f"event: {event.name}\n" if event.name else ""
    return f"{name}data: {event.data}\n\n".encode("utf-8", "backslashreplace")  # \udXXX, as in JSON


def frame_line(event: Event) -> bytes:
    """Return `event` as a line."""
    return f"{event.data}\n".encode("utf-8", "backslashreplace")


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise StreamInvalid("an event is not UTF-8") from None
