"""The vault directory: one lock, one file, one way to replace it.

The lock is on the directory itself, so that a read-only mount can be locked too. A commit is
`.new` -> fsync -> rename -> fsync of the directory: a crash at any step leaves the old or the new
file, complete. A `.new` left behind is overwritten by the next commit and never read.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator

from .document import FILE_MAX
from .errors import Fault, VaultError

NAME = "vault.json"
_NEW = "vault.json.new"


@contextlib.contextmanager
def locked(directory: str, *, write: bool) -> Iterator[int]:
    """The directory's descriptor, locked for this process (shared unless `write`).

    Raises VAULT_BUSY at once if another process holds it, VAULT_UNWRITABLE if it cannot be opened.
    """
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise VaultError(Fault.VAULT_UNWRITABLE, _reason(error)) from error
    try:
        try:
            fcntl.flock(fd, (fcntl.LOCK_EX if write else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise VaultError(Fault.VAULT_BUSY) from error
        yield fd
    finally:
        os.close(fd)


def exists(directory: int) -> bool:
    """Whether there is a vault file (or anything else in its place)."""
    with contextlib.suppress(FileNotFoundError):
        os.stat(NAME, dir_fd=directory, follow_symlinks=False)
        return True
    return False


def read(directory: int) -> bytes:
    """The file's bytes. Raises VAULT_ABSENT, TAMPERED (not a plain file, too large)."""
    try:
        fd = os.open(
            NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory
        )
    except FileNotFoundError as error:
        raise VaultError(Fault.VAULT_ABSENT) from error
    except OSError as error:
        fault = Fault.TAMPERED if error.errno == errno.ELOOP else Fault.VAULT_UNWRITABLE
        raise VaultError(fault, _reason(error)) from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise VaultError(Fault.TAMPERED, "not a regular file")
        raw = b""
        while len(raw) <= FILE_MAX and (part := os.read(fd, FILE_MAX + 1 - len(raw))):
            raw += part
    finally:
        os.close(fd)
    if len(raw) > FILE_MAX:
        raise VaultError(Fault.TAMPERED, f"more than {FILE_MAX} bytes")
    return raw


def commit(directory: int, raw: bytes) -> None:
    """Replace the vault file by `raw`, durably and all at once. Raises VAULT_UNWRITABLE."""
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_NEW, dir_fd=directory)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(_NEW, flags, 0o600, dir_fd=directory)
        with os.fdopen(fd, "wb", buffering=0) as file:
            rest = memoryview(raw)
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(fd)
        os.rename(_NEW, NAME, src_dir_fd=directory, dst_dir_fd=directory)
        os.fsync(directory)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(_NEW, dir_fd=directory)
        raise VaultError(Fault.VAULT_UNWRITABLE, _reason(error)) from error


def _reason(error: OSError) -> str:
    return os.strerror(error.errno or 0)
