"""The egress proxy's audit records, newest first. Opened as root, to be read as nobody."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

from supervisor.cli import exits
from supervisor.control import ControlError


def open_records(state: Path) -> int:
    """A descriptor of the records below the state directory. Raises ControlError."""
    path = state / "audit" / "service.egress.jsonl"
    try:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ControlError(
            "no_log", f"there is no {path}", "start Anchorhold: `anchorhold up`"
        ) from None
    except PermissionError:
        raise ControlError(
            "not_allowed", f"{path} is root's", "use sudo", exits.NOT_ALLOWED
        ) from None


def lines_backwards(fd: int, mark: bytes) -> Iterator[bytes]:
    """The lines that hold `mark`, the last one first."""
    size = os.fstat(fd).st_size
    if not size:
        return
    with mmap.mmap(fd, size, prot=mmap.PROT_READ) as data:
        end = size
        while (at := data.rfind(mark, 0, end)) >= 0:
            begin = data.rfind(b"\n", 0, at) + 1
            stop = data.find(b"\n", at)
            yield data[begin : stop if stop >= 0 else size]
            end = begin
