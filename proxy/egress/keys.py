"""The API keys: read from secret memory at the moment of use, never kept anywhere else."""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
from collections.abc import Iterator

from proxy.errors import ProxyError

_COUNT, _LENGTH = struct.Struct("!I"), struct.Struct("!H")
_COUNT_MAX = 1024


class KeysUnusable(ProxyError):  # reads as a sentence where it is raised
    """The handed-over memory does not have the layout of a key table."""

    code = "keys_unusable"
    fix = "Unlock helper and proxy must come from the same release."


class KeyRing:
    """Named keys inside one memfd_secret(2) mapping; this object itself holds only offsets.

    Layout: count (u32), then per entry name length (u16), name, value length (u16), value; big
    endian. `value` gives a view into the mapping: copy it as late and as briefly as possible.
    """

    __slots__ = ("_map", "_sendable", "_spans", "why_locked")

    def __init__(self) -> None:
        self.why_locked = ""  # the vault's code, such as PCR_CHANGED, once it is known
        self._map: mmap.mmap | None = None
        self._spans: dict[str, tuple[int, int]] = {}
        self._sendable: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        return f"<KeyRing of {len(self._spans)}>"

    def __reduce__(self) -> str:
        raise TypeError("a key ring is never serialised")

    def load(self, fd: int) -> None:
        """Map `fd` and read the table of contents; the caller closes `fd`.

        The keys held before are overwritten and unmapped. On KeysUnusable they stay in use.
        """
        try:
            size = os.fstat(fd).st_size
            # memfd_secret(2) knows shared mappings only; writable for the day it is wiped.
            secret = mmap.mmap(fd, size, flags=mmap.MAP_SHARED)
        except (OSError, ValueError):
            raise KeysUnusable("The memory of the keys cannot be mapped.") from None
        try:
            spans = _contents(secret)
        except (struct.error, UnicodeDecodeError):
            secret.close()
            raise KeysUnusable("The key table is cut short or not UTF-8.") from None
        except KeysUnusable:
            secret.close()
            raise
        before, self._map, self._spans = self._map, secret, spans
        self._sendable = frozenset(
            name for name in spans if all(0x20 <= byte <= 0x7E for byte in self.value(name))
        )
        if before is not None:
            before[:] = bytes(len(before))
            with contextlib.suppress(BufferError):  # a view still lives: unmapped with it
                before.close()

    @property
    def locked(self) -> bool:
        """True until the first table of keys has arrived."""
        return self._map is None

    def __contains__(self, name: str) -> bool:
        return name in self._spans

    def __len__(self) -> int:
        return len(self._spans)

    def __iter__(self) -> Iterator[str]:
        return iter(self._spans)

    def sendable(self, name: str) -> bool:
        """Whether the key may stand in a header: printable ASCII."""
        return name in self._sendable

    def value(self, name: str) -> memoryview:
        """Return a view of the key called `name`; KeyError names it when it is not there."""
        start, end = self._spans[name]
        if self._map is None:
            raise KeyError(name)
        return memoryview(self._map)[start:end]


def _contents(secret: mmap.mmap) -> dict[str, tuple[int, int]]:
    (count,) = _COUNT.unpack_from(secret, 0)
    if count > _COUNT_MAX:
        raise KeysUnusable(f"The key table claims {count} entries.")
    spans: dict[str, tuple[int, int]] = {}
    at = _COUNT.size
    for _ in range(count):
        (length,) = _LENGTH.unpack_from(secret, at)
        at += _LENGTH.size
        name = str(memoryview(secret)[at : at + length], "utf-8")
        at += length
        (length,) = _LENGTH.unpack_from(secret, at)
        at += _LENGTH.size
        if at + length > len(secret):
            raise KeysUnusable("The key table is cut short.")
        if name in spans or not name or not length:
            raise KeysUnusable("A name in the key table is empty, without value or there twice.")
        spans[name] = (at, at + length)
        at += length
    return spans
