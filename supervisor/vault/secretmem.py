"""Memory that only processes holding its descriptor can see: memfd_secret(2), Linux 5.14.

The kernel takes the pages out of its direct map; /proc/PID/mem and ptrace cannot read them.
Pages count against RLIMIT_MEMLOCK of whoever maps them.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
from collections.abc import Iterator

from .errors import Fault, VaultError

_NR_MEMFD_SECRET = 447  # the same number on every architecture that has it


def _memfd_secret() -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(ctypes.c_long(_NR_MEMFD_SECRET), ctypes.c_uint(os.O_CLOEXEC))
    if fd < 0:
        raise VaultError(Fault.SECRET_MEMORY_MISSING, os.strerror(ctypes.get_errno()))
    return int(fd)


@contextlib.contextmanager
def secret_mapping(size: int, *, allow_plain: bool) -> Iterator[tuple[int, mmap.mmap]]:
    """A fresh descriptor of at least `size` bytes (whole pages) and a writable mapping of it.

    Both are closed at the end; what was sent to another process lives on. With `allow_plain` (the
    waiver secret-memory) a kernel without memfd_secret gives an ordinary memfd.
    Raises SECRET_MEMORY_MISSING.
    """
    length = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    plain = False
    try:
        fd = _memfd_secret()
    except VaultError:
        if not allow_plain:
            raise
        fd, plain = os.memfd_create("keys", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), True
    try:
        os.ftruncate(fd, length)
        if plain:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        try:
            mapping = mmap.mmap(fd, length)
        except OSError as error:
            detail = f"mapping {length} bytes: {os.strerror(error.errno or 0)}"
            raise VaultError(Fault.SECRET_MEMORY_MISSING, detail) from error
        with mapping:
            yield fd, mapping
    finally:
        os.close(fd)
