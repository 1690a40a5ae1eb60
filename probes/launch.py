"""Descriptors handed at launch, by the sd_listen_fds(3) convention."""

from __future__ import annotations

import os

from .errors import ProbeError

FIRST = 3


def inherited() -> dict[str, int]:
    """Inherited descriptors by name, each made close-on-exec. Raises ProbeError `bad_launch`."""
    names = [name for name in os.environ.pop("LISTEN_FDNAMES", "").split(":") if name]
    count = os.environ.pop("LISTEN_FDS", "")
    if count != str(len(names)) or len(set(names)) != len(names):
        raise ProbeError(
            "bad_launch",
            f"LISTEN_FDS is {count!r} and LISTEN_FDNAMES has {len(set(names))} distinct names.",
            "The supervisor starts this program; it is not for the command line.",
        )
    handed = dict(zip(names, range(FIRST, FIRST + len(names)), strict=True))
    for name, fd in handed.items():
        try:
            os.set_inheritable(fd, False)
        except OSError as error:
            raise ProbeError(
                "bad_launch",
                f"Descriptor {fd} ({name}) is not open.",
                "The launch plan and the launcher disagree; report it.",
                error.errno or 0,
            ) from error
    return handed


def require(handed: dict[str, int], name: str) -> int:
    """The descriptor called `name`. Raises ProbeError `bad_launch` when it was not handed."""
    if name not in handed:
        raise ProbeError(
            "bad_launch", f"Descriptor {name!r} is missing.", "Add it to the launch plan's fds."
        )
    return handed[name]
