"""bpf(2), one function per command, each raising OSError with what it was about.

Attribute layouts: linux/bpf.h, union bpf_attr. Only the fields used here are laid out.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import NamedTuple

_NR_BPF = 321  # x86-64
(
    _MAP_CREATE,
    _MAP_LOOKUP,
    _MAP_UPDATE,
    _MAP_DELETE,
    _MAP_NEXT,
    _,
    _OBJ_PIN,
    _OBJ_GET,
) = range(8)
_OBJ_INFO, _RAW_TRACEPOINT_OPEN, _MAP_FREEZE = 15, 17, 22

RDONLY, WRONLY = 1 << 3, 1 << 4  # BPF_F_RDONLY, BPF_F_WRONLY: what this descriptor may do
NOEXIST = 1
ARRAY, HASH, RINGBUF = 2, 1, 27

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class MapInfo(NamedTuple):
    """What the kernel says of a map."""

    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    name: str


def _bpf(command: int, attr: bytes, about: str) -> int:
    buffer = ctypes.create_string_buffer(attr, len(attr))
    result: int = _libc.syscall(
        ctypes.c_long(_NR_BPF), ctypes.c_long(command), buffer, ctypes.c_long(len(attr))
    )
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), about)
    return result


def _address(buffer: ctypes.Array[ctypes.c_char]) -> int:
    return ctypes.addressof(buffer)


def create(kind: int, key_size: int, value_size: int, entries: int) -> int:
    """Make a map and return its descriptor."""
    attr = struct.pack("<IIIII", kind, key_size, value_size, entries, 0)
    return _bpf(_MAP_CREATE, attr, "BPF_MAP_CREATE")


def pin(fd: int, path: str) -> None:
    """Give a map or link a name on a bpffs: it then lives as long as the name."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    _bpf(_OBJ_PIN, struct.pack("<QII", _address(name), fd, 0), path)


def get(path: str, flags: int = 0) -> int:
    """Open a pinned object; `flags` is RDONLY or WRONLY for a map that may do only that."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    return _bpf(_OBJ_GET, struct.pack("<QII", _address(name), 0, flags), path)


def raw_tracepoint(name: str, program: int) -> int:
    """Attach a program to a raw tracepoint; the descriptor is a link that can be pinned."""
    text = ctypes.create_string_buffer(name.encode())
    return _bpf(_RAW_TRACEPOINT_OPEN, struct.pack("<QI4x", _address(text), program), name)


def lookup(fd: int, key: bytes, size: int) -> bytes | None:
    """The value at `key`, `size` bytes long; None when the map has none."""
    key_at = ctypes.create_string_buffer(key, len(key))
    value = ctypes.create_string_buffer(size)
    attr = struct.pack("<I4xQQQ", fd, _address(key_at), _address(value), 0)
    try:
        _bpf(_MAP_LOOKUP, attr, "BPF_MAP_LOOKUP_ELEM")
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    return value.raw


def update(fd: int, key: bytes, value: bytes, flags: int = 0) -> None:
    """Write `value` at `key`; NOEXIST refuses to replace."""
    key_at = ctypes.create_string_buffer(key, len(key))
    value_at = ctypes.create_string_buffer(value, len(value))
    attr = struct.pack("<I4xQQQ", fd, _address(key_at), _address(value_at), flags)
    _bpf(_MAP_UPDATE, attr, "BPF_MAP_UPDATE_ELEM")


def delete(fd: int, key: bytes) -> None:
    """Remove `key`; OSError ENOENT when it is not there."""
    key_at = ctypes.create_string_buffer(key, len(key))
    _bpf(_MAP_DELETE, struct.pack("<I4xQQQ", fd, _address(key_at), 0, 0), "BPF_MAP_DELETE_ELEM")


def next_key(fd: int, key: bytes | None, size: int) -> bytes | None:
    """The key after `key` (None: the first one); None at the end."""
    key_at = ctypes.create_string_buffer(key, len(key)) if key is not None else None
    following = ctypes.create_string_buffer(size)
    address = _address(key_at) if key_at is not None else 0
    try:
        _bpf(_MAP_NEXT, struct.pack("<I4xQQQ", fd, address, _address(following), 0), "next map key")
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    return following.raw


def freeze(fd: int) -> None:
    """From now on no descriptor can change the map from user space."""
    _bpf(_MAP_FREEZE, struct.pack("<I", fd), "BPF_MAP_FREEZE")


def map_info(fd: int) -> MapInfo:
    """Type, sizes and flags of a map."""
    info = ctypes.create_string_buffer(80)
    _bpf(_OBJ_INFO, struct.pack("<IIQ", fd, len(info), _address(info)), "BPF_OBJ_GET_INFO_BY_FD")
    kind, _, key, value, entries, flags, name = struct.unpack_from("<IIIIII16s", info.raw)
    return MapInfo(kind, key, value, entries, flags, name.split(b"\0", 1)[0].decode())
