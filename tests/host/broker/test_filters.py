"""The broker's and the resolver's filters, tried: what they leave, what they take."""

from __future__ import annotations

import errno
import json
import mmap
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from sandbox import credentials, syscalls
from sandbox.broker import lockdown


def under(who: str, attempts: dict[str, Callable[[], object]]) -> dict[str, str]:
    """errno name of each attempt ("" where it worked) in a root process under that filter."""
    program = lockdown.compile_filter(who)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        found = {}
        try:
            credentials.no_new_privileges()
            syscalls.seccomp_load(program)
            for name, attempt in attempts.items():
                try:
                    attempt()
                    found[name] = ""
                except OSError as error:
                    found[name] = errno.errorcode[error.errno or 0]
            os.write(writer, json.dumps(found).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    answer: dict[str, str] = json.loads(os.read(reader, 65536))
    os.close(reader)
    return answer


def fork() -> None:
    if os.fork() == 0:
        os._exit(0)


NETNS = os.open("/proc/self/ns/net", os.O_RDONLY)
MNTNS = os.open("/proc/self/ns/mnt", os.O_RDONLY)

COMMON: dict[str, Callable[[], object]] = {
    "mount": lambda: syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE),
    "unshare": lambda: syscalls.unshare(syscalls.CLONE_NEWUTS),
    "exec": lambda: os.execv("/bin/true", ["true"]),
    "write a file": lambda: os.open("/dev/null", os.O_WRONLY),
    "kill": lambda: os.kill(os.getpid(), 0),
    "setuid": lambda: os.setuid(0),
    "chroot": lambda: os.chroot("/"),
    "packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
    "netlink": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
    "another filter": lambda: syscalls.seccomp_load(b"\x06\0\0\0\0\0\xff\x7f"),
    "tcp socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM),
}
BROKER = {
    **COMMON,
    "fork": fork,
    "make code": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC),
    "read a file": lambda: os.open("/dev/null", os.O_RDONLY),
    "enter a mount namespace": lambda: syscalls.setns(MNTNS, syscalls.CLONE_NEWNS),
    "enter any namespace": lambda: syscalls.setns(MNTNS, 0),
    "enter a network namespace": lambda: syscalls.setns(NETNS, syscalls.CLONE_NEWNET),
}
RESOLVER = {
    **COMMON,
    "enter a network namespace": lambda: syscalls.setns(NETNS, syscalls.CLONE_NEWNET),
    "fork": fork,
    "read a file": lambda: os.open("/etc/hostname", os.O_RDONLY),
}


@pytest.mark.parametrize(
    ("who", "attempts", "left"),
    [
        ("broker", BROKER, {"tcp socket", "enter a network namespace"}),
        ("resolver", RESOLVER, {"tcp socket", "fork", "read a file"}),
    ],
)
def test_filter_leaves_the_work_and_nothing_else(
    who: str, attempts: dict[str, Callable[[], object]], left: set[str]
) -> None:
    found = under(who, attempts)
    assert {name for name, error in found.items() if not error} == left
    assert {error for error in found.values() if error} <= {"ENOSYS", "EPERM"}


def test_the_same_attempts_work_without_the_filter() -> None:
    """Control: root may do these here, so it was the filter that refused them."""
    for name in ("write a file", "kill", "setuid", "packet socket", "netlink", "tcp socket"):
        COMMON[name]()
    BROKER["make code"]()
    assert Path("/bin/true").exists()
