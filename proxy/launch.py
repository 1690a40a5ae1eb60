"""What the launcher hands to a proxy: named descriptors and one sealed configuration file."""

from __future__ import annotations

import os
import re

from .errors import LaunchError

FIRST = 3
CONFIG_MAX = 4 * 1024 * 1024
_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")


def inherited() -> dict[str, int]:
    """Return the inherited descriptors by name, each made close-on-exec.

    The convention is sd_listen_fds(3): LISTEN_FDS=n descriptors from 3 on, LISTEN_FDNAMES=a:b:c.
    LISTEN_PID is not compared, because every service is pid 1 of its own pid namespace. Both
    variables are removed from the environment, so a second call finds nothing. Raises LaunchError.
    """
    count, names = os.environ.pop("LISTEN_FDS", ""), os.environ.pop("LISTEN_FDNAMES", "")
    os.environ.pop("LISTEN_PID", None)
    if not (count.isascii() and count.isdigit()):
        raise LaunchError("LISTEN_FDS is missing or is not a number.")
    found = names.split(":") if names else []
    if len(found) != int(count):
        raise LaunchError(f"LISTEN_FDS says {count}, LISTEN_FDNAMES names {len(found)}.")
    if len(set(found)) != len(found):
        raise LaunchError("LISTEN_FDNAMES names a descriptor twice.")
    handed = {}
    for fd, name in enumerate(found, FIRST):
        if not _NAME.fullmatch(name):
            raise LaunchError(f"Descriptor {fd} has a name outside [A-Za-z0-9._-].")
        try:
            os.set_inheritable(fd, False)
        except OSError as error:
            raise LaunchError(f"Descriptor {fd} ({name}) is not open.") from error
        handed[name] = fd
    return handed


def require(handed: dict[str, int], *names: str) -> tuple[int, ...]:
    """Return the descriptors of `names`, in that order; LaunchError names the ones missing."""
    missing = [name for name in names if name not in handed]
    if missing:
        raise LaunchError(f"Descriptor missing: {', '.join(missing)}.")
    return tuple(handed[name] for name in names)


def read_config(fd: int) -> bytes:
    """Read the whole configuration memfd (at most 4 MiB) from its start, and close it.

    pread(2) is used because the file offset is shared with whoever wrote it. Raises LaunchError.
    """
    try:
        parts, size = [], 0
        while part := os.pread(fd, 65536, size):
            parts.append(part)
            size += len(part)
            if size > CONFIG_MAX:
                raise LaunchError(f"The configuration is larger than {CONFIG_MAX} bytes.")
    except OSError as error:
        raise LaunchError(f"The configuration cannot be read: {error.strerror}.") from error
    finally:
        os.close(fd)
    return b"".join(parts)
