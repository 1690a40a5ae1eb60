"""JSON that is changed only where it must be: strings are masked decoded, all else is copied."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

DEPTH_MAX = 64
SHORT = 8  # no secret is shorter, unless the name in front of it tells
# In a document already known to be valid, a quote can only begin a string.
_TOKEN = re.compile(
    r'"([^"\\]*(?:\\.[^"\\]*)*)"([ \t\r\n]*:)?|(?<![\w.+-])[2-6]\d{12,18}(?![\w.+])'
)
_TELLING = re.compile(r"pass|pwd|secret|token|key|credential|authorization", re.IGNORECASE)
_BRACKET = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|([\[{])|([\]}])')


class JsonInvalid(ValueError):
    """The document is not JSON as strictly as we read it; the message holds no data."""


class JsonTooDeep(JsonInvalid):
    """The document nests deeper than DEPTH_MAX."""


def parse(text: str) -> Any:
    """Return the document; duplicate keys, NaN and depth over 64 raise JsonInvalid."""
    try:
        document = json.loads(text, object_pairs_hook=_unique, parse_constant=_constant)
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
    if suspects and not suspects("\0".join([before + plain for _, plain, before in found])):
        return text
    parts: list[str] = []
    at = 0
    for match, plain, before in found:
        masked = mask(plain, before)
        if masked is plain or masked == plain:
            continue
        new = "0" if match[1] is None else encode(masked) + (match[2] or "")
        parts += [text[at : match.start()], new]
        at = match.end()
    if not parts:
        return text
    parts.append(text[at:])
    return "".join(parts)


def _strings(text: str) -> Iterator[tuple[re.Match[str], str, str]]:
    """Yield the token, the decoded string, and the telling key in front of it."""
    before = ""
    for match in _TOKEN.finditer(text):
        raw, is_key = match[1], match[2]
        if raw is None:
            yield match, match[0], ""
            continue
        plain = _decode(raw) if "\\" in raw else raw
        if len(plain) >= SHORT or before:
            yield match, plain, "" if is_key else before
        before = f'{plain[-40:]}": "' if is_key and _TELLING.search(plain) else ""


def encode(text: str) -> str:
    """Return `text` as a JSON string; lone surrogates stay escapes, the rest is not escaped."""
    quoted = json.dumps(text, ensure_ascii=False)
    try:
        quoted.encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(text)
    return quoted


def _decode(raw: str) -> str:
    decoded: str = json.loads(f'"{raw}"')
    return decoded


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise JsonInvalid("an object has a key twice")
    return table


def _constant(_name: str) -> NoReturn:
    raise JsonInvalid("NaN and Infinity are not JSON")


def _check_depth(text: str) -> None:
    depth = 0
    for match in _BRACKET.finditer(text):
        if match[1]:
            depth += 1
            if depth > DEPTH_MAX:
                raise JsonTooDeep(f"nested deeper than {DEPTH_MAX}")
        elif match[2]:
            depth -= 1
