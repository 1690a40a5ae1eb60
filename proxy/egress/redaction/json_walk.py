"""JSON that is changed only where it must be: strings are masked decoded, all else is copied."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from json.decoder import scanstring  # type: ignore[attr-defined]  # absent from the stubs only
from typing import Any, NoReturn

DEPTH_MAX = 64
SHORT = 8  # no secret is shorter, unless the name in front of it tells
_NUMBER = re.compile(r"(?<![\w.+-])[2-6]\d{12,18}(?![\w.+])")
_NUMBER_MIN = 13
_COLON = re.compile(r"[ \t\r\n]*:")
_TELLING = re.compile(r"pass|pwd|secret|token|key|credential|authorization", re.IGNORECASE)
_BRACKET = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|([\[{])|([\]}])')


class JsonInvalid(ValueError):
    """The document is not JSON as strictly as we read it; the message holds no data."""


class JsonTooDeep(JsonInvalid):
    """The document nests deeper than DEPTH_MAX."""


def parse(text: str) -> Any:
    """Return the document; duplicate keys, NaN and depth over 64 raise JsonInvalid."""
    try:
        document = _DECODER.decode(text)
    except JsonInvalid:
        raise
    except json.JSONDecodeError as error:
        raise JsonInvalid(f"{error.msg} at character {error.pos}") from None
    except RecursionError:
        raise JsonTooDeep(f"nested deeper than {DEPTH_MAX}") from None
    except ValueError:
        raise JsonInvalid("a number is too long") from None
    # Only now, since the expression takes linear time on valid documents alone.
    if text.count("[") + text.count("{") > DEPTH_MAX:
        _check_depth(text)
    return document


def rewrite(
    text: str, mask: Callable[[str, str], str], suspects: Callable[[str], bool] | None = None
) -> str:
    """Return the valid document `text` with every string s, keys too, replaced by mask(s, before).

    Strings under SHORT characters are passed over. `before` is the object key in front of a value
    where that key tells of a secret, else "". Whole numbers with the length of a payment card go
    through `mask` as well; a masked one becomes 0, so that the type stays. When nothing changes,
    `text` itself is returned. `suspects` may answer for all strings at once, one NUL between them,
    that nothing in them needs a closer look.
    """
    found = list(_strings(text))
    if suspects and not suspects("\0".join([before + plain for *_, plain, before in found])):
        return text
    parts: list[str] = []
    at = 0
    for start, end, plain, before in found:
        masked = mask(plain, before)
        if masked is plain or masked == plain:
            continue
        parts += [text[at:start], encode(masked) if text[start] == '"' else "0"]
        at = end
    if not parts:
        return text
    parts.append(text[at:])
    return "".join(parts)


def _strings(text: str) -> Iterator[tuple[int, int, str, str]]:
    """Yield start, end, decoded text, and the telling key in front of it, of each string.

    In a document already known to be valid, a quote outside a string can only begin one.
    """
    before, at = "", 0
    while True:
        quote = text.find('"', at)
        gap_end = quote if quote >= 0 else len(text)
        if gap_end - at >= _NUMBER_MIN:
            for number in _NUMBER.finditer(text, at, gap_end):
                yield number.start(), number.end(), number[0], ""
        if quote < 0:
            return
        plain, at = scanstring(text, quote + 1)
        is_key = _COLON.match(text, at) is not None
        if len(plain) >= SHORT or before:
            yield quote, at, plain, "" if is_key else before
        before = f'{plain[-40:]}": "' if is_key and _TELLING.search(plain) else ""


def encode(text: str) -> str:
    """Return `text` as a JSON string; lone surrogates stay escapes, the rest is not escaped."""
    quoted = json.dumps(text, ensure_ascii=False)
    try:
        quoted.encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(text)
    return quoted


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise JsonInvalid("an object has a key twice")
    return table


def _constant(_name: str) -> NoReturn:
    raise JsonInvalid("NaN and Infinity are not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_constant)


def _check_depth(text: str) -> None:
    depth = 0
    for match in _BRACKET.finditer(text):
        if match[1]:
            depth += 1
            if depth > DEPTH_MAX:
                raise JsonTooDeep(f"nested deeper than {DEPTH_MAX}")
        elif match[2]:
            depth -= 1
