"""The audit log of one proxy: one JSON line per record, one write per line, or an exception.

Callers fail closed: a request whose record cannot be written is refused.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime

from .errors import AuditUnwritable

__all__ = ["AuditLog", "AuditUnwritable"]

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

    def write(self, **record: object) -> None:
        """Write one record; `time` (UTC, microseconds) is added when absent, None is left out.

        Keys come out in the order of the audit contract, then the hop's own keys as given.
        Raises AuditUnwritable when the line could not be written whole.
        """
        record.setdefault("time", datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"))
        keys = (*_ORDER, *(key for key in record if key not in _ORDER))
        try:
            line = _encode({key: record[key] for key in keys if record.get(key) is not None})
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
