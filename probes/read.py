"""The reader: from the ring to the audit log and to the supervisor.

Runs without any capability. Descriptors: `ring`, `counters` (read-only), `audit`, `control`.
Nothing here blocks but one epoll: a supervisor or a log that does not keep up costs counted events,
never the reader. Imports are few on purpose, the process lives as long as the machine runs.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time

from . import layout
from .errors import ProbeError
from .events import RECORD_SIZE, Event, Flag, Kind, Verdict, decode, to_wire
from .launch import inherited, require
from .ring import CounterPage, Ring
from .syscalls import name

BATCH = 512  # events between two looks at the other descriptors
DATAGRAM_MAX = 4096
WORKLOADS_MAX = 4 * layout.SLOTS
TICK = 1.0

_ERRNO = {number: word for word, number in layout.DENIALS.items()}
_encode = json.JSONEncoder(ensure_ascii=True, separators=(", ", ": ")).encode


def record(event: Event, workload: str, wall: int) -> dict[str, object]:
    """The audit record of one event. `wall` is nanoseconds between CLOCK_MONOTONIC and UTC.

    `verdict` says what became of the call itself: "refused" where the kernel had refused it,
    "allowed" where it ran; `response` says what the workload's rules ask for.
    """
    refused = event.kind in (Kind.DENIED, Kind.SIGSYS)
    body: dict[str, object] = {
        "time": _utc(event.time + wall),
        "hop": "probe",
        "event": event.kind.name.lower(),
        "workload": workload,
        "verdict": "refused" if refused else "allowed",
        "reason": _reason(event),
        "response": event.verdict.name.lower(),
        "cgroup": event.cgroup,
        "pid": event.pid,
        "comm": event.comm,
    }
    if event.kind in (Kind.CALL, Kind.DENIED, Kind.SIGSYS):
        body["call"] = _call(event)
        body["number"] = event.number
    if event.kind == Kind.URING:
        body["opcode"] = event.number
    if event.kind == Kind.CGROUP:
        body["mover"] = event.detail
    if event.path:
        body["path"] = event.path
    if flags := [flag.name.lower() for flag in Flag if flag.name and event.flags & flag]:
        body["flags"] = flags
    return body


def _call(event: Event) -> str:
    """The call's name; of a foreign interface only the number, the names are other ones there."""
    if event.flags & Flag.COMPAT:
        return f"i386#{event.number}"
    if event.flags & Flag.X32:
        return f"x32#{event.number & 0x3FFFFFFF}"
    return name(event.number)


def _reason(event: Event) -> str:
    kind, flags = event.kind, event.flags
    if kind == Kind.CALL and flags & (Flag.COMPAT | Flag.X32 | Flag.RANGE):
        return "foreign call number"
    if kind == Kind.CALL:
        return "high-risk call" if flags & Flag.HIGH_RISK else "call outside the policy"
    if kind == Kind.DENIED:
        return f"answered {_ERRNO.get(event.detail, str(event.detail))}"
    if kind == Kind.CGROUP and flags & Flag.MOVED_OUT:
        return "moved out of its cgroup"
    if kind == Kind.CGROUP:
        return "moved into the cgroup" if flags & Flag.MOVED_IN else "moved within its cgroup"
    return {
        Kind.SIGSYS: "killed or trapped by seccomp",
        Kind.EXEC: "program started",
        Kind.URING: "io_uring request",
    }[kind]


