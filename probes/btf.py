"""Offsets of kernel structure members, read from the running kernel's own BTF.

The headers that bcc compiles with may be of another release; offsets taken from them would be
wrong without a word. BTF is the kernel's own statement. Format: Documentation/bpf/btf.rst.
"""

from __future__ import annotations

import struct
from pathlib import Path

from .errors import ProbeError

VMLINUX = Path("/sys/kernel/btf/vmlinux")

_STRUCT, _UNION = 4, 5
_MODIFIERS = frozenset((8, 9, 10, 11, 18))  # typedef, volatile, const, restrict, type tag
# Bytes after the 12-byte head, by kind: (fixed, per entry).
_TAIL = {
    1: (4, 0), 3: (12, 0), 4: (0, 12), 5: (0, 12), 6: (0, 8),
    13: (0, 8), 14: (4, 0), 15: (0, 12), 17: (4, 0), 19: (0, 12),
}  # fmt: skip
_HEAD = struct.Struct("<III")


class Btf:
    """The structures of one kernel. Raises ProbeError `bad_btf` when the bytes are not BTF."""

    def __init__(self, data: bytes) -> None:
        try:
            magic, _, _, header, types, types_size, names, names_size = struct.unpack_from(
                "<HBBIIIII", data
            )
            if magic != 0xEB9F:
                raise ValueError("magic")
            self._types = data[header + types : header + types + types_size]
            self._names = data[header + names : header + names + names_size]
            self._at, self._by_name = self._index()
        except (struct.error, ValueError, KeyError, IndexError) as error:
            raise ProbeError(
                "bad_btf",
                f"The kernel's type information cannot be read ({type(error).__name__}).",
                "Report this kernel; the watch does not guess offsets.",
            ) from error

    @classmethod
    def running(cls, path: Path = VMLINUX) -> Btf:
        """BTF of the running kernel; ProbeError `no_btf` when it has none."""
        try:
            return cls(path.read_bytes())
        except OSError as error:
            raise ProbeError(
                "no_btf",
                f"{path} cannot be read: {error.strerror}.",
                "The kernel must be built with CONFIG_DEBUG_INFO_BTF, and the loader must see "
                "this file.",
                error.errno or 0,
            ) from error

    def _index(self) -> tuple[list[int], dict[str, int]]:
        at, by_name = [0], dict[str, int]()
        position, size = 0, len(self._types)
        while position < size:
            name, info, _ = _HEAD.unpack_from(self._types, position)
            kind, count = info >> 24 & 31, info & 0xFFFF
            if kind == _STRUCT and name:
                end = self._names.index(b"\0", name)
                by_name.setdefault(self._names[name:end].decode("ascii", "replace"), len(at))
            at.append(position)
            fixed, each = _TAIL.get(kind, (0, 0))
            position += 12 + fixed + each * count
        return at, by_name

    def _resolve(self, number: int) -> tuple[int, int]:
        """(kind, position) of a type behind its typedefs and qualifiers."""
        for _ in range(32):
            _, info, target = _HEAD.unpack_from(self._types, self._at[number])
            if info >> 24 & 31 not in _MODIFIERS:
                return info >> 24 & 31, self._at[number]
            number = target
        raise ValueError("typedef loop")

    def _find(self, position: int, wanted: bytes) -> int | None:
        """Bit offset of member `wanted`, looking through members without a name."""
        info: int = _HEAD.unpack_from(self._types, position)[1]
        for index in range(info & 0xFFFF):
            name: int
            bits: int
            name, target, bits = _HEAD.unpack_from(self._types, position + 12 + 12 * index)
            offset = bits & 0xFFFFFF if info >> 31 else bits
            if name and self._names.startswith(wanted + b"\0", name):
                return offset
            if not name:
                kind, inner = self._resolve(target)
                deeper = self._find(inner, wanted) if kind in (_STRUCT, _UNION) else None
                if deeper is not None:
                    return offset + deeper
        return None

    def offset(self, structure: str, member: str) -> int | None:
        """Byte offset of `member` in `struct structure`; None when this kernel has none."""
        number = self._by_name.get(structure)
        if number is None:
            return None
        bits = self._find(self._at[number], member.encode())
        return None if bits is None or bits % 8 else bits // 8
