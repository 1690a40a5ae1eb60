"""`up`: the supervisor itself, in the foreground; systemd runs the same."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any


def add(verbs: Any) -> None:
    """Declare the verb."""
    parser = verbs.add_parser("up", help="run the supervisor in the foreground")
    # Not given after the verb: then what stood before the verb counts.
    parser.add_argument("--host-file", metavar="FILE", default=argparse.SUPPRESS)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Start anew with `up` as the first word: the launcher must be forked before any import."""
    program = str(Path(__file__).resolve().parents[1])
    words = [sys.executable, "-IS", program, "up", "--host-file", arguments.host_file]
    os.execv(sys.executable, words)  # noqa: S606 - our own program, no shell
