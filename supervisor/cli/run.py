"""From the command line to a verb, and from every error to an exit code."""

from __future__ import annotations

import argparse
import itertools
import os
import sys

from supervisor.cli import (
    ask,
    budget,
    completion,
    demo,
    doctor,
    exits,
    keys,
    logs,
    policy,
    send,
    status,
    stop,
    token,
    try_,
    up,
)
from supervisor.cli.terminal import complain
from supervisor.control import ControlError

DEFAULT_HOST_FILE = "/etc/anchorhold/host.toml"

# In the order of a first day: start, look, use, stop; then what is rarer.
VERBS = (
    up,
    status,
    send,
    logs,
    budget,
    ask,
    stop,
    doctor,
    token,
    keys,
    policy,
    try_,
    demo,
    completion,
)


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog="anchorhold",
        description="Keeps every part of a self-hosted AI assistant in a cell of its own.",
        epilog="exit: 0 done, 1 failed, 2 usage, 4 not running, 5 start refused, 6 not allowed, "
        "10 to 69 the vault (docs/keys.md)",
        allow_abbrev=False,
    )
    top.add_argument(
        "--host-file", default=DEFAULT_HOST_FILE, metavar="FILE", help="default: %(default)s"
    )
    verbs = top.add_subparsers(title="verbs", metavar="VERB", required=True)
    for module in VERBS:
        module.add(verbs)
    return top


def run(argv: list[str]) -> int:
    """Parse and run. Every failure is a sentence, a fix, and a code of `exits`."""
    try:
        arguments = parser().parse_args(_host_file_first(argv))
    except SystemExit as stopped:
        return stopped.code if isinstance(stopped.code, int) else exits.USAGE
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except ControlError as error:
        complain(str(error), error.fix)
        return error.exit
    except KeyboardInterrupt:
        return exits.INTERRUPTED
    except BrokenPipeError:
        _discard_output()  # `anchorhold logs | head`: the reader has had enough
        return exits.OK
    except OSError as error:
        complain(str(error))
        _discard_output()  # it may be the output that failed: a full disk
        return exits.FAILED


def _discard_output() -> None:
    """What is still buffered goes nowhere: the interpreter's last flush must not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _host_file_first(argv: list[str]) -> list[str]:
    """`--host-file FILE` may stand after the verb, too; what follows `--` is another's."""
    end = argv.index("--") if "--" in argv else len(argv)
    first: list[str] = []
    rest: list[str] = []
    words = iter(argv[:end])
    for word in words:
        if word == "--host-file":
            first += [word, *itertools.islice(words, 1)]
        else:
            (first if word.startswith("--host-file=") else rest).append(word)
    return [*first, *rest, *argv[end:]]
