"""`stop` and `restart`: one workload, or all of Anchorhold."""

from __future__ import annotations

import argparse
from typing import Any

from supervisor.cli import exits
from supervisor.cli.place import ask
from supervisor.cli.terminal import say


def add(verbs: Any) -> None:
    """Declare both verbs."""
    stop = verbs.add_parser("stop", help="stop a workload, or everything")
    stop.add_argument("workload", nargs="?", help="everything, the supervisor too, without it")
    stop.set_defaults(run=run_stop)
    restart = verbs.add_parser("restart", help="restart a workload; ends its quarantine")
    restart.add_argument("workload")
    restart.set_defaults(run=run_restart)


def run_stop(arguments: argparse.Namespace) -> int:
    """Stop, and say what was stopped."""
    chosen = {"workload": arguments.workload} if arguments.workload else {}
    ask(arguments, "stop", chosen, on_progress=_show)
    say(f"stopped: {arguments.workload or 'Anchorhold'}")
    return exits.OK


def run_restart(arguments: argparse.Namespace) -> int:
    """Stop and start again."""
    ask(arguments, "restart", {"workload": arguments.workload}, on_progress=_show)
    say(f"restarted: {arguments.workload}")
    return exits.OK


def _show(progress: Any) -> None:
    say("  " + ", ".join(f"{key}: {value}" for key, value in progress.items()))
