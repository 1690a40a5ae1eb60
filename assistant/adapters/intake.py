"""What every adapter does with a client's JSON before it becomes an ask."""

from __future__ import annotations

import os
import re
from typing import Annotated

import msgspec

from assistant.errors import AssistantError
from assistant.http.exchange import Request
from assistant.router.messages import Key, Name


class Incoming(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A client's message.

    `run` (optional) names this piece of work: sent again with the same content it returns the first
    result instead of working twice. `id` (optional, WebSocket) is echoed in every event.
    """

    workflow: Name
    content: Annotated[str, msgspec.Meta(min_length=1)]
    run: Key | None = None
    id: Key | None = None


class Caller(msgspec.Struct, frozen=True):
    """Who is calling, as the gateway says: request id and client name."""

    request: str
    client: str


_decoder = msgspec.json.Decoder(Incoming)


def read(body: bytes | str) -> Incoming:
    """Parse a client's message strictly. Raises AssistantError: `invalid_json` or `bad_message`."""
    try:
        return _decoder.decode(body)
    except msgspec.ValidationError as error:
        raise AssistantError("bad_message", f"the message is malformed: {error}") from error
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise AssistantError("invalid_json", "the message is not valid JSON") from error


def caller(request: Request) -> Caller:
    """Request id and client as the gateway says; a fresh id and `local` without a gateway."""
    identity = request.header("x-request-id")
    if not re.fullmatch(r"[0-9a-f]{16}", identity):
        identity = os.urandom(8).hex()
    return Caller(identity, request.header("x-anchorhold-client")[:128] or "local")
