"""Masking the events of one answer that arrives in pieces, as a provider's stream kind says.

Every text that comes in pieces is a channel of its own, told apart by its place and its indices.
What a channel held goes out with its next piece or, at its end, in an event of the same shape. All
else in an event is complete in itself and masked at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from proxy.providers import Place, Provider, StreamKind

from .redaction.arguments import TextChannel, open_channel
from .redaction.hold import HoldBack
from .redaction.json_walk import JsonInvalid, encode, parse, without
from .redaction.text import Masker

CHANNELS_MAX = 256  # text fields of one answer
_KNOWN_MAX, _KNOWN_SIZE = 512, 512
_TRIES = 4  # events that may differ from the last before their likeness is no longer looked for
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"(\s*:)?')
_TYPE = re.compile(r"[A-Za-z0-9_.]{1,80}")
# Fields that name something rather than tell something: masked whole, never held.
_NAMES = frozenset({"role", "type", "id", "name", "format", "finish_reason", "signature"})
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
_Key = tuple[object, ...]
_Steps = tuple[str | int, ...]


class StreamInvalid(Exception):
    """The upstream's stream is not what was declared; the message holds no data."""


class Event(NamedTuple):
    """What is sent for an event: JSON, and the event's name where the kind of stream has names."""

    data: str
    name: str | None


class _Text:
    """One channel, and the event and place at which it was last fed: the shape of its rest."""

    __slots__ = ("channel", "event", "fed", "key", "passed", "steps")

    def __init__(self, channel: TextChannel, key: _Key) -> None:
        self.channel = channel
        self.key = key
        self.event: dict[str, Any] = {}
        self.steps: _Steps = ()
        self.fed: list[str] = []
        self.passed: list[str] = []

    @property
    def changed(self) -> bool:
        return "".join(self.fed) != "".join(self.passed)


class _Same(NamedTuple):
    """An event in which nothing but its one piece was changed, and that cut out of its JSON."""

    before: str
    after: str
    text: _Text
    name: str | None


