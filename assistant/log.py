"""One JSON line per event on stdout: names, sizes and codes, never content."""

from __future__ import annotations

import os
import stat
import time

import msgspec

_lost = 0


def line(event: str, **fields: str | int | float | bool) -> None:
    """Write one line; when the pipe is full the line is dropped and counted, never waited for.

    The next line that gets through carries the count as `lost`. Callers pass identifiers, sizes and
    error codes only.
    """
    global _lost
    record: dict[str, object] = {"time": _now(), "event": event, **fields}
    if _lost:
        record["lost"] = _lost
    try:
        os.write(1, msgspec.json.encode(record) + b"\n")  # <= PIPE_BUF, so all or nothing: pipe(7)
        _lost = 0
    except OSError:
        _lost += 1


def never_wait() -> None:
    """Make stdout non-blocking if it is a pipe: a stuck reader must not stop the program."""
    try:
        if stat.S_ISFIFO(os.fstat(1).st_mode):
            os.set_blocking(1, False)
    except OSError:
        return


def _now() -> str:
    now = time.time_ns()
    return (
        f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now // 10**9))}.{now // 1000 % 10**6:06}Z"
    )
