"""Server-sent events of a chat completion: parsed by the standard, masked, framed anew.

Parsing: WHATWG HTML, section 9.2.6. Of each event only the data goes on, in our own framing;
ids, comments, retry and event names are dropped, for the chat completion stream uses none.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

from .config import Place
from .redaction.arguments import TextChannel, open_channel
from .redaction.json_walk import JsonInvalid, parse
from .redaction.stream import HoldBack
from .redaction.text import Masker

EVENT_MAX = 1024 * 1024
CHANNELS_MAX = 256  # text fields of all choices of one answer together
_LINE_END = re.compile(rb"\r\n|\n|\r(?!\Z)")  # a CR at the very end may yet get its LF
# Fields of a delta that name something rather than tell something: masked whole, never held.
_NAMES = frozenset({"role", "type", "id", "name", "format", "finish_reason"})
# What a policy may have placeholders put back in, by the name of the field.
PLACES: dict[str, Place] = {"content": "text", "text": "text", "arguments": "tool-arguments"}
DONE = b"data: [DONE]\n\n"


class StreamInvalid(Exception):
    """The upstream's stream is not what was declared; the message holds no data."""


class EventReader:
    """Feed it bytes as they arrive; it yields the data of each complete event."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._data: list[bytes] = []
        self._size = 0
        self._first = True

    def feed(self, chunk: bytes) -> Iterator[str]:
        """Yield the data of every event completed by `chunk`. Raises StreamInvalid."""
        searched = max(0, len(self._buffer) - 1)
        self._buffer += chunk
        if self._first and len(self._buffer) >= 3:
            if self._buffer.startswith(b"\xef\xbb\xbf"):
                del self._buffer[:3]
            searched, self._first = 0, False
        if self._size + len(self._buffer) > EVENT_MAX + len(chunk):
            raise StreamInvalid(f"an event is larger than {EVENT_MAX} bytes")
        buffer, at = bytes(self._buffer) if self._ends(searched) else b"", 0
        for end in _LINE_END.finditer(buffer, searched):
            line, at = buffer[at : end.start()], end.end()
            if not line:
                if self._data:
                    yield self._event()
                continue
            name, _, value = line.partition(b":")
            if name == b"data":
                self._data.append(value.removeprefix(b" "))
                self._size += len(value)
        del self._buffer[:at]

    def _ends(self, searched: int) -> bool:
        return _LINE_END.search(self._buffer, searched) is not None

    def close(self) -> Iterator[str]:
        """The stream has ended: yield an event that lacks only its blank line."""
        yield from self.feed(b"\n\n")

    def _event(self) -> str:
        data = b"\n".join(self._data)
        self._data, self._size = [], 0
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            raise StreamInvalid("an event is not UTF-8") from None


class StreamMasker:
    """Masks the events of one answer; every text field of every choice is a channel of its own."""

    def __init__(self, masker: Masker, hold: HoldBack) -> None:
        self._masker = masker
        self._hold = hold
        # (choice, path in the delta) -> channel; and the shape of an event that can flush it
        self._channels: dict[tuple[int, tuple[str | int, ...]], TextChannel] = {}
        self._shape: dict[str, Any] = {}
        self.usage: dict[str, Any] | None = None

    def event(self, data: str) -> bytes:
        """Return what to send for one event (it may be nothing, or more than one event).

        Raises StreamInvalid or ScanFailed; then nothing further may be sent of this stream.
        """
        if data.strip() == "[DONE]":
            return self.end() + DONE
        try:
            document = parse(data)
        except JsonInvalid as error:
            raise StreamInvalid(f"an event is not JSON: {error}") from None
        if not isinstance(document, dict):
            raise StreamInvalid("an event is not a JSON object")
        choices = document.pop("choices", None)
        if choices is not None and not isinstance(choices, list):
            raise StreamInvalid("choices is not a list")
        # What surrounds the deltas is complete in itself.
        around: dict[str, Any] = self._whole(document)
        if isinstance(around.get("usage"), dict):
            self.usage = around["usage"]
        if choices is None:
            return _frame(around)
        if not self._shape:
            self._shape = {key: value for key, value in around.items() if key != "usage"}
        around["choices"] = [self._choice(choice) for choice in choices]
        return _frame(around)

    def end(self) -> bytes:
        """The stream ended in good order: return the events that carry what was still held."""
        indexes = dict.fromkeys(index for index, _ in self._channels)
        return b"".join(self._flushed(index) for index in indexes)

    def drop(self) -> None:
        """The stream broke off: nothing held is ever sent."""
        self._channels.clear()

    def _choice(self, choice: Any) -> Any:
        if not isinstance(choice, dict):
            raise StreamInvalid("a choice is not an object")
        index = choice.get("index", 0)
        if not isinstance(index, int):
            raise StreamInvalid("a choice's index is not a number")
        out: dict[str, Any] = {}
        for key, value in choice.items():
            if key in ("delta", "text"):
                out[key] = self._walk(value, index, (key,))
            elif key == "logprobs":
                out[key] = None  # the answer again, in pieces too small to be masked
            else:
                out[key] = self._whole(value)
        if choice.get("finish_reason") is not None:
            for path, rest in self._rest(index):
                _put(out, path, rest)
        return out

    def _walk(self, value: Any, index: int, path: tuple[str | int, ...]) -> Any:
        """Mask every string of a delta, each through the channel of its place."""
        if isinstance(value, str):
            if path[-1] in _NAMES:
                return self._masker.text(value)
            key = (index, path)
            if key not in self._channels:
                if len(self._channels) >= CHANNELS_MAX:
                    raise StreamInvalid(f"the answer has more than {CHANNELS_MAX} text fields")
                self._channels[key] = open_channel(
                    self._masker, self._hold, PLACES.get(str(path[-1]))
                )
            return self._channels[key].feed(value)
        if isinstance(value, dict):
            return {
                self._masker.text(name): self._walk(item, index, (*path, name))
                for name, item in value.items()
            }
        if isinstance(value, list):
            # Parts of a list name their own place, as the same place comes again in later events.
            return [
                self._walk(item, index, (*path, _place(item, n))) for n, item in enumerate(value)
            ]
        return self._whole(value)

    def _whole(self, value: Any) -> Any:
        """Mask a value that comes complete in one event; the same object when it is clean."""
        if value is None or value is True or value is False or value == {}:
            return value
        text = json.dumps(value)
        masked = self._masker.document(text)
        return value if masked is text else json.loads(masked)

    def _rest(self, index: int) -> Iterator[tuple[tuple[str | int, ...], str]]:
        for (choice, path), channel in self._channels.items():
            if choice == index and channel.pending:
                yield path, channel.flush()

    def _flushed(self, index: int) -> bytes:
        choice: dict[str, Any] = {"index": index}
        for path, rest in self._rest(index):
            _put(choice, path, rest)
        if len(choice) == 1:
            return b""
        choice.setdefault("finish_reason", None)
        return _frame({**self._shape, "choices": [choice]})


def _place(item: Any, position: int) -> int:
    index = item.get("index") if isinstance(item, dict) else None
    return index if isinstance(index, int) else position


def _put(choice: dict[str, Any], path: tuple[str | int, ...], text: str) -> None:
    """Append `text` to the string at `path` of `choice`, making what is missing on the way."""
    here: Any = choice
    for step, following in itertools.pairwise(path):
        if isinstance(step, int):
            for item in here:
                if _place(item, -1) == step:
                    break
            else:
                item = {"index": step}
                here.append(item)
            here = item
        else:
            if not isinstance(here.get(step), dict | list):
                here[step] = [] if isinstance(following, int) else {}
            here = here[step]
    last = path[-1]
    if isinstance(last, int):
        here.append(text)
    else:
        here[last] = (here.get(last) or "") + text


def _frame(document: dict[str, Any]) -> bytes:
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    return b"data: " + text.encode("utf-8", "backslashreplace") + b"\n\n"  # \udXXX, as in JSON
