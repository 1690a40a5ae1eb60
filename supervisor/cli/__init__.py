"""`anchorhold VERB`: one module per verb, exit codes in `exits.py`.

This file imports nothing, because the supervisor shares `exits` and because a verb should start in
milliseconds: argparse (25 ms) is loaded by every call, rich (80 ms) only to print a table.
"""

from __future__ import annotations


def main(argv: list[str]) -> int:
    """Run one verb; `argv` without the program's name. Returns the exit code, never raises."""
    from supervisor.cli.run import run

    return run(argv)
