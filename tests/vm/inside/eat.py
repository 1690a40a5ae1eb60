"""eat.py BYTES [KIND]: hold that much memory of one kind, written to.

heap, tmpfs, memfd, shm (shared with children), pipe (full pipes), pages (page tables, with hardly
anything in them), sockets (messages that nobody reads). What cannot be had any more is an OSError.
"""

import ctypes
import fcntl
import mmap
import os
import resource
import socket
import sys
from typing import Any

STEP = 1 << 20
BLOCK = b"x" * STEP
amount = int(sys.argv[1])
held: list[Any] = []
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]


def heap() -> None:
    held.append(bytearray(BLOCK))


def tmpfs() -> None:
    if not held:
        held.append(open(f"/dev/shm/eaten-{os.getpid()}", "wb", buffering=0))  # noqa: PTH123, SIM115
    held[0].write(BLOCK)


def memfd() -> None:
    if not held:
        held.append(os.memfd_create("eaten"))
    os.write(held[0], BLOCK)


def shm() -> None:
    shared = mmap.mmap(-1, STEP)
    shared.write(BLOCK)
    held.append(shared)


def pipe() -> None:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, STEP)
    os.write(writing, BLOCK)
    held.append((reading, writing))


def pages() -> None:
    """256 page tables: one readable page in every 2 MiB, all of them the one page of zeros."""
    length = STEP // mmap.PAGESIZE * (2 << 20)
    noreserve = 0x4000
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | noreserve
    address = libc.mmap(None, length, mmap.PROT_READ, flags, -1, 0)
    if address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "mmap")
    libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(length), 15)  # no huge pages
    for offset in range(0, length, 2 << 20):
        ctypes.c_char.from_address(address + offset).value  # noqa: B018 - a read is a page table


def sockets() -> None:
    """Messages are counted with what the kernel keeps beside them: a good deal less than a step."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    held.append((ours, theirs))
    sent = 0
    try:
        while sent < STEP:
            sent += ours.send(BLOCK[:65536])
    except BlockingIOError:
        pass


KINDS = {one.__name__: one for one in (heap, tmpfs, memfd, shm, pipe, pages, sockets)}
kind = sys.argv[2] if len(sys.argv) > 2 else "heap"
if kind in ("pipe", "sockets"):
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
steps = amount // STEP * (8 if kind == "sockets" else 1)
for _ in range(steps):
    KINDS[kind]()
print("held", amount, flush=True)
