"""The demo's client: sends e-mails as anybody would, and prints what comes back."""

from __future__ import annotations

# Loaded before root is given up: the application may lie where nobody can read.
import http.client  # noqa: F401
from typing import Any

from supervisor.cli import terminal, websocket
from supervisor.cli.send import over_rest, over_websocket
from supervisor.control import ControlError

_PROTOCOLS = ("websocket", "rest")


def send_all(where: tuple[str, int], tokens: dict[str, str], mails: dict[str, bytes]) -> bool:
    """Each e-mail through a gateway at `where`, over the two protocols in turn."""
    good = True
    for number, (name, content) in enumerate(mails.items()):
        protocol = _PROTOCOLS[number % 2]
        message = {"workflow": "email_management", "content": content.decode("utf-8", "replace")}
        send = over_websocket if protocol == "websocket" else over_rest
        try:
            answer = send(where, tokens[protocol], message)
        except (ControlError, OSError) as error:
            terminal.complain(f"{name} over {protocol}: {error}")
            good = False
            continue
        _show(name, protocol, answer)
    return good


def knock_without_token(where: tuple[str, int]) -> bool:
    """A WebSocket with a token that nobody signed: whether the gateway refused it."""
    try:
        with websocket.WebSocket(*where, "/websocket/", "not-a-token", 10):
            return False
    except websocket.HandshakeRefused:
        return True


def _show(name: str, protocol: str, answer: dict[str, Any]) -> None:
    terminal.say(f"--- {name} over {protocol}")
    for step, output in (answer.get("steps") or {}).items():
        if not isinstance(output, str):  # the reply itself stands below
            terminal.say(f"  {step}: {output}")
    reply = answer.get("reply") or answer.get("text") or ""
    for line in str(reply).splitlines():
        terminal.say(f"  | {line}")
