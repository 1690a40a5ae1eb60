"""Descriptors handed over at launch, found by name as in sd_listen_fds(3)."""

from __future__ import annotations

import os

from assistant.errors import UsageError

_FIRST = 3


def inherited() -> dict[str, int]:
    """Name to number of every descriptor passed in; they are made close-on-exec.

    LISTEN_PID is not looked at: each workload is pid 1 of its own pid namespace.
    Raises UsageError when count and names do not agree.
    """
    count = os.environ.pop("LISTEN_FDS", "0")
    names = [name for name in os.environ.pop("LISTEN_FDNAMES", "").split(":") if name]
    if not count.isascii() or not count.isdigit() or int(count) != len(names):
        raise UsageError(f"LISTEN_FDS={count} but {len(names)} names in LISTEN_FDNAMES")
    if len(set(names)) != len(names):
        raise UsageError("a name stands twice in LISTEN_FDNAMES")
    found = {name: _FIRST + index for index, name in enumerate(names)}
    for number in found.values():
        os.set_inheritable(number, False)
    return found
