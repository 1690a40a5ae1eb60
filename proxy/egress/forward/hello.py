"""The first message of a TLS client (RFC 8446, section 4.1.2), read for the name it asks for."""

from __future__ import annotations

SIZE_MAX = 16 * 1024  # key shares that resist quantum computers take two kilobytes
_HANDSHAKE, _CLIENT_HELLO = 22, 1
_SERVER_NAME, _ENCRYPTED_HELLO = 0, 0xFE0D
_RECORD = 5


class NotHello(Exception):
    """What arrived is no ClientHello that may pass; the message holds no data."""


def server_name(data: bytes) -> str | None:
    """Return the name (RFC 6066, section 3) in the ClientHello that `data` begins with.

    None: more bytes are needed. Raises NotHello when it is something else, names no host or two,
    is encrypted (ECH, which would hide another name), or exceeds SIZE_MAX.
    """
    message = _message(data)
    if message is None:
        if len(data) > SIZE_MAX:
            raise NotHello("the ClientHello is too large")
        return None
    try:
        return _name(_Reader(message))
    except IndexError:
        raise NotHello("the ClientHello is malformed") from None


def _message(data: bytes) -> bytes | None:
    """The handshake message, which may be cut into several records; None: not all there."""
    message, at = b"", 0
    while True:
        if data[at : at + 1] not in (b"", bytes([_HANDSHAKE])) or data[at + 1 : at + 2] not in (
            b"", b"\x03",
        ):  # fmt: skip
            raise NotHello("it does not begin with a TLS handshake")
        if len(data) < at + _RECORD:
            return None
        size = int.from_bytes(data[at + 3 : at + 5], "big")
        if not 0 < size <= 1 << 14:
            raise NotHello("a TLS record has an impossible size")
        message += data[at + _RECORD : at + _RECORD + size]
        if message[0:1] not in (b"", bytes([_CLIENT_HELLO])):
            raise NotHello("the first TLS message is no ClientHello")
        if len(message) >= 4:
            whole = 4 + int.from_bytes(message[1:4], "big")
            if whole > SIZE_MAX:
                raise NotHello("the ClientHello is too large")
            if len(message) > whole:
                raise NotHello("something follows the ClientHello")
            if len(message) == whole:
                return message[4:]
        if len(data) < at + _RECORD + size:
            return None
        at += _RECORD + size


def _name(hello: _Reader) -> str:
    hello.take(2 + 32)  # version and random
    hello.block(1)  # session
    hello.block(2)  # cipher suites
    hello.block(1)  # compression
    extensions = _Reader(hello.block(2))
    if hello.left:
        raise IndexError
    seen: set[int] = set()
    name = None
    while extensions.left:
        kind, body = extensions.number(2), extensions.block(2)
        if kind in seen:
            raise NotHello("an extension stands there twice")
        seen.add(kind)
        if kind == _ENCRYPTED_HELLO:
            raise NotHello("the ClientHello is encrypted (ECH)")
        if kind == _SERVER_NAME:
            name = _one_name(body)
    if name is None:
        raise NotHello("the ClientHello names no host (SNI)")
    return name


def _one_name(body: bytes) -> str:
    listed = _Reader(body)
    names = _Reader(listed.block(2))
    kind, name = names.number(1), names.block(2)
    if kind or names.left or listed.left:
        raise NotHello("the ClientHello does not name exactly one host")
    try:
        return name.decode("ascii").lower()
    except UnicodeDecodeError:
        raise NotHello("the host named in the ClientHello is not ASCII") from None


class _Reader:
    """Fields of known size, one after the other; IndexError past the end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, size: int) -> bytes:
        if size > self.left:
            raise IndexError
        self._at += size
        return self._data[self._at - size : self._at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def block(self, size: int) -> bytes:
        """A field with its length in `size` bytes in front."""
        return self.take(self.number(size))
