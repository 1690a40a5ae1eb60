"""The messages on the channel: one JSON object per line, strict, at most `LINE_MAX` bytes."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from assistant.errors import AssistantError

LINE_MAX = 2 << 20
CONTENT_MAX = 1 << 20

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=r"^[a-z][a-z0-9_-]*\Z")]
Key = Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.:-]+\Z")]
Label = Annotated[str, msgspec.Meta(max_length=128)]


class Ask(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Adapter to executor: run `workflow` on `content`.

    `id` names the conversation on this channel connection; `request` is the gateway's id, for
    audit. `run` makes the work idempotent: the same client asking again with the same `run` gets
    the result of the first time. Left empty it is `request`.`id`.
    """

    id: Key
    request: Key
    protocol: Name
    client: Label
    workflow: Name
    content: str
    stream: bool = False
    run: Annotated[str, msgspec.Meta(max_length=128, pattern=r"^[A-Za-z0-9_.:-]*\Z")] = ""


class Cancel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Adapter to executor: nobody waits for `id` any more."""

    id: Key
    kind: Literal["cancel"]


class _Event(msgspec.Struct, forbid_unknown_fields=True, tag_field="kind", tag=str.lower):
    id: str


class Step(_Event):
    """A step began (`output` is null) or is done."""

    step: str
    model: str
    status: Literal["started", "done"]
    output: object = None


class Delta(_Event):
    """A piece of the last step's text."""

    text: str


class Reply(_Event):
    """The end: the last step's text, and every step's output by name."""

    text: str
    steps: dict[str, object]


class Error(_Event):
    """The end: it failed. `status` is the HTTP status that fits."""

    code: str
    message: str
    status: int = 500


Event = Step | Delta | Reply | Error


class _Kind(msgspec.Struct):
    id: object = ""
    kind: object = None


_kind = msgspec.json.Decoder(_Kind)
_ask = msgspec.json.Decoder(Ask)
_cancel = msgspec.json.Decoder(Cancel)
_event: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)
encode = msgspec.json.encode


def failure(identity: str, error: AssistantError) -> Error:
    """`error` as the message that ends the conversation `identity`."""
    return Error(id=identity, code=error.code, message=error.message, status=error.status)


def read_ask(line: bytes) -> Ask | Cancel:
    """One line from an adapter. Raises AssistantError (`bad_message`) naming the field."""
    try:
        head = _kind.decode(line)
        return _ask.decode(line) if head.kind is None else _cancel.decode(line)
    except msgspec.ValidationError as error:
        raise AssistantError("bad_message", f"the message is malformed: {error}") from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise AssistantError("bad_message", "the message is not JSON") from error


def read_event(line: bytes) -> Event:
    """One line from the executor. Raises msgspec.DecodeError."""
    return _event.decode(line)
