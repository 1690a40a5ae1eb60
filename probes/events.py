"""Events of the watch: the one description of their bytes, for kernel, reader, supervisor, tests.

The loader hands the numbers of this file to the C source as macros, and the C source asserts the
sizes, so the two cannot drift apart.
"""

from __future__ import annotations

import struct
from collections import namedtuple  # not typing: the reader lives on 0.6 MB less
from enum import IntEnum, IntFlag

# Kernel → reader: time, cgroup, pid, tid, number, detail, kind, verdict, flags, zero, comm.
_RECORD = struct.Struct("<QQIIiiBBHI16s")
RECORD_SIZE = _RECORD.size
PATH_SIZE = 128
# Reader → supervisor: cgroup, kind, verdict, flags, number, pid, time. No strings for root.
_WIRE = struct.Struct("!QBBHiIQ")
WIRE_SIZE = _WIRE.size


class Kind(IntEnum):
    """What happened. Also says what `number` and `detail` of the event mean."""

    CALL = 1  # a system call no rule allows: number = call
    DENIED = 2  # a call answered with a watched errno: number = call, detail = errno
    SIGSYS = 3  # a seccomp kill or trap: number = call, detail = audit architecture
    EXEC = 4  # a program was started: path
    CGROUP = 5  # a process changed cgroup: pid = who was moved, detail = who moved it, path = to
    URING = 6  # an io_uring request: number = opcode
    LOSS = 7  # made by the reader, not by the kernel: number = events lost since the last one


class Verdict(IntEnum):
    """What the workload's rules ask for. STOP and KILL: SIGSTOP was tried in the kernel."""

    RECORD = 0
    ALERT = 1
    STOP = 2
    KILL = 3


class Flag(IntFlag):
    """Bits of `flags`. The first three say that a call number is not a plain x86-64 one."""

    COMPAT = 1  # int 0x80: the number is an i386 one
    X32 = 2
    RANGE = 4  # outside 0..511
    HIGH_RISK = 8
    SIGNALLED = 16  # the kernel took our SIGSTOP
    MOVED_IN = 32
    MOVED_OUT = 64


class Event(namedtuple("Event", "time cgroup pid tid number detail kind verdict flags comm path")):
    """One event. `time` in CLOCK_MONOTONIC nanoseconds, pids as the host sees them.

    `comm` and `path` are chosen by the workload: text to show, never to decide on.
    """

    __slots__ = ()
    time: int
    cgroup: int
    pid: int
    tid: int
    number: int
    detail: int
    kind: Kind
    verdict: Verdict
    flags: int
    comm: str
    path: str


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("utf-8", "replace")


def decode(data: bytes) -> Event | None:
    """One ring record as an Event; None when the bytes are none (wrong size, unknown kind)."""
    if len(data) not in (RECORD_SIZE, RECORD_SIZE + PATH_SIZE):
        return None
    time, cgroup, pid, tid, number, detail, kind, verdict, flags, zero, comm = _RECORD.unpack_from(
        data
    )
    if zero or not Kind.CALL <= kind <= Kind.URING or verdict > Verdict.KILL:
        return None
    path = _text(data[RECORD_SIZE:])
    return Event(
        time,
        cgroup,
        pid,
        tid,
        number,
        detail,
        Kind(kind),
        Verdict(verdict),
        flags,
        _text(comm),
        path,
    )


def encode(event: Event) -> bytes:
    """The kernel's bytes of `event`; tests and the canary speak the same language."""
    head = _RECORD.pack(
        event.time,
        event.cgroup,
        event.pid,
        event.tid,
        event.number,
        event.detail,
        event.kind,
        event.verdict,
        event.flags,
        0,
        event.comm.encode(),
    )
    return head + event.path.encode().ljust(PATH_SIZE, b"\0") if event.path else head


class Notice(namedtuple("Notice", "cgroup kind verdict flags number pid time")):
    """What the supervisor gets of an event: numbers only, so root parses no text."""

    __slots__ = ()
    cgroup: int
    kind: int
    verdict: int
    flags: int
    number: int
    pid: int
    time: int


def to_wire(event: Event) -> bytes:
    """The datagram for the supervisor."""
    return _WIRE.pack(
        event.cgroup,
        event.kind,
        event.verdict,
        event.flags,
        event.number,
        event.pid,
        event.time,
    )


def from_wire(data: bytes) -> Notice | None:
    """The supervisor's side; None when the datagram is not one of ours."""
    if len(data) != WIRE_SIZE:
        return None
    notice = Notice(*_WIRE.unpack(data))
    known = Kind.CALL <= notice.kind <= Kind.LOSS and notice.verdict <= Verdict.KILL
    return notice if known else None
