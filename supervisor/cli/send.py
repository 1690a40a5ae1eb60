"""`send`: one message through the gateway, as any client would send it.

Root gets a token from the supervisor and opens the file; then this process becomes nobody, and only
then speaks HTTP or WebSocket. What comes back is a model's text and is printed harmless.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from supervisor.cli import exits
from supervisor.cli.place import host_of
from supervisor.cli.privilege import become_nobody
from supervisor.cli.secrets import ask_vault
from supervisor.cli.terminal import print_json, say
from supervisor.control import ControlError

_CONTENT_MAX = 8 << 20  # the gateway's limit is lower and gives the better answer
_REPLY_MAX = 8 << 20
_WAIT = 180.0  # seconds for the whole workflow
_TOKEN_LIFETIME = 300
_TOO_BIG = 1009  # RFC 6455, 7.4.1: a message too big to process


def add(verbs: Any) -> None:
    """Declare the verb."""
    parser = verbs.add_parser("send", help="send a message, for example an e-mail file")
    parser.add_argument("file", help="the message; - is stdin")
    parser.add_argument("--protocol", choices=("rest", "websocket"), default="rest")
    parser.add_argument("--workflow", default="email_management")
    parser.add_argument("--json", action="store_true", help="the whole answer, with every step")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the reply. 1 when any hop refused or failed, with its reason."""
    address, _, port = host_of(arguments).listen.rpartition(":")
    content = _read(arguments.file)
    wanted = {
        "client": "anchorhold-send",
        "workload": f"adapter.{arguments.protocol}",
        "lifetime": _TOKEN_LIFETIME,
    }
    token = ask_vault(arguments, "token.issue", wanted)["token"]
    import http.client  # noqa: F401 - loaded while the library can surely be read

    from supervisor.cli import websocket  # noqa: F401 - the same

    become_nobody()
    where = (address.strip("[]"), int(port))
    message = {"workflow": arguments.workflow, "content": content.decode("utf-8", "replace")}
    try:
        if arguments.protocol == "rest":
            answer = over_rest(where, token, message)
        else:
            answer = over_websocket(where, token, message)
    except ConnectionRefusedError:
        raise ControlError(
            "no_gateway",
            f"nothing listens at {where[0]}:{where[1]}",
            "`anchorhold status` says whether service.ingress runs",
        ) from None
    except TimeoutError:
        raise ControlError("no_answer", f"no answer within {_WAIT:g} s") from None
    if arguments.json:
        print_json(answer)
    else:
        say(str(answer.get("reply", answer.get("text", ""))))
    return exits.OK


def over_rest(where: tuple[str, int], token: str, message: dict[str, str]) -> dict[str, Any]:
    """POST /rest/messages; the answer object. ControlError with what the refusing hop said."""
    import http.client

    connection = http.client.HTTPConnection(*where, timeout=_WAIT)
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    body = json.dumps(message).encode()
    try:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            # Refused before all of it was sent? Then the reason may be there to read.
            connection.request("POST", "/rest/messages", body, headers)
        response = connection.getresponse()
        raw = response.read(_REPLY_MAX)
    except ConnectionRefusedError:
        raise
    except (http.client.HTTPException, ConnectionError) as error:
        raise ControlError("bad_answer", f"the gateway broke off: {error}") from None
    finally:
        connection.close()
    answer = _object(raw)
    if response.status != 200:
        raise _refused(response.status, answer)
    return answer


def over_websocket(where: tuple[str, int], token: str, message: dict[str, str]) -> dict[str, Any]:
    """The same over /websocket/; steps are shown on stderr as they come."""
    from supervisor.cli.websocket import Closed, HandshakeRefused, WebSocket, WebSocketError

    try:
        with WebSocket(*where, "/websocket/", token, _WAIT) as socket:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                socket.send(json.dumps(message))  # refused before all of it was sent? Read why
            while True:
                answer = _object(socket.receive())
                if answer.get("kind") == "reply":
                    return answer
                if answer.get("kind") == "error":
                    raise _refused(answer.get("status"), {"error": answer})
                if answer.get("kind") == "step" and sys.stderr.isatty():
                    print(f"  {str(answer.get('step'))!a} {str(answer.get('status'))!a}",
                          file=sys.stderr)  # fmt: skip
    except HandshakeRefused as refused:
        raise _refused(refused.status, _object(refused.body)) from None
    except ConnectionRefusedError:
        raise
    except Closed as closed:
        if closed.code == _TOO_BIG:
            raise _too_long(str(closed)) from None
        raise ControlError("bad_answer", f"the connection broke off: {closed}") from None
    except (WebSocketError, ConnectionError) as error:
        raise ControlError("bad_answer", f"the connection broke off: {error}") from None


def _too_long(said: str) -> ControlError:
    return ControlError(
        "message_too_large",
        f"the gateway refused the message as too long ({said})",
        "send less: the limit, JSON included, is body_max in the adapter's policy (shipped: 1 MiB)",
    )


def _read(name: str) -> bytes:
    try:
        if name == "-":
            content = sys.stdin.buffer.read(_CONTENT_MAX + 1)
        else:
            with Path(name).open("rb") as file:
                content = file.read(_CONTENT_MAX + 1)
    except OSError as error:
        raise ControlError(
            "unreadable", f"{name}: {error.strerror}", "name a readable file", exits.USAGE
        ) from None
    if len(content) > _CONTENT_MAX:
        raise ControlError(
            "too_large", f"{name} is larger than {_CONTENT_MAX} bytes", exit=exits.USAGE
        )
    return content


def _object(raw: bytes | str) -> dict[str, Any]:
    try:
        answer = json.loads(raw)
    except (ValueError, RecursionError):
        answer = None
    return answer if isinstance(answer, dict) else {}


def _refused(status: object, answer: dict[str, Any]) -> ControlError:
    error = answer.get("error")
    error = error if isinstance(error, dict) else {}
    code, message = str(error.get("code", "refused")), str(error.get("message", "no reason given"))
    return ControlError(code, f"{message} ({code}, status {status})",
                        "`anchorhold logs --audit` shows which hop refused it and why")  # fmt: skip