def _utc(nanoseconds: int) -> str:
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{rest // 1000:06d}Z"


class Reader:
    """Names, counters and descriptors of one run."""

    def __init__(self, ring: Ring, counters: CounterPage, audit: int, control: int):
        self._ring = ring
        self._counters = counters
        self._audit = audit
        self._control = control
        self._names: dict[int, str] = {}
        # From nothing: what was lost before this reader ran (while the last one was down, say) is
        # told once more rather than not at all.
        self._last = [(0, 0, 0, 0)] * layout.SLOTS
        self._torn = False
        self.garbage = 0  # ring records and datagrams that were none of ours
        self.unwritten = 0  # audit lines the log did not take
        self.undelivered = 0  # events the supervisor did not take
        self._told = (0, 0, 0)

    def drain(self) -> None:
        """Hand out at most BATCH events."""
        wall = time.time_ns() - time.monotonic_ns()
        for data in self._ring.read(BATCH):
            event = decode(data)
            if event is None:
                self.garbage += 1
                continue
            # The supervisor first: it contains, the log only tells.
            self._send(to_wire(event))
            self._write(record(event, self._names.get(event.cgroup, ""), wall))

    def hear(self) -> bool:
        """Take what the supervisor has sent; False when it has gone."""
        for _ in range(WORKLOADS_MAX):
            try:
                data = os.read(self._control, DATAGRAM_MAX)  # one datagram, SOCK_SEQPACKET
            except BlockingIOError:
                return True
            except ConnectionError:
                return False
            if not data:
                return False
            if not self._learn(data):
                self.garbage += 1
        return True

    def _learn(self, data: bytes) -> bool:
        """One message: {"op": "workload", "cgroup", "id"} or {"op": "forget", "cgroup"}."""
        try:
            message = json.loads(data)
            verb, cgroup = message["op"], message["cgroup"]
            if type(cgroup) is not int:
                return False
            if verb == "forget":
                self._names.pop(cgroup, None)
                return True
            if verb != "workload" or type(message["id"]) is not str:
                return False
            if len(self._names) >= WORKLOADS_MAX and cgroup not in self._names:
                self._names.pop(next(iter(self._names)))  # the oldest: a restart has a new id
            self._names[cgroup] = message["id"][:128]
        except (ValueError, TypeError, KeyError, RecursionError):
            return False
        return True

    def tell_counters(self) -> None:
        """Write what the counters grew by since the last time; tell the supervisor of a loss."""
        now = time.time_ns()
        current = self._counters.read()
        for before, after in zip(self._last, current, strict=True):
            if before[2:] == after[2:]:
                continue
            cgroup, seen, suppressed, lost = after
            fresh = lost - before[3]
            if fresh > 0:
                self._send(to_wire(_loss(cgroup, min(fresh, 0x7FFFFFFF))))
            self._write(
                {
                    "time": _utc(now),
                    "hop": "probe",
                    "event": "counters",
                    "workload": self._names.get(cgroup, ""),
                    "verdict": "failed" if fresh > 0 else "allowed",
                    "reason": "events were lost" if fresh > 0 else "repeated events held back",
                    "cgroup": cgroup,
                    "seen": seen - before[1],
                    "suppressed": suppressed - before[2],
                    "lost": fresh,
                }
            )
        self._last = current
        mine = (self.garbage, self.unwritten, self.undelivered)
        if mine != self._told:
            self._told = mine
            self._write(
                {
                    "time": _utc(now),
                    "hop": "probe",
                    "event": "reader",
                    "workload": "service.probe-reader",
                    "verdict": "failed",
                    "reason": "records were dropped by the reader",
                    "garbage": self.garbage,
                    "unwritten": self.unwritten,
                    "undelivered": self.undelivered,
                }
            )

    def _send(self, datagram: bytes) -> None:
        try:
            os.write(self._control, datagram)
        except OSError:
            self.undelivered += 1

    def _write(self, body: dict[str, object]) -> None:
        # A line torn by a full disk is closed first, so that only itself is unreadable.
        line = (b"\n" if self._torn else b"") + _encode(body).encode("ascii") + b"\n"
        try:
            written = os.write(self._audit, line)
        except OSError:
            self.unwritten += 1
            return
        if written != len(line):
            self._torn = self._torn or written > 0
            self.unwritten += 1
        else:
            self._torn = False

    def run(self, wake: int) -> None:
        """Until `wake` is readable (a signal) or the supervisor is gone."""
        poll = select.epoll()
        control = self._control
        for fd in (self._ring.fd, control, wake):
            poll.register(fd, select.EPOLLIN)
        due = time.monotonic() + TICK
        while True:
            # A ring that is not empty is not waited for: its wake-up may have been the last event.
            wait = 0.0 if self._ring.fill else max(0.0, due - time.monotonic())
            ready = {fd for fd, _ in poll.poll(wait)}
            gone = control in ready and not self.hear()
            if gone or wake in ready:
                for _ in range(layout.RING_BYTES // (BATCH * RECORD_SIZE)):
                    self.drain()
                self.tell_counters()
                return
            self.drain()
            if time.monotonic() >= due:
                self.tell_counters()
                due = time.monotonic() + TICK


def _loss(cgroup: int, count: int) -> Event:
    now = time.monotonic_ns()
    return Event(now, cgroup, 0, 0, count, 0, Kind.LOSS, Verdict.ALERT, 0, "", "")


def main() -> int:
    """0 after SIGTERM or when the supervisor closed `control`; 2 when started wrongly."""
    try:
        handed = inherited()
        fds = [require(handed, word) for word in ("ring", "counters", "audit", "control")]
        ring = Ring(fds[0], layout.RING_BYTES)
        counters = CounterPage(fds[1], layout.SLOTS, layout.COUNTERS)
        os.set_blocking(fds[3], False)
    except (ProbeError, OSError) as error:
        os.write(2, f"probe reader: {error}\n".encode())
        return 2
    wake, alarm = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(alarm, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    Reader(ring, counters, fds[2], fds[3]).run(wake)
    return 0
