"""What an operator types and nobody may see: asked for without echo, piped, or from a descriptor.

Never an argument, an environment variable or a file of ours. Each goes into a pipe of its own; its
other end the supervisor passes on unread.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from supervisor.cli import exits
from supervisor.cli.place import ask
from supervisor.cli.terminal import progress
from supervisor.control import ControlError

LENGTH_MAX = 16 * 1024  # what the helper takes; a pipe holds more
PIN_NEEDED = "PIN_NEEDED"


def add_option(parser: argparse.ArgumentParser, what: str) -> None:
    """`--from-fd N`, for scripts."""
    parser.add_argument(
        "--from-fd", type=descriptor, metavar="N", help=f"read {what} from this descriptor"
    )


def add_pin_option(parser: argparse.ArgumentParser) -> None:
    """`--pin-fd N`: without it the PIN is asked for when the vault has one."""
    parser.add_argument(
        "--pin-fd", type=descriptor, metavar="N", help="read the PIN from this descriptor"
    )


def descriptor(text: str) -> int:
    """An open descriptor's number."""
    try:
        number = int(text)
        os.fstat(number)
    except (ValueError, OverflowError, OSError):
        raise argparse.ArgumentTypeError(f"{text!r} is no open descriptor") from None
    return number


def read(prompt: str, source: int | None) -> bytes:
    """From `source`, from standard input if that is no terminal, else asked for without echo.

    One line end is taken off. Raises ControlError where it is longer than anything can be.
    """
    if source is None and sys.stdin.isatty():
        return typed(prompt)
    taken, fd = b"", sys.stdin.fileno() if source is None else source
    while len(taken) <= LENGTH_MAX and (part := os.read(fd, LENGTH_MAX + 2)):
        taken += part
    if len(taken) > LENGTH_MAX:
        raise ControlError("too_long", f"more than {LENGTH_MAX} bytes came", exit=exits.USAGE)
    return taken.removesuffix(b"\n").removesuffix(b"\r")


def typed(prompt: str) -> bytes:
    """Asked for on the terminal itself. Raises ControlError where there is none."""
    from getpass import getpass

    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        raise ControlError(
            "no_terminal",
            f"there is no terminal to ask for the {prompt.rstrip(': ')}",
            "give it on a descriptor: --from-fd N, --pin-fd N",
            exits.USAGE,
        ) from None
    return getpass(prompt).encode()


def ask_vault(
    arguments: argparse.Namespace,
    verb: str,
    values: Mapping[str, Any] | None = None,
    secrets: Mapping[str, bytes] | None = None,
    lent: Mapping[str, int] | None = None,
) -> Any:
    """One verb of the vault: `keys.VERB`, or another by its whole name.

    Where it needs the PIN, this is read, once for all verbs of one command, and the verb asked for
    again.
    `secrets` by the names of their descriptors; `lent`: descriptors of the caller. Raises
    ControlError.
    """
    secrets = dict(secrets or {})
    if getattr(arguments, "pin_fd", None) is not None:
        arguments.pin, arguments.pin_fd = read("PIN: ", arguments.pin_fd), None
    if (pin := getattr(arguments, "pin", None)) is not None:
        secrets["pin"] = pin
    while True:
        try:
            return _ask(arguments, verb, values or {}, secrets, lent or {})
        except ControlError as error:
            if error.code != PIN_NEEDED or "pin" in secrets:
                raise
            wanted = error
        try:
            secrets["pin"] = arguments.pin = typed("PIN of the vault: ")
        except ControlError:
            fix = "without a terminal: --pin-fd N"
            raise ControlError(wanted.code, str(wanted), fix, wanted.exit) from None


def _ask(
    arguments: argparse.Namespace,
    verb: str,
    values: Mapping[str, Any],
    secrets: Mapping[str, bytes],
    lent: Mapping[str, int],
) -> Any:
    with contextlib.ExitStack() as stack:
        fds = dict(lent) | {
            name: stack.enter_context(_pipe(each)) for name, each in secrets.items()
        }
        report = stack.enter_context(progress())
        given = {**values, "fds": list(fds)} if fds else values
        name = verb if "." in verb else f"keys.{verb}"
        return ask(arguments, name, given, tuple(fds.values()), report)


@contextlib.contextmanager
def _pipe(value: bytes) -> Iterator[int]:
    """The read end of a pipe that holds `value`, which is less than it can hold."""
    reading, writing = os.pipe()
    try:
        os.write(writing, value)
        os.close(writing)
        yield reading
    finally:
        os.close(reading)
