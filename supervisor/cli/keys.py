"""`keys`: the API keys in the vault, by name. Values go in and never come out."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from supervisor.cli import exits
from supervisor.cli.place import ask
from supervisor.cli.terminal import print_json, say
from supervisor.control import ControlError

_KEY_MIN = 8  # what is shorter cannot be told from ordinary text, so it would never be masked
_KEY_MAX = 8192


def add(verbs: Any) -> None:
    """Declare the verbs."""
    keys = verbs.add_parser("keys", help="API keys in the vault").add_subparsers(
        metavar="VERB", required=True
    )
    new = keys.add_parser("add", help="store a key: asked for without echo, or read from stdin")
    new.add_argument("name")
    new.set_defaults(run=run_add)
    listing = keys.add_parser("list", help="the names of the stored keys")
    listing.add_argument("--json", action="store_true", help="for scripts")
    listing.set_defaults(run=run_list)
    remove = keys.add_parser("remove", help="forget a key")
    remove.add_argument("name")
    remove.set_defaults(run=run_remove)


def run_add(arguments: argparse.Namespace) -> int:
    """Read the key, hand it over in a pipe: never in an argument, the environment or a file."""
    from sandbox import credentials

    credentials.not_dumpable()
    value = _value(arguments.name)
    reader, writer = os.pipe()
    try:
        os.write(writer, value)  # smaller than a pipe's buffer, so this cannot block
        os.close(writer)
        ask(arguments, "keys.add", {"name": arguments.name}, (reader,))
    finally:
        os.close(reader)
    say(f"stored: {arguments.name}")
    return exits.OK


def run_list(arguments: argparse.Namespace) -> int:
    """Names, one a line."""
    names = ask(arguments, "keys.list")["names"]
    if arguments.json:
        print_json(names)
    else:
        for name in names:
            say(name)
    return exits.OK


def run_remove(arguments: argparse.Namespace) -> int:
    """Forget one."""
    ask(arguments, "keys.remove", {"name": arguments.name})
    say(f"removed: {arguments.name}")
    return exits.OK


def _value(name: str) -> bytes:
    if sys.stdin.isatty():
        from getpass import getpass

        value = getpass(f"key for {name}: ").encode()
    else:
        value = sys.stdin.buffer.read(_KEY_MAX + 2)
        value = value.removesuffix(b"\n").removesuffix(b"\r")
    wrong = "is empty" if not value else ""
    if 0 < len(value) < _KEY_MIN:
        wrong = f"has fewer than {_KEY_MIN} characters, too few to be recognised and masked"
    elif len(value) > _KEY_MAX:
        wrong = f"is longer than {_KEY_MAX} bytes"
    elif any(byte < 33 or byte > 126 for byte in value):
        wrong = "holds a space, a line break or a character that no HTTP header may hold"
    if wrong:
        raise ControlError("bad_key", f"the key {wrong}", "give the bare key", exits.USAGE)
    return value
