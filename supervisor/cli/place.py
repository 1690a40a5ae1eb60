"""Where this installation keeps its things: the host file, the control socket, the state."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from supervisor.cli import exits
from supervisor.control import ControlError, Progress, call

if TYPE_CHECKING:
    from supervisor.host import Host


def host_of(arguments: argparse.Namespace) -> Host:
    """The host file named on the command line. ControlError with its mistakes, file and line."""
    from supervisor.host import load_host
    from supervisor.policy.errors import PolicyErrors

    try:
        return load_host(Path(arguments.host_file))
    except PolicyErrors as errors:
        raise ControlError(
            "host_file",
            str(errors),
            "correct it, or name another with --host-file FILE",
            exits.USAGE,
        ) from None


def ask(
    arguments: argparse.Namespace,
    verb: str,
    values: Mapping[str, Any] | None = None,
    fds: tuple[int, ...] = (),
    on_progress: Progress | None = None,
) -> Any:
    """Ask the supervisor of this host file. Raises ControlError."""
    path = Path(host_of(arguments).paths.run) / "control.sock"
    return call(path, verb, values, fds, on_progress)
