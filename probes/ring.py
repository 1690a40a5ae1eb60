"""The kernel's ring buffer through mmap: no system call per event, no ctypes.

Layout (kernel/bpf/ringbuf.c): a page with our position, a page with the kernel's, then the data,
mapped twice in a row so that no record is split. A record is an 8-byte head (length, with a bit for
"still being written" and one for "discarded") and its bytes, padded to 8.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator

_PAGE = mmap.PAGESIZE
_BUSY, _DISCARDED = 1 << 31, 1 << 30
_HEAD = 8
_LENGTH = struct.Struct("<I")


class Ring:
    """One consumer of the ring `fd` of `size` bytes. Raises OSError when it cannot be mapped.

    The consumer's page is the only one it can write; a wrong position there loses events of this
    reader and nothing else. Assumes x86-64: aligned 8-byte loads and stores are single and ordered.
    """

    def __init__(self, fd: int, size: int) -> None:
        self.fd = fd
        self._size = size
        self._ours = mmap.mmap(fd, _PAGE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._theirs = mmap.mmap(
            fd, _PAGE + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=_PAGE
        )
        self._consumed = memoryview(self._ours).cast("Q")
        self._produced = memoryview(self._theirs)[:_PAGE].cast("Q")

    @property
    def fill(self) -> int:
        """Bytes waiting."""
        return max(0, self._produced[0] - self._consumed[0])

    def read(self, limit: int) -> Iterator[bytes]:
        """Up to `limit` records, each given back to the kernel once the next one is asked for."""
        position = self._consumed[0]
        for _ in range(limit):
            if position >= self._produced[0]:
                return
            at = _PAGE + position % self._size
            (length,) = _LENGTH.unpack_from(self._theirs, at)
            if length & _BUSY:
                return
            size = length & ~_DISCARDED
            if size > self._size - _HEAD:
                # Not a length the kernel writes: skip to what it wrote last instead of guessing.
                self._consumed[0] = self._produced[0]
                return
            if not length & _DISCARDED:
                yield self._theirs[at + _HEAD : at + _HEAD + size]
            position += (_HEAD + size + 7) & ~7
            self._consumed[0] = position


class CounterPage:
    """The frozen counters array, mapped: totals of every slot without a system call."""

    def __init__(self, fd: int, slots: int, value: struct.Struct) -> None:
        size = -(-slots * value.size // _PAGE) * _PAGE
        self._slots = slots
        self._value = value
        self._map = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ)

    def read(self) -> list[tuple[int, int, int, int]]:
        """For every slot: cgroup id of its last event, and its totals seen, suppressed, lost."""
        size = self._value.size
        return [self._value.unpack_from(self._map, slot * size) for slot in range(self._slots)]
