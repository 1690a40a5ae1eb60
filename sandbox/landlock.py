"""Landlock: the last layer that still sees paths. One layer, every right of the running ABI.

Source: landlock(7) and the kernel's Documentation/userspace-api/landlock.rst. ABI 1 = 5.13,
2 = REFER, 3 = TRUNCATE, 4 = TCP, 5 = IOCTL_DEV, 6 = scopes. The PyPI binding has no network rules
and no scopes, hence this one.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct

from sandbox import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
_REFER, _TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_BIND_TCP, _CONNECT_TCP = 1, 2
_SCOPES = 3  # abstract Unix sockets, signals
_FILE_RIGHTS = EXECUTE | WRITE_FILE | READ_FILE | _TRUNCATE | IOCTL_DEV
# remove dir/file, make char/dir/reg/sock/fifo/block/sym: bits 4..12
_CHANGE_DIR = 0x1FF0
_MAKE_DEVICES = 1 << 6 | 1 << 11
_ABSTRACT = b"\0anchorhold-canary"


class Canary:
    """Acts that no ruleset of ours allows and nothing else forbids: tried once it is in force.

    /proc shows nothing of Landlock. `allowed`: the TCP ports that the plan may connect to.
    """

    def __init__(self, allowed: tuple[int, ...]) -> None:
        self._port = next(port for port in range(9, 9 + len(allowed) + 1) if port not in allowed)
        # Of our own network namespace, and outside the domain: made before it.
        self._outside = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._outside.bind(_ABSTRACT)
        self._outside.listen(1)

    def __enter__(self) -> Canary:
        return self

    def __exit__(self, *error: object) -> None:
        self._outside.close()

    def ask(self, abi: int) -> dict[str, str]:
        """Per kind "refused", or what happened instead; "unknown" where `abi` has no such kind."""
        _, ports, scopes = handled(abi)
        told = {"path": _outcome(os.listdir, "/", errno.EACCES), "tcp": "unknown"}
        if ports:
            told["tcp"] = _connect(socket.AF_INET, ("127.0.0.1", self._port), errno.EACCES)
        told["scope"] = _connect(socket.AF_UNIX, _ABSTRACT, errno.EPERM) if scopes else "unknown"
        return told


def _connect(family: int, address: object, refused: int) -> str:
    with socket.socket(family, socket.SOCK_STREAM) as line:
        return _outcome(line.connect, address, refused)


def _outcome(act: Callable[[Any], object], what: object, refused: int) -> str:
    try:
        act(what)
    except OSError as error:
        return "refused" if error.errno == refused else errno.errorcode.get(error.errno or 0, "?")
    return "allowed"


def handled(abi: int) -> tuple[int, int, int]:
    """(file rights, TCP rights, scopes) that the running ABI can take away."""
    rights = 0x1FFF
    rights |= _REFER if abi >= 2 else 0
    rights |= _TRUNCATE if abi >= 3 else 0
    rights |= IOCTL_DEV if abi >= 5 else 0
    return rights, _BIND_TCP | _CONNECT_TCP if abi >= 4 else 0, _SCOPES if abi >= 6 else 0


def rights_for(access: tuple[str, ...]) -> int:
    """The file rights behind the policy words read, write and exec."""
    rights = 0
    if "read" in access:
        rights |= READ_FILE | READ_DIR
    if "exec" in access:
        rights |= EXECUTE
    if "write" in access:
        rights |= WRITE_FILE | _TRUNCATE | _REFER | (_CHANGE_DIR & ~_MAKE_DEVICES)
    return rights


def restrict(
    abi: int,
    paths: list[tuple[str, int]],
    tcp_bind: tuple[int, ...],
    tcp_connect: tuple[int, ...],
) -> None:
    """Put the calling thread under one ruleset: `paths` are (path, rights) opened here and now.

    Call it after the root has been changed and no_new_privs is set. Raises OSError.
    """
    files, ports, scopes = handled(abi)
    attributes = struct.pack("=3Q", files, ports, scopes)[: 8 if abi < 4 else 16 if abi < 6 else 24]
    ruleset = syscalls.landlock_create(attributes)
    try:
        for path, rights in paths:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
            try:
                if not stat.S_ISDIR(os.fstat(fd).st_mode):
                    rights &= _FILE_RIGHTS
                if rights & files:
                    rule = struct.pack("=Qi", rights & files, fd)
                    syscalls.landlock_add(ruleset, 1, rule, path)
            finally:
                os.close(fd)
        if ports:
            for right, numbers in ((_BIND_TCP, tcp_bind), (_CONNECT_TCP, tcp_connect)):
                for port in numbers:
                    rule = struct.pack("=2Q", right, port)
                    syscalls.landlock_add(ruleset, 2, rule, f"port {port}")
        syscalls.landlock_restrict(ruleset)
    finally:
        os.close(ruleset)
