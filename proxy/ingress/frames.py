"""WebSocket frame headers (RFC 6455 section 5.2), read without touching the payload."""

from __future__ import annotations

from ..errors import ProxyError

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
_KNOWN = frozenset({CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG})


class FrameError(ProxyError):
    """A frame that may not pass; `close` is the code of section 7.4.1 to close with."""

    code = "websocket_frame"

    def __init__(self, close: int, code: str, message: str) -> None:
        super().__init__(message)
        self.close = close
        self.code = code


class FrameMeter:
    """Follows the frames of one direction and measures messages, fragments added up.

    `masked`: what this direction must be (client to server: True). `message_max` bytes, or None.
    """

    def __init__(self, *, masked: bool, message_max: int | None) -> None:
        self._masked = masked
        self._max = message_max
        self._head = bytearray()
        self._left = 0
        self._message = 0
        self._open = False
        self.closed = False
        self.payload = 0

    @property
    def between_frames(self) -> bool:
        """Whether everything returned so far ends where a frame ends."""
        return self._left == 0

    def feed(self, data: bytes) -> tuple[bytes, FrameError | None]:
        """Return the bytes that may be sent on, and the error that follows them, if any.

        No byte of a refused frame is among them; a frame header is held back until it is whole.
        After an error the meter must not be fed again.
        """
        passed = bytearray()
        at = 0
        while at < len(data):
            if self._left:
                part = data[at : at + self._left]
                passed += part
                at += len(part)
                self._left -= len(part)
                self.payload += len(part)
                continue
            take = self._missing()
            self._head += data[at : at + take]
            at += take
            try:
                if not self._missing():
                    self._begin()
                    passed += self._head
                    self._head.clear()
            except FrameError as error:
                return bytes(passed), error
        return bytes(passed), None

    def _missing(self) -> int:
        """How many header bytes are still to come, as far as the ones here tell."""
        if len(self._head) < 2:
            return 2 - len(self._head)
        extended = {126: 2, 127: 8}.get(self._head[1] & 0x7F, 0)
        mask = 4 if self._head[1] & 0x80 else 0
        return 2 + extended + mask - len(self._head)

    def _begin(self) -> None:
        first, second = self._head[0], self._head[1]
        final, opcode, length = bool(first & 0x80), first & 0x0F, second & 0x7F
        size = length
        if length >= 126:
            size = int.from_bytes(self._head[2 : 4 if length == 126 else 10])
            if size < (126 if length == 126 else 65536) or size >> 63:
                raise _broken("a frame's length is not in its shortest form")
        if self.closed:
            raise _broken("a frame came after Close")
        if first & 0x70:
            raise _broken("a reserved bit is set, and no extension was agreed")
        if opcode not in _KNOWN:
            raise _broken("a frame has an unknown opcode")
        if bool(second & 0x80) is not self._masked:
            raise _broken("a frame's masking is wrong for its direction")
        if opcode >= CLOSE:
            if not final or length > 125:
                raise _broken("a control frame is fragmented or longer than 125 bytes")
            self.closed = opcode == CLOSE
        else:
            self._message_frame(final, opcode, size)
        self._left = size

    def _message_frame(self, final: bool, opcode: int, size: int) -> None:
        if self._open is not (opcode == CONTINUATION):
            raise _broken("a fragmented message is out of order")
        self._open = not final
        self._message = size if opcode != CONTINUATION else self._message + size
        if self._max is not None and self._message > self._max:
            text = f"a message has at most {self._max} bytes"
            raise FrameError(1009, "message_too_large", text)


def close_frame(code: int, reason: str, *, masked: bool) -> bytes:
    """A Close frame. The zero mask is allowed: the mask protects caches, and here are none."""
    payload = code.to_bytes(2) + reason.encode()[:123]
    head = bytes((0x80 | CLOSE, len(payload) | (0x80 if masked else 0)))
    return head + (bytes(4) if masked else b"") + payload


def _broken(why: str) -> FrameError:
    return FrameError(1002, "websocket_protocol", why)
