"""The command line: which program this process is. Each one imports only what it needs."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from assistant.errors import AssistantError, UsageError

USAGE = """usage: assistant adapter NAME [--port 8080] [--executor SOCKET]
       assistant executor [--workflows FILE] [--state DIRECTORY]
       assistant practice-model [--port 8000] [--pace SECONDS]"""


def main(arguments: Sequence[str]) -> int:
    """Run what `arguments` name. Returns 0 after SIGTERM, 1 after an error, 2 on misuse."""
    # pid 1 ignores SIGTERM until it has a handler: have one while the imports run.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    os.umask(0o077)
    try:
        _start(arguments)
    except AssistantError as error:
        sys.stderr.write(f"assistant: {error.code}: {error.message}\n")
        if isinstance(error, UsageError):
            sys.stderr.write(USAGE + "\n")
        return 2
    except OSError as error:
        sys.stderr.write(f"assistant: cannot run: {error.strerror} {error.filename or ''}\n")
        return 1
    return 0


def _start(arguments: Sequence[str]) -> None:
    match list(arguments):
        case ["adapter", name, *rest]:
            options = _options(
                rest, {"port": "8080", "executor": "/run/anchorhold/executor.main.sock"}
            )
            from assistant.adapters import serve

            serve(name, port=_port(options["port"]), executor=options["executor"])
        case ["executor", *rest]:
            options = _options(rest, {"workflows": "", "state": "/state"})
            from assistant.executor import serve as serve_executor

            serve_executor(workflows=options["workflows"], state=options["state"])
        case ["practice-model", *rest]:
            options = _options(rest, {"port": "8000", "pace": "0"})
            from assistant.practice import serve as serve_model

            serve_model(port=_port(options["port"]), pace=_seconds(options["pace"]))
        case _:
            raise UsageError("no such program")


def _options(arguments: Sequence[str], defaults: dict[str, str]) -> dict[str, str]:
    """`--name value` pairs over `defaults`; argparse would cost a megabyte."""
    values = dict(defaults)
    pairs = iter(arguments)
    for flag in pairs:
        name = flag.removeprefix("--")
        if not flag.startswith("--") or name not in defaults:
            raise UsageError(f"unknown argument {flag!r}")
        value = next(pairs, None)
        if value is None:
            raise UsageError(f"{flag} needs a value")
        values[name] = value
    return values


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise UsageError(f"--port {text!r} is no port number", "give 0 to 65535 (0: any free port)")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 10:
        raise UsageError(f"--pace {text!r} is out of range", "give seconds between 0 and 10")
    return value
