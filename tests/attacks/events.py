"""The probes' record of an attempt, read from the reader's audit file as it grows."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from probes.layout import DENIALS

_PATIENCE = 5.0  # seconds until a record that must come is missing


class Events:
    """Records by the name that an attempt's process calls itself."""

    def __init__(self, audit: Path) -> None:
        self._audit = audit
        self._offset = 0
        self._found: list[dict[str, Any]] = []

    def _read(self) -> None:
        with self._audit.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                self._found.append(json.loads(line))

    def wait(self, comm: str, workload: str, answer: str) -> str:
        """The record of this attempt as "event call"; "" when none came.

        `answer` is SIGSYS or an errno that the probes watch.
        """
        event = "sigsys" if answer == "SIGSYS" else "denied"
        end = time.monotonic() + _PATIENCE
        while True:
            self._read()
            for record in reversed(self._found):
                if (
                    record.get("comm") == comm
                    and record.get("event") == event
                    and str(record.get("workload", "")).endswith(workload)
                ):
                    return f"{event} {record.get('call')}"
            if time.monotonic() > end:
                return ""
            time.sleep(0.01)


def visible(answer: str) -> bool:
    """Whether the probes report this answer of a call."""
    return answer == "SIGSYS" or answer in DENIALS
