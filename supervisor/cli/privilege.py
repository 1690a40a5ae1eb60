"""Becoming nobody: what speaks to the gateway or reads a workload's words is never root."""

from __future__ import annotations

import os

from sandbox import credentials

NOBODY = 65534


def become_nobody() -> None:
    """Give up root for good: ids, groups, capabilities, and every way back.

    Does nothing for a caller that is not root to begin with. What is needed from root (open files,
    imported modules) must be there before. Raises OSError if a step fails.
    """
    if os.geteuid() != 0 and os.getuid() != 0:
        credentials.no_new_privileges()
        return
    os.setgroups([])
    credentials.become(NOBODY, NOBODY)  # a full change of uid empties the capability sets
    credentials.clear_ambient()
    credentials.not_dumpable()
    credentials.no_new_privileges()
    try:
        os.setresuid(0, 0, 0)
    except PermissionError:
        return
    raise OSError("root could be regained after it was given up")
