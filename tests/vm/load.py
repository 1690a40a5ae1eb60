"""The load under which the power is cut; runs inside the machine, with its own Python.

    python3 -IS load.py REST-TOKEN WEBSOCKET-TOKEN

Messages through the gateway over both protocols, keys stored and removed. What was acknowledged is
said on the serial console, which is a file outside: it has the line before this program goes on.
`NAME` of a message is its request id, the seconds are the machine's clock:

    load: answered NAME SECONDS;    load: added NAME SECONDS;
    load: removing NAME SECONDS;    load: removed NAME SECONDS;
"""

from __future__ import annotations

import itertools
import json
import os
import random
import secrets
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path

APP = "/usr/lib/anchorhold/app"
sys.path[:0] = [APP]

from supervisor.cli.send import over_rest  # noqa: E402 - the installed one
from supervisor.cli.websocket import WebSocket, WebSocketError  # noqa: E402
from supervisor.control import ControlError  # noqa: E402

GATEWAY = ("127.0.0.1", 8443)
MESSAGE = {
    "workflow": "email_management",
    "content": Path(f"{APP}/supervisor/demo/mail/ordinary.eml").read_text(),
}
PAUSE = 0.3
_console = os.open("/dev/ttyS0", os.O_WRONLY | os.O_NOCTTY)
_one_at_a_time = threading.Lock()


def say(what: str, name: str) -> None:
    """One line to the world outside; returns when it is there."""
    with _one_at_a_time:
        os.write(_console, f"\nload: {what} {name} {time.time():.2f};\n".encode())
        termios.tcdrain(_console)


class Named(WebSocket):
    """A WebSocket that knows the request id the gateway gave it."""

    request = ""

    def _shake_hands(self, host: str, path: str, token: str) -> None:
        read = self._file.readline

        def noting(limit: int) -> bytes:
            line = read(limit)
            name, _, value = line.partition(b":")
            if name.lower() == b"x-request-id":
                self.request = value.strip().decode()
            return line

        self._file.readline = noting  # type: ignore[method-assign,assignment]
        super()._shake_hands(host, path, token)


def by_rest(token: str) -> str:
    """The request id of one answered message."""
    return str(over_rest(GATEWAY, token, MESSAGE)["request"])


def by_websocket(token: str) -> str:
    """The same over the other protocol."""
    line = Named(*GATEWAY, "/websocket/", token, 180)
    with line:
        line.send(json.dumps(MESSAGE))
        while (answer := json.loads(line.receive()))["kind"] != "reply":
            if answer["kind"] == "error":
                raise WebSocketError(str(answer))
        return line.request


def messages(send: Callable[[str], str], token: str) -> None:
    """One message after the other, also while nobody answers yet."""
    while True:
        try:
            say("answered", send(token))
        except (ControlError, WebSocketError, OSError):
            time.sleep(PAUSE)


def _keys(*words: str, value: bytes = b"") -> bool:
    done = subprocess.run(["anchorhold", "keys", *words], input=value, capture_output=True)
    return done.returncode == 0


def keys() -> None:
    """Names that were never used before; every second one is removed again."""
    boot = secrets.token_hex(4)
    for number in itertools.count():
        name = f"k-{boot}-{number}"
        if not _keys("add", name, value=secrets.token_hex(20).encode()):
            time.sleep(PAUSE)
            continue
        say("added", name)
        time.sleep(random.uniform(0, 1))
        if number % 2:
            say("removing", name)
            if _keys("remove", name):
                say("removed", name)


def main(rest: str, websocket: str) -> None:
    """Until the power goes."""
    for job, arguments in (
        (messages, (by_rest, rest)),
        (messages, (by_websocket, websocket)),
        (keys, ()),
    ):
        threading.Thread(target=job, args=arguments).start()


if __name__ == "__main__":
    main(*sys.argv[1:])
