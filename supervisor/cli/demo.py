"""`demo`: the whole scene, with real layers and a practice model."""

from __future__ import annotations

import argparse
from typing import Any


def add(verbs: Any) -> None:
    """Declare the verb."""
    parser = verbs.add_parser("demo", help="send real messages, show every layer, try six attacks")
    parser.add_argument(
        "--running",
        action="store_true",
        help="with the supervisor that runs now, whose vault gets a key named practice",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """0 only if every layer held."""
    from supervisor.demo import main

    return main(arguments.host_file, arguments.running)
