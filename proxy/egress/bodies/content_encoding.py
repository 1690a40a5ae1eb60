"""Content encodings undone: gzip, deflate, br, zstd, one at a time, with the output counted.

RFC 9110, section 8.4. What a few kilobytes expand to is bounded in size and in ratio, and never
made whole before it was counted (zstd's own `max_output_size` is no bound).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Protocol

import brotli
import zstandard

ENCODINGS = ("identity", "gzip", "deflate", "br", "zstd")
RATIO_MAX = 200  # beyond the first megabyte
_FREE = 1024 * 1024
_STEP = 64 * 1024
_ZSTD_STEP = 64  # a block of a few bytes may say 128 KB
_ZSTD_WINDOW = 8 * 1024 * 1024


class EncodingWrong(ValueError):
    """The bytes are not encoded as said; the message holds none of them."""


class TooLarge(ValueError):
    """The bytes expand to more than the limit."""


class Decoder:
    """Decodes one body piece by piece: no more than `limit` bytes of output in all."""

    def __init__(self, encoding: str, limit: int) -> None:
        """`encoding` is one of ENCODINGS."""
        self._limit = limit
        self._in = self._out = 0
        self._steps = _STEPS[encoding]()

    def feed(self, data: bytes) -> bytes:
        """Return what `data` expands to. Raises EncodingWrong and TooLarge."""
        self._in += len(data)
        parts = []
        try:
            for part in self._steps.expand(data):
                self._out += len(part)
                if self._out > self._limit:
                    raise TooLarge(f"it expands to more than {self._limit} bytes")
                if self._out > _FREE and self._out > RATIO_MAX * self._in:
                    raise TooLarge(f"it expands more than {RATIO_MAX} times")
                parts.append(part)
        except (zlib.error, brotli.error, zstandard.ZstdError):
            raise EncodingWrong("it is not encoded as its head says") from None
        return b"".join(parts)

    def finish(self) -> None:
        """All of the body was fed. Raises EncodingWrong if it is cut short."""
        if not self._steps.complete():
            raise EncodingWrong("it ends before its encoding does")


class _Steps(Protocol):
    def expand(self, data: bytes) -> Iterator[bytes]:
        """Yield the output in bounded parts. Raises EncodingWrong for data after the end."""

    def complete(self) -> bool:
        """True at the end of the encoded data."""


class _Identity:
    def expand(self, data: bytes) -> Iterator[bytes]:
        yield data

    def complete(self) -> bool:
        return True


class _Zlib:
    def __init__(self, bits: int) -> None:
        self._inner = zlib.decompressobj(bits)

    def expand(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._inner.eof:
                raise EncodingWrong("something follows the encoded data")
            yield self._inner.decompress(data, _STEP)
            data = self._inner.unconsumed_tail or self._inner.unused_data

    def complete(self) -> bool:
        return self._inner.eof


class _Brotli:
    def __init__(self) -> None:
        self._inner = brotli.Decompressor()

    def expand(self, data: bytes) -> Iterator[bytes]:
        if data and self._inner.is_finished():
            raise EncodingWrong("something follows the encoded data")
        # can_accept_more_data() tells of input only: there may be output left when it is true.
        part = self._inner.process(data, output_buffer_limit=_STEP)
        while part:
            yield part
            part = self._inner.process(b"", output_buffer_limit=_STEP)

    def complete(self) -> bool:
        return bool(self._inner.is_finished())


class _Zstd:
    def __init__(self) -> None:
        decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
        self._inner = decompressor.decompressobj(write_size=_STEP)

    def expand(self, data: bytes) -> Iterator[bytes]:
        for at in range(0, len(data), _ZSTD_STEP):
            if self._inner.eof:
                raise EncodingWrong("something follows the encoded data")
            yield self._inner.decompress(data[at : at + _ZSTD_STEP])
        if self._inner.unused_data:
            raise EncodingWrong("something follows the encoded data")

    def complete(self) -> bool:
        return bool(self._inner.eof)


_STEPS: dict[str, Callable[[], _Steps]] = {
    "identity": _Identity,
    "gzip": lambda: _Zlib(31),
    "deflate": lambda: _Zlib(15),
    "br": _Brotli,
    "zstd": _Zstd,
}


def decode(data: bytes, encoding: str, limit: int) -> bytes:
    """Return the whole body decoded. Raises EncodingWrong and TooLarge."""
    decoder = Decoder(encoding, limit)
    decoded = decoder.feed(data)
    decoder.finish()
    return decoded
