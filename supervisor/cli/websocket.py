"""A small WebSocket client (RFC 6455), standard library only. Run it unprivileged."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import socket
import struct
import time

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_HEAD_MAX, _BODY_MAX, _MESSAGE_MAX = 16 << 10, 64 << 10, 8 << 20
_CONTINUATION, _TEXT, _CLOSE, _PING, _PONG = 0, 1, 8, 9, 10


class WebSocketError(Exception):
    """The other side broke the protocol or went away."""


class Closed(WebSocketError):
    """The other side closed the connection with `code` (RFC 6455, 7.4)."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"closed with code {code}: {reason}")
        self.code = code


class HandshakeRefused(WebSocketError):
    """The server answered the upgrade with `status` and `body`."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"status {status}")
        self.status = status
        self.body = body


class WebSocket:
    """An open connection; text messages only. `wait` bounds the whole conversation, in seconds."""

    def __init__(self, host: str, port: int, path: str, token: str, wait: float) -> None:
        self._end = time.monotonic() + wait
        self._socket = socket.create_connection((host, port), wait)
        self._file = self._socket.makefile("rb")
        try:
            self._shake_hands(f"[{host}]:{port}" if ":" in host else f"{host}:{port}", path, token)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> WebSocket:
        return self

    def __exit__(self, *_error: object) -> None:
        with contextlib.suppress(OSError), self._socket:  # the other side may have closed first
            self._frame(_CLOSE, struct.pack("!H", 1000))

    def send(self, text: str) -> None:
        """Send one message."""
        self._frame(_TEXT, text.encode())

    def receive(self) -> str:
        """The next message. WebSocketError when the other side closes or breaks the protocol."""
        message, kind = b"", None
        while True:
            opcode, final, payload = self._next()
            if opcode == _PING:
                self._frame(_PONG, payload)
            elif opcode == _CLOSE:
                code = struct.unpack("!H", payload[:2])[0] if len(payload) >= 2 else 1005
                raise Closed(code, payload[2:].decode("utf-8", "replace"))
            elif opcode == (_TEXT if kind is None else _CONTINUATION):
                kind = _TEXT
                message += payload
                if len(message) > _MESSAGE_MAX:
                    raise WebSocketError("message too long")
                if final:
                    return message.decode("utf-8", "replace")
            elif opcode != _PONG:
                raise WebSocketError(f"unexpected frame {opcode}")

    def _shake_hands(self, host: str, path: str, token: str) -> None:
        key = base64.b64encode(os.urandom(16))
        self._socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key.decode()}\r\n"
            f"Authorization: Bearer {token}\r\n\r\n".encode("ascii")
        )
        lines: list[str] = []
        while (line := self._file.readline(_HEAD_MAX)).rstrip(b"\r\n"):
            lines.append(line.decode("latin-1").rstrip("\r\n"))
            if sum(map(len, lines)) > _HEAD_MAX:
                raise WebSocketError("header too long")
        words = lines[0].split() if lines else []
        if len(words) < 2 or not words[0].startswith("HTTP/1.") or not words[1].isdecimal():
            raise WebSocketError("no HTTP answer")
        fields = {n.strip().lower(): v.strip() for n, _, v in (x.partition(":") for x in lines[1:])}
        if words[1] != "101":
            length = fields.get("content-length", "")
            body = self._file.read(min(int(length), _BODY_MAX)) if length.isdecimal() else b""
            raise HandshakeRefused(int(words[1]), body)
        # SHA-1 proves that the server speaks WebSocket; it protects nothing (RFC 6455, 1.3).
        proof = base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())
        if fields.get("sec-websocket-accept") != proof.decode():
            raise WebSocketError("the handshake was answered by something else")

    def _next(self) -> tuple[int, bool, bytes]:
        first, second = self._exactly(2)
        length = second & 0x7F
        if first & 0x70 or second & 0x80:
            raise WebSocketError("reserved bits or a masked server frame")
        if length >= 126:
            size, form = (2, "!H") if length == 126 else (8, "!Q")
            length = struct.unpack(form, self._exactly(size))[0]
        if length > _MESSAGE_MAX:
            raise WebSocketError("frame too long")
        return first & 0x0F, bool(first & 0x80), self._exactly(length)

    def _exactly(self, count: int) -> bytes:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)
        data = self._file.read(count)
        if len(data) < count:
            raise WebSocketError("the other side went away")
        return data

    def _frame(self, opcode: int, payload: bytes) -> None:
        size = len(payload)
        head = bytes([0x80 | opcode])
        if size < 126:
            head += bytes([0x80 | size])
        else:
            head += (
                struct.pack("!BH", 0xFE, size) if size < 65536 else struct.pack("!BQ", 0xFF, size)
            )
        mask = os.urandom(4)
        repeated = (mask * (size // 4 + 1))[:size]
        masked = int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")
        self._socket.sendall(head + mask + masked.to_bytes(size, "big"))
