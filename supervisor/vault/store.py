"""The vault directory: one lock, one file, one way to replace it; a key file at level T0.

The lock is on the directory itself, so that a read-only mount can be locked too. A commit is
`.new` -> fsync -> rename -> fsync of the directory: a crash at any step leaves the old or the new
file, complete. A `.new` left behind is overwritten by the next commit and never read.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
import time
from collections.abc import Iterator

from .document import FILE_MAX
from .errors import Fault, VaultError

NAME = "vault.json"
_NEW = "vault.json.new"
_KEY_FILE = re.compile(r"vault\.[0-9a-f]{16}\.key")


PATIENCE = 3.0  # seconds; a verb takes less than one
_PAUSE = 0.02


@contextlib.contextmanager
def locked(directory: str, *, write: bool) -> Iterator[int]:
    """The directory's descriptor, locked for this process (shared unless `write`).

    Raises VAULT_BUSY if another process does not let go of it, VAULT_UNWRITABLE if it cannot be
    opened.
    """
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise VaultError(Fault.VAULT_UNWRITABLE, _reason(error)) from error
    try:
        until = time.monotonic() + PATIENCE
        while not _try_lock(fd, fcntl.LOCK_EX if write else fcntl.LOCK_SH):
            if time.monotonic() > until:
                raise VaultError(Fault.VAULT_BUSY)
            time.sleep(_PAUSE)
        yield fd
    finally:
        os.close(fd)


def lock_alone(directory: int) -> bool:
    """Make a shared lock exclusive if nobody else reads. On False no lock may be left at all."""
    return _try_lock(directory, fcntl.LOCK_EX)


def _try_lock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


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
    _write(directory, NAME, raw)


def _key_name(kid: str) -> str:
    return f"vault.{kid}.key"


def write_key(directory: int, kid: str, key: bytearray) -> None:
    """Write a key file beside the vault file that will name it. Raises VAULT_UNWRITABLE."""
    _write(directory, _key_name(kid), key)


def read_key(directory: int, kid: str, out: bytearray) -> None:
    """Fill `out` from the key file. Raises KEY_FILE_MISSING."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(_key_name(kid), flags, dir_fd=directory)
    except OSError as error:
        raise VaultError(Fault.KEY_FILE_MISSING, _reason(error)) from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o077:
            raise VaultError(Fault.KEY_FILE_MISSING, "not a regular file of mode 0600")
        # readv fills a buffer of ours, so no copy is left that nobody wipes.
        if status.st_size != len(out) or os.readv(fd, [out]) != len(out):
            raise VaultError(Fault.KEY_FILE_MISSING, "another size")
    finally:
        os.close(fd)


def remove_keys(directory: int, but: str | None) -> None:
    """Remove the key files that the vault file does not name any more. Raises VAULT_UNWRITABLE."""
    try:
        for name in os.listdir(directory):
            if _KEY_FILE.fullmatch(name) and (but is None or name != _key_name(but)):
                os.unlink(name, dir_fd=directory)
    except OSError as error:
        raise VaultError(Fault.VAULT_UNWRITABLE, f"a key file: {_reason(error)}") from error


def _write(directory: int, name: str, raw: bytes | bytearray) -> None:
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
        os.rename(_NEW, name, src_dir_fd=directory, dst_dir_fd=directory)
        os.fsync(directory)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(_NEW, dir_fd=directory)
        raise VaultError(Fault.VAULT_UNWRITABLE, _reason(error)) from error


def _reason(error: OSError) -> str:
    return os.strerror(error.errno or 0)
