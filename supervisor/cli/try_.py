"""`try`: a command in a fresh sandbox of a workload's policy, to see what that policy allows.

The command gets pipes, never the operator's terminal: whoever holds a terminal can type on it.
"""

from __future__ import annotations

import argparse
import codecs
import os
import selectors
import sys
import threading
from typing import Any

from supervisor.cli.place import ask
from supervisor.cli.terminal import complain, harmless


def add(verbs: Any) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "try",
        help="run a command under a workload's policy",
        usage="anchorhold try WORKLOAD -- COMMAND [ARGUMENT ...]",
    )
    parser.add_argument("workload")
    parser.add_argument("command", nargs="+", metavar="COMMAND")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """The command's exit code, 128 + signal when it was killed, 125 when it never ran."""
    pipes = [os.pipe() for _ in range(3)]
    theirs = (pipes[0][0], pipes[1][1], pipes[2][1])
    outcome: dict[str, Any] = {}

    def call() -> None:
        values = {"workload": arguments.workload, "argv": arguments.command}
        try:
            outcome["result"] = ask(arguments, "try", values, theirs)
        except Exception as error:
            outcome["error"] = error
        finally:
            for fd in theirs:  # the last copy: now the pipes end
                os.close(fd)

    asking = threading.Thread(target=call, daemon=True)
    asking.start()
    _relay(pipes[0][1], {pipes[1][0]: sys.stdout, pipes[2][0]: sys.stderr})
    asking.join()
    if "error" in outcome:
        raise outcome["error"]
    result = outcome["result"]
    if result["signal"] is not None:
        complain(f"killed by signal {result['signal']}")
        return int(128 + result["signal"])
    return int(result["exit"])


def _relay(to_command: int, from_command: dict[int, Any]) -> None:
    """Copy stdin in and both outputs out until both outputs end."""
    decoders = {fd: codecs.getincrementaldecoder("utf-8")("replace") for fd in from_command}
    with selectors.DefaultSelector() as selector:
        for fd in from_command:
            selector.register(fd, selectors.EVENT_READ)
        try:
            selector.register(sys.stdin, selectors.EVENT_READ)
        except (PermissionError, ValueError):  # a plain file is always readable; epoll refuses it
            _copy_file(to_command)
        left = set(from_command)
        while left:
            for key, _events in selector.select():
                fd = key.fd
                data = os.read(fd, 65536)
                if fd not in from_command:
                    if not _pass_on(to_command, data):
                        selector.unregister(key.fileobj)
                elif data:
                    _show(from_command[fd], decoders[fd].decode(data), data)
                else:
                    selector.unregister(fd)
                    os.close(fd)
                    left.discard(fd)


def _pass_on(to_command: int, data: bytes) -> bool:
    """Give the command its input; False at its end, or when nobody reads it any more."""
    try:
        while data:
            data = data[os.write(to_command, data) :]
            if not data:
                return True
    except BrokenPipeError:
        pass
    os.close(to_command)
    return False


def _copy_file(to_command: int) -> None:
    def copy() -> None:
        while _pass_on(to_command, os.read(0, 65536)):
            pass

    threading.Thread(target=copy, daemon=True).start()


def _show(stream: Any, text: str, raw: bytes) -> None:
    """As it is into a file or pipe; made harmless on a terminal."""
    if stream.isatty():
        stream.write(harmless(text))
    else:
        stream.buffer.write(raw)
    stream.flush()