class StreamMasker:
    """Masks one answer's events; give them in order. After an exception nothing more may be sent.

    `provider` names the fields that are never changed, emptied, or have placeholders put back.
    """

    def __init__(
        self, kind: StreamKind, provider: Provider, masker: Masker, hold: HoldBack
    ) -> None:
        self._kind = kind
        self._masker = masker
        self._hold = hold
        self._opaque = provider.opaque
        self._dropped = provider.dropped
        self._places = provider.places
        self._texts: dict[_Key, _Text] = {}
        self._ended: set[_Key] = set()
        self._known: set[str] = set()
        self._said: dict[str, str] = {}  # whole texts of ended channels, where masking changed them
        self._remembers = kind.repeats or kind.signed is not None
        self._number = 0
        self._same: _Same | None = None
        self._tries = _TRIES
        # Of the event at hand:
        self._out: dict[str, Any] = {}
        self._group: _Key = ()
        self._ends: set[_Key] = set()
        self._fed: list[tuple[_Text, str]] = []

    @property
    def pending(self) -> bool:
        """True while any text is held back."""
        return any(text.channel.pending for text in self._texts.values())

    def event(self, data: str) -> tuple[dict[str, Any], list[Event]]:
        """Take one event's JSON; return it parsed, and what to send for it.

        An event like the last, save its piece, need not be parsed, and is given as {}. Raises
        StreamInvalid, ScanFailed or Blocked.
        """
        if self._same and (again := self._again(data, self._same)):
            return {}, [again]
        try:
            event = parse(data)
        except JsonInvalid as error:
            raise StreamInvalid(f"an event is not JSON: {error}") from None
        if not isinstance(event, dict):
            raise StreamInvalid("an event is not a JSON object")
        sent = []
        has_pieces = True
        self._group, self._ends, self._fed = (), set(), []
        if self._kind.type:
            has_pieces, over = self._classify(event)
            if over:
                sent += self._rests(over)
        else:
            self._ends = self._finished(event)
        around = {
            name: value
            for name, value in event.items()
            if not has_pieces or self._kind.role((name,)) == "whole"
        }
        self._out = out = dict(self._whole(around))
        for name, value in event.items():
            if name not in around:
                out[name] = self._walk(value, (name,), (name,), (name,))
        if self._ends:
            sent += self._rests(self._is_over)
            self._ended |= self._ends
        sent.append(self._said_as(out, data if out == event else None))
        self._same = self._cut(event, data, sent) if self._tries else None
        return event, sent

    def end(self) -> list[Event]:
        """The stream ended in good order: return the events that carry what was still held."""
        return self._rests(lambda _text: True)

    def drop(self) -> None:
        """The stream broke off: nothing held is ever sent."""
        for text in self._texts.values():
            text.channel.drop()
        self._texts.clear()

    def _classify(self, event: dict[str, Any]) -> tuple[bool, Callable[[_Text], bool] | None]:
        """True when the event has pieces; and which channels it ends."""
        kind = self._kind
        type_ = event.get(kind.type)
        if not isinstance(type_, str):
            raise StreamInvalid("an event has no type")
        piece, done = kind.stem(kind.pieces, type_), kind.stem(kind.done, type_)
        by = tuple(v if isinstance(v := event.get(name), str | int) else None for name in kind.by)
        self._group = group = (piece if piece is not None else done, *by)
        if done is not None:
            return False, lambda text: text.key[: len(group)] == group
        if type_ in kind.final:
            return False, lambda _text: True
        if kind.signed and piece is not None:
            # The signature is over the text: nothing of that comes after it.
            signature = kind.signed[1]
            if any(isinstance(v, dict) and v.get(signature) for v in event.values()):
                return True, lambda text: text.key[: len(group)] == group
        return piece is not None, None

    def _finished(self, event: dict[str, Any]) -> set[_Key]:
        """The elements that end with this event, as the beginnings of their channels' keys."""
        end = self._kind.end
        if "*" not in end:
            return {()} if end and _at(event, end) else set()
        star = end.index("*")
        items = _at(event, end[:star])
        return {
            (*end[:star], _place(item, n))
            for n, item in enumerate(items if isinstance(items, list) else ())
            if _at(item, end[star + 1 :])
        }

    def _is_over(self, text: _Text) -> bool:
        return any(text.key[: len(end)] == end for end in self._ends)

    def _walk(self, value: Any, path: tuple[str, ...], key: _Key, steps: _Steps) -> Any:
        """Mask what stands at `steps` of the event; `path` has * and `key` the index in lists."""
        role = self._kind.role(path)
        if role == "whole":
            return self._whole({path[-1]: value}).get(path[-1])
        if role == "inner" and isinstance(value, str | int | float) and value is not False:
            raise StreamInvalid(f"{path[0]} is not of the declared form")
        if isinstance(value, str):
            if path[-1] in _NAMES:
                return self._name(path[-1], value, key)
            return self._piece(value, role, key, steps)
        if isinstance(value, dict):
            return {
                self._text(name): None
                if name in self._dropped
                else self._walk(item, (*path, name), (*key, name), (*steps, name))
                for name, item in value.items()
            }
        if isinstance(value, list):
            return [
                self._walk(item, (*path, "*"), (*key, _place(item, n)), (*steps, n))
                for n, item in enumerate(value)
            ]
        return self._whole({path[-1]: value}).get(path[-1])

    def _piece(self, piece: str, role: str, key: _Key, steps: _Steps) -> str:
        if self._kind.type:
            key = (*self._group, *key[1:])  # the first step only says which event it is
        text = self._texts.get(key)
        if text is None:
            if len(self._texts) >= CHANNELS_MAX:
                raise StreamInvalid(f"the answer has more than {CHANNELS_MAX} text fields")
            if self._group and self._group[0] in self._kind.arguments_of:
                role = "arguments"
            text = self._texts[key] = _Text(self._channel(role, str(steps[-1])), key)
        text.event, text.steps = self._out, steps
        self._fed.append((text, piece))
        return self._feed(text, piece)

    def _channel(self, role: str, name: str) -> TextChannel:
        place: Place | None = "tool-arguments" if role == "arguments" else self._places.get(name)
        return open_channel(self._masker, self._hold, place)

    def _feed(self, text: _Text, piece: str) -> str:
        if piece and any(text.key[: len(end)] == end for end in self._ended):
            raise StreamInvalid("a text goes on after its end")
        out = text.channel.feed(piece)
        if self._ends and self._is_over(text):
            out += text.channel.flush()
        if self._remembers:
            text.fed.append(piece)
            text.passed.append(out)
        return out

    def _cut(self, event: dict[str, Any], data: str, sent: list[Event]) -> _Same | None:
        """Cut the one piece out of an event in which nothing else was changed."""
        if len(self._fed) != 1 or len(sent) != 1 or self._ends:
            return None
        text, piece = self._fed[0]
        around: Any = self._out
        for step in text.steps[:-1]:
            around = around[step]
        said, around[text.steps[-1]] = around[text.steps[-1]], piece
        alike = self._out == event
        around[text.steps[-1]] = said
        if not alike:
            return None
        places = [found for found in _STRING.finditer(data) if found[1] == piece and not found[2]]
        if len(places) != 1 or self._kind.sequence:
            return None
        self._tries -= 1
        return _Same(data[: places[0].start(1)], data[places[0].end(1) :], text, sent[0].name)

    def _again(self, data: str, same: _Same) -> Event | None:
        """Return what to send for an event like the last; None if it is another."""
        before, after, text, name = same
        end = len(data) - len(after)
        if end < len(before) or not data.startswith(before) or not data.endswith(after):
            return None
        piece = data[len(before) : end]
        # What JSON may escape takes the long way.
        if not piece.isprintable() or '"' in piece or "\\" in piece:
            return None
        self._tries = _TRIES
        self._ends = set()
        out = self._feed(text, piece)
        return Event(data if out == piece else f"{before[:-1]}{encode(out)}{after[1:]}", name)

    def _name(self, name: str, value: str, key: _Key) -> str:
        signed = self._kind.signed
        if signed and name == signed[1]:
            text = self._texts.get((*self._group, *key[1:-1], signed[0]))
            return "" if text and text.changed else value
        return value if name in self._opaque else self._text(value)

    def _rests(self, chosen: Callable[[_Text], bool]) -> list[Event]:
        """Events of our own with what the chosen channels still hold; these have ended."""
        found = []
        for text in self._texts.values():
            if not chosen(text):
                continue
            rest = text.channel.flush() if text.channel.pending else ""
            if rest:
                text.passed.append(rest)
                found.append(self._said_as(self._shaped(text, rest), None))
            if self._kind.repeats and text.changed:
                self._said["".join(text.fed)] = "".join(text.passed)
        return found

    def _shaped(self, text: _Text, rest: str) -> dict[str, Any]:
        """An event as the one the channel was last fed with, with nothing in it but `rest`."""
        top = {
            name: value
            for name, value in text.event.items()
            if not isinstance(value, dict | list) and self._kind.role((name,)) == "whole"
        }
        here: Any = top
        source: Any = text.event
        for n, step in enumerate(text.steps):
            last = n == len(text.steps) - 1
            source = source[step]
            made: Any = rest
            if isinstance(source, list):
                made = []
            elif isinstance(source, dict):
                keep = self._kind.keep
                made = {
                    k: v
                    for k, v in source.items()
                    if v is None or (k in keep and not isinstance(v, dict | list))
                }
            if isinstance(here, list):
                here.append(made if not last else rest)
            else:
                here[step] = made if not last else rest
            here = made
        return top

    def _said_as(self, out: dict[str, Any], data: str | None) -> Event:
        """The event as it is sent; `data` is its JSON as it came, if nothing in it was changed."""
        kind = self._kind
        if kind.sequence in out:
            if out[kind.sequence] != self._number:
                out[kind.sequence], data = self._number, None
            self._number += 1
        name = out.get(kind.type) if kind.named else None
        if name is not None and not (isinstance(name, str) and _TYPE.fullmatch(name)):
            raise StreamInvalid("the type of an event is no name")
        if data is not None and "\n" not in data and "\r" not in data:
            return Event(data, name)
        try:
            return Event(_encode(out), name)
        except ValueError:
            raise StreamInvalid("an event holds a number out of range") from None

    def _text(self, text: str) -> str:
        """Mask a text that is complete, and that comes again and again."""
        if text in self._known:
            return text
        masked = self._masker.text(text)
        if masked == text:
            self._know(text)
        return masked

    def _whole(self, value: dict[str, Any]) -> dict[str, Any]:
        """Mask fields that are complete in one event; the same object when they are clean."""
        if self._said:
            value = _replaced(value, self._said)
        if self._dropped:
            value = without(value, self._dropped)
        text = json.dumps(value, ensure_ascii=False)
        if text in self._known:
            return value
        masked = self._masker.document(text, self._opaque)
        if masked == text:
            self._know(text)
            return value
        found: dict[str, Any] = json.loads(masked)
        return found

    def _know(self, text: str) -> None:
        if len(self._known) < _KNOWN_MAX and len(text) < _KNOWN_SIZE:
            self._known.add(text)


def _at(value: Any, steps: tuple[str, ...]) -> Any:
    for step in steps:
        value = value.get(step) if isinstance(value, dict) else None
    return value


def _place(item: Any, position: int) -> int | str:
    """What tells an element of a list apart over several events."""
    if not isinstance(item, dict):
        return position
    index = item.get("index")
    # A thought and an answer of Gemini both stand first in their events.
    return index if isinstance(index, int) else f"{position}t" if item.get("thought") else position


def _replaced(value: Any, texts: dict[str, str]) -> Any:
    if isinstance(value, str):
        return texts.get(value, value)
    if isinstance(value, dict):
        return {name: _replaced(item, texts) for name, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item, texts) for item in value]
    return value
