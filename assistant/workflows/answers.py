"""What a step may answer: typed JSON for the steps that others build on, text for all others."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from assistant.errors import AssistantError

_Short = Annotated[str, msgspec.Meta(max_length=256)]
_Few = msgspec.Meta(max_length=100)


class Contact(msgspec.Struct, forbid_unknown_fields=True):
    """A person or place to reach; what is unknown is an empty string."""

    name: _Short = ""
    email: _Short = ""
    phone: _Short = ""


class Entities(msgspec.Struct, forbid_unknown_fields=True):
    """Answer of `extract_entities`: dates as they stand in the text, and contacts."""

    dates: Annotated[list[_Short], _Few]
    contacts: Annotated[list[Contact], _Few]


class Priority(msgspec.Struct, forbid_unknown_fields=True):
    """Answer of `classify_priority`."""

    priority: Literal["low", "normal", "high", "urgent"]
    reason: Annotated[str, msgspec.Meta(max_length=1000)]


_SHAPES: dict[str, type[msgspec.Struct]] = {
    "extract_entities": Entities,
    "classify_priority": Priority,
}
_FORMATS = {
    "extract_entities": '{"dates": ["..."], "contacts": [{"name": "", "email": "", "phone": ""}]}',
    "classify_priority": '{"priority": "low|normal|high|urgent", "reason": "..."}',
}


def instruction(step: str) -> str:
    """What to tell the model about the form of its answer; empty for a step that writes text."""
    form = _FORMATS.get(step)
    return f"Answer with one JSON object and nothing else, in this form: {form}" if form else ""


def read(step: str, text: str) -> object:
    """The answer as plain data: a checked object, or the text itself.

    A Markdown fence around JSON is taken off; everything else about the form is strict.
    Raises AssistantError (`model_answer_invalid`, 502).
    """
    shape = _SHAPES.get(step)
    stripped = text.strip()
    if shape is None:
        if not stripped:
            raise _invalid(step, "it is empty")
        return stripped
    if stripped.startswith("```") and stripped.endswith("```"):
        stripped = stripped[3:-3].removeprefix("json").strip()
    try:
        return msgspec.to_builtins(msgspec.json.decode(stripped, type=shape))
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise _invalid(step, str(error)) from error


def _invalid(step: str, why: str) -> AssistantError:
    return AssistantError(
        "model_answer_invalid",
        f"the model's answer to step {step} is not usable: {why[:200]}",
        "use a model that follows the requested form",
        status=502,
    )
