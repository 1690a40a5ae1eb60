"""JSON that is changed only where it must be: strings are masked decoded, all else is copied."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from json.decoder import scanstring  # type: ignore[attr-defined]  # absent from the stubs only
from typing import Any, NamedTuple, NoReturn

import msgspec

from proxy.errors import ProxyError

DEPTH_MAX = 64
INNER_MAX = 3  # JSON in strings of JSON in strings
SHORT = 8  # no secret is shorter, unless the name in front of it tells
CARD = re.compile(r"[2-6]\d{12,18}")  # a number that may be one of a payment card
_NUMBER = re.compile(rf"(?<![\w.+-]){CARD.pattern}(?![\w.+])")
_NUMBER_MIN, _LONG = 13, 10**12
_COLON = re.compile(r"[ \t\r\n]*:[ \t\r\n]*")
_TELLING = re.compile(r"pass|pwd|secret|token|key|credential|authorization", re.IGNORECASE)
_STRUCTURE = re.compile(r"[{}\[\],]")
_KEY_END = re.compile(r'"[ \t\r\n]*:')
_ESCAPED_END = re.compile(r'\\"[ \t\r\n]*:')
NOTHING: Mapping[str, Any] = {}

Mask = Callable[[str, str], str]
Suspects = Callable[[str], bool]


class JsonInvalid(ValueError):
    """The document is not JSON as strictly as we read it; the message holds no data."""


class JsonTooDeep(JsonInvalid):
    """The document nests deeper than DEPTH_MAX."""


class Untouchable(ProxyError):
    """A secret stands where nothing may be changed: in an opaque field, or in signed text."""

    code = "secret_in_opaque"
    fix = "Leave out the part of the conversation that holds it."


@dataclass(slots=True, eq=False)
class Frame:
    """An object or array; `index` counts the commas before it in the array around it."""

    array: bool
    start: int
    around: Frame | None
    index: int
    key: str | None = None
    end: int = 0
    commas: list[int] = field(default_factory=list)
    dropped: set[int] = field(default_factory=set)
    names: dict[str, int] = field(default_factory=dict)


class String(NamedTuple):
    """A string or long number at `start` to `end`; `key` is None for a key itself.

    `before` is the telling key in front of a value, as a rule must see it, else "".
    """

    start: int
    end: int
    plain: str
    before: str
    key: str | None
    frame: Frame


class Document(NamedTuple):
    """A valid document. `flat`: its keys, strings and long numbers decoded and joined, each key in
    front of its value as a rule must see it, so that one look tells whether anything is in them.
    """

    text: str
    value: Any
    flat: str


def parse(text: str) -> Any:
    """Return the document; duplicate keys, NaN and depth over 64 raise JsonInvalid."""
    return read(text).value


def read(text: str, inner: int = INNER_MAX) -> Document:
    """Return the document with what one look at all of it needs. Raises as `parse` does.

    `inner`: how deep JSON in strings is read as such.
    """
    try:
        value = _decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        value = None  # also for what it merely does not take, such as lone surrogates
    else:
        keys, flat = _flat(value, inner)
        if keys == _key_ends(text):
            return Document(text, value, flat)
    value = _decoded_strictly(text)
    return Document(text, value, _flat(value, inner)[1])


def _decoded_strictly(text: str) -> Any:
    try:
        return _DECODER.decode(text)
    except JsonInvalid:
        raise
    except json.JSONDecodeError as error:
        raise JsonInvalid(f"{error.msg} at character {error.pos}") from None
    except RecursionError:
        raise JsonTooDeep(f"nested deeper than {DEPTH_MAX}") from None
    except ValueError:
        raise JsonInvalid("a number is too long") from None


def _key_ends(text: str) -> int:
    """Return a number that no valid document with this many different keys falls short of.

    Quotes with a colon behind them: all ends of keys, and strings that begin with a colon. So when
    the document has as many keys as this, none of them was there twice.
    """
    found = len(_KEY_END.findall(text))
    if found and "\\" in text:
        found -= len(_ESCAPED_END.findall(text.replace("\\\\", "")))
    return found


def _flat(value: Any, inner: int) -> tuple[int, str]:
    """Return how many keys there are, and `Document.flat`. Raises JsonTooDeep."""
    keys, parts, numbers, depth = 0, list[str](), list[str](), 0
    level: list[Any] = [value] if type(value) in (dict, list) else [[value]]
    while level:
        if depth >= DEPTH_MAX:
            raise JsonTooDeep(f"nested deeper than {DEPTH_MAX}")
        below: list[Any] = []
        for around in level:
            named = type(around) is dict
            if named:
                keys += len(around)
                items: Iterable[Any] = itertools.chain.from_iterable(around.items())
            else:
                items = around
            for item in items:
                kind = type(item)
                if kind is str:
                    parts.append(item)
                    if "\\" in item and (within := _within(item, inner)):
                        parts.append(within.flat)
                    continue
                if kind is dict:
                    below.append(item)
                elif kind is list:  # behind the key once more, which may tell of what is in it
                    below.append([*parts[-1:], *item])
                elif kind is int and item >= _LONG:
                    numbers.append(str(item))
                if named:
                    parts.append("")  # or the next key would look like the value of this one
        level = below
        depth += 1
    return keys, '": "'.join(parts + numbers)


def rewrite(
    document: Document | str,
    mask: Mask,
    suspects: Suspects | None = None,
    opaque: Set[str] = frozenset(),
    signed: Mapping[str, str] = NOTHING,
) -> str:
    """Return the valid document's text with every string s, keys too, replaced by mask(s, before).

    Strings under SHORT characters are passed over. `before` is the object key in front of a value
    where that key tells of a secret, else "". Whole numbers with the length of a payment card go
    through `mask` as well; a masked one becomes 0, so that the type stays. A string that is itself
    JSON is walked inside. When nothing changes, the text itself is returned. `suspects` may answer
    for many strings at once that nothing in them needs a closer look.

    Values under the keys in `opaque` are looked at, never changed. `signed` maps the key of a
    signature to the key of the text beside it that it signs: where that text would change, their
    object is left out of its list. Raises Untouchable where neither can be done.
    """
    return _rewrite(document, mask, suspects, opaque, signed, INNER_MAX)


def _rewrite(
    document: Document | str,
    mask: Mask,
    suspects: Suspects | None,
    opaque: Set[str],
    signed: Mapping[str, str],
    inner: int,
) -> str:
    if suspects:
        document = read(document, inner) if isinstance(document, str) else document
        if not suspects(document.flat):
            return document.text
    text = document if isinstance(document, str) else document.text
    found = list(strings(text))
    edits: list[tuple[int, int, str]] = []
    shortened: set[Frame] = set()
    for item in _suspected(found, suspects, inner) if suspects else found:
        if item.key in opaque:
            if mask(item.plain, "") != item.plain:
                raise Untouchable(f"A secret was found in the field {item.key}.")
            continue
        masked = _masked(item, mask, suspects, inner)
        if masked == item.plain:
            continue
        if item.key is None:
            masked = _unlike(masked, item.frame.names)
        edits.append((item.start, item.end, encode(masked) if text[item.start] == '"' else "0"))
        for signature, beside in signed.items():
            if item.key == beside and any(
                other.key == signature and other.frame is item.frame for other in found
            ):
                shortened.add(_leave_out(item.frame, beside))
    spans = [span for frame in shortened for span in _left_out(frame)]
    edits = [edit for edit in edits if not any(a <= edit[0] < b for a, b in spans)]
    return edited(text, sorted([*edits, *((a, b, "") for a, b in spans)]))


def encode(text: str) -> str:
    """Return `text` as a JSON string; lone surrogates stay escapes, the rest is not escaped."""
    quoted = json.dumps(text, ensure_ascii=False)
    try:
        quoted.encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(text)
    return quoted


def without(value: Any, names: Set[str]) -> Any:
    """Return `value` with every field called one of `names` emptied; itself if there is none."""
    if isinstance(value, dict):
        kept = {
            name: None if name in names and item is not None else without(item, names)
            for name, item in value.items()
        }
        return kept if any(kept[name] is not value[name] for name in kept) else value
    if isinstance(value, list):
        items = [without(item, names) for item in value]
        return items if any(a is not b for a, b in zip(items, value, strict=True)) else value
    return value


def before_value(key: str) -> str:
    """Return what a rule must see in front of the value under `key`; "" if it tells nothing."""
    return f'{key[-40:]}": "' if _TELLING.search(key) else ""


def _within(plain: str, inner: int) -> Document | None:
    """Return the document that a string holds, if it holds one."""
    if not inner or plain.lstrip()[:1] not in ("{", "["):
        return None
    try:
        return read(plain, inner - 1)
    except JsonInvalid:
        return None


def _suspected(found: Sequence[String], suspects: Suspects, inner: int) -> Iterator[String]:
    """Yield what needs a closer look, of strings that together do: most documents hold few."""
    if len(found) <= 1:
        yield from found
        return
    half = len(found) // 2
    for some in (found[:half], found[half:]):
        parts = [item.before + item.plain for item in some]
        parts += [d.flat for s in some if "\\" in s.plain and (d := _within(s.plain, inner))]
        if suspects("\0".join(parts)):
            yield from _suspected(some, suspects, inner)


def _masked(item: String, mask: Mask, suspects: Suspects | None, inner: int) -> str:
    plain = item.plain
    if within := _within(plain, inner):
        plain = _rewrite(within, mask, suspects, frozenset(), NOTHING, inner - 1)
    return mask(plain, item.before)  # also what shows only across the strings inside


def _unlike(name: str, names: dict[str, int]) -> str:
    """Return a masked key so that no object has it twice."""
    names[name] = names.get(name, 0) + 1
    return name if names[name] == 1 else f"{name}-{names[name]}"


def _leave_out(frame: Frame, field_: str) -> Frame:
    """Mark an object to be left out of its list, and return that. Raises Untouchable."""
    around = frame.around
    if around is None or not around.array:
        raise Untouchable(f"A secret was found in the field {field_}, which is signed.")
    around.dropped.add(frame.index)
    if len(around.dropped) > len(around.commas):
        raise Untouchable(
            f"A secret was found in the field {field_}, and nothing stands beside it."
        )
    return around


def edited(text: str, edits: Iterable[tuple[int, int, str]]) -> str:
    """Return `text` with new text in the place of spans: (start, end, new), in order."""
    parts, at = [], 0
    for start, end, new in edits:
        parts += [text[at:start], new]
        at = end
    return "".join([*parts, text[at:]]) if parts else text


def _left_out(frame: Frame) -> Iterator[tuple[int, int]]:
    """Yield the spans to delete for the dropped elements of an array, with their commas."""
    kept = False
    for index in range(len(frame.commas) + 1):
        if index not in frame.dropped:
            kept = True
            continue
        first = frame.commas[index - 1] if index else frame.start
        last = frame.commas[index] if index < len(frame.commas) else frame.end
        yield (first, last) if kept else (first + 1, last + 1)


def strings(text: str) -> Iterator[String]:
    """Yield every string and long number of a document already known to be valid.

    In such a one, a quote outside a string can only begin one.
    """
    frame = Frame(True, -1, None, 0)
    owner, key, before, at = frame, "", "", 0
    while True:
        quote = text.find('"', at)
        gap_end = quote if quote >= 0 else len(text)
        if gap_end - at >= _NUMBER_MIN:
            for number in _NUMBER.finditer(text, at, gap_end):
                yield String(number.start(), number.end(), number[0], "", key, frame)
        for mark in _STRUCTURE.finditer(text, at, gap_end):
            character, place = mark[0], mark.start()
            if character == ",":
                frame.commas.append(place)
            elif character in "{[":
                around = frame
                frame = Frame(character == "[", place, around, len(around.commas), key)
                if character == "{":
                    key = ""
            else:
                frame.end = place
                if frame is owner:
                    before = ""  # what the name told of was no string
                key = frame.key or ""
                if frame.around is None:
                    raise JsonInvalid("a bracket too many")
                frame = frame.around
        if quote < 0:
            return
        plain, at = scanstring(text, quote + 1)
        if colon := _COLON.match(text, at):
            if len(plain) >= SHORT:
                yield String(quote, at, plain, "", None, frame)
            owner, key, before, at = frame, plain, before_value(plain), colon.end()
            if text[at] != '"':
                continue
            quote = at
            plain, at = scanstring(text, at + 1)
        if len(plain) >= SHORT or before:
            yield String(quote, at, plain, before, key, frame)
        before = ""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise JsonInvalid("an object has a key twice")
    return table


def _constant(_name: str) -> NoReturn:
    raise JsonInvalid("NaN and Infinity are not JSON")


_decode = msgspec.json.Decoder().decode
_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_constant)
