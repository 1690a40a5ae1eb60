"""The audit log of one proxy: one JSON line per record, one write per line, or an exception.

Callers fail closed: a request whose record cannot be written is refused. A record is safe from the
death of the process at once, from a power cut when `settled` returns or `settle` has.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import time
from datetime import UTC, datetime

from .errors import AuditUnwritable

__all__ = ["AuditLog", "AuditUnwritable"]

_TOGETHER = 0.02  # seconds in which records gather that nobody waits for
_ORDER = ("time", "hop", "event", "request", "workload", "verdict", "reason", "rule")
# ASCII only: a line can then carry neither a raw newline nor a bidirectional override.
_encode = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(", ", ": ")).encode


class AuditLog:
    """Appends records to `fd`, which was opened with O_APPEND by the supervisor.

    O_APPEND makes each write(2) land whole at the end, also when several processes share the file.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._torn = False
        self._written = self._durable = 0  # records
        self._settling: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._second, self._stamp = 0, ""  # the second of the last record, and its text

    def write(self, **record: object) -> None:
        """Write one record; `time` (UTC, microseconds) is added when absent, None is left out.

        Keys come out in the order of the audit contract, then the hop's own keys as given.
        Raises AuditUnwritable when the line could not be written whole.
        """
        if "time" not in record:
            record["time"] = self._now()
        ordered = {key: record.pop(key, None) for key in _ORDER} | record
        try:
            line = _encode({key: value for key, value in ordered.items() if value is not None})
        except (TypeError, ValueError) as error:
            raise AuditUnwritable(f"The record is not JSON: {type(error).__name__}.") from None
        # A torn line left by a full disk is closed first, so that only itself is unreadable.
        data = (b"\n" if self._torn else b"") + line.encode("ascii") + b"\n"
        try:
            written = os.write(self._fd, data)
        except OSError as error:
            raise AuditUnwritable(f"The audit log refused a record: {error.strerror}.") from error
        if written != len(data):
            self._torn = self._torn or written > 0
            raise AuditUnwritable("The audit log took only a part of a record.")
        self._torn = False
        self._written += 1

    def settle(self) -> None:
        """Wait until every record written so far is on the disk. Raises AuditUnwritable."""
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            if error.errno != errno.EINVAL:  # a pipe: whoever reads it keeps it
                raise AuditUnwritable(f"The audit log failed: {error.strerror}.") from error

    async def settled(self) -> None:
        """The same without holding up the event loop; one fdatasync(2) serves all who wait."""
        wanted = self._written
        while self._durable < wanted:
            await asyncio.shield(self._settle_soon())

    def settle_soon(self) -> None:
        """Settle in a moment; nobody waits. A failure shows when somebody does, or writes."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_TOGETHER, self._settle_together)

    def _settle_together(self) -> None:
        self._timer = None
        settled = asyncio.ensure_future(self.settled())
        settled.add_done_callback(lambda done: done.cancelled() or done.exception())

    def _settle_soon(self) -> asyncio.Future[None]:
        if self._settling is None or self._settling.done():
            self._settling = asyncio.ensure_future(self._in_a_thread())
        return self._settling

    async def _in_a_thread(self) -> None:
        covered = self._written
        await asyncio.get_running_loop().run_in_executor(None, self.settle)
        self._durable = covered

    def _now(self) -> str:
        """The time in UTC to the microsecond; only once a second is there much to format."""
        second, micros = divmod(time.time_ns() // 1000, 1_000_000)
        if second != self._second:
            stamp = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
            self._second, self._stamp = second, stamp
        return f"{self._stamp}.{micros:06d}Z"
