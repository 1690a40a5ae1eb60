"""Placeholders that stand for a workload's own values towards the models, and the way back.

Form: ``ANON-KIND0-`` and 12 characters of tag and 1 check character, always 24 of A-Z, 0-9 and the
dash: nothing that JSON, a URL or Markdown would escape, and no placeholder can begin another.
"""

from __future__ import annotations

import hmac
import os
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass

SIZE = 24
ENTRIES_MAX, CHARACTERS_MAX = 10_000, 4 * 1024 * 1024
VALUE_MAX = 4096  # longer ones (key blocks) are masked: they are no names to talk about
AGE_MAX = 24 * 3600.0  # seconds since last used
_MARK = "anon-"
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_FORM = re.compile(r"anon-[a-z0-9]{5}-[a-z0-9]{13}", re.IGNORECASE | re.ASCII)
_UNFINISHED = re.compile(
    r"a(?:n(?:o(?:n(?:-(?:[a-z0-9]{0,5}|[a-z0-9]{5}-[a-z0-9]{0,12}))?)?)?)?\Z",
    re.IGNORECASE | re.ASCII,
)
_BREAK = re.compile(r"[\s<>\"'`]")
AROUND = 4096  # characters before a placeholder that tell whether it stands in a URL
_RUN_MAX = 512


@dataclass(slots=True)
class _Entry:
    value: str
    kind: str
    name: str
    sent: bool
    used: float

    def __repr__(self) -> str:
        return "<a value and its placeholder>"


class Pseudonyms:
    """One workload's values and their placeholders: in memory only, bounded, forgotten with time.

    The same value gets the same placeholder for as long as the process lives: its tag is an HMAC
    under a key that was drawn for this workload and never leaves this object.
    """

    __slots__ = ("_by_name", "_by_value", "_clock", "_key", "_size")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._key = os.urandom(32)
        self._by_value: OrderedDict[str, _Entry] = OrderedDict()  # the longest unused first
        self._by_name: dict[str, _Entry] = {}
        self._size = 0

    def __repr__(self) -> str:
        return f"<Pseudonyms of {len(self._by_value)} values>"

    def __reduce__(self) -> str:
        raise TypeError("a table of pseudonyms is never serialised")

    def __len__(self) -> int:
        return len(self._by_value)

    def stand_in(self, value: str, kind: str, *, sent: bool) -> str:
        """Return the placeholder of `value`, which a rule called `kind` found.

        `sent`: the workload itself wrote it; only such a value is ever put back.
        """
        now = self._clock()
        entry = self._by_value.get(value)
        if entry is None:
            entry = _Entry(value, kind, self._unused(value, kind), sent, now)
            self._by_value[value] = self._by_name[entry.name] = entry
            self._size += len(value)
        else:
            self._by_value.move_to_end(value)
            entry.used, entry.sent = now, entry.sent or sent
        self._forget(now)
        return entry.name

    def restore(self, text: str, kinds: Set[str], before: str = "") -> tuple[str, int, int]:
        """Return `text` with the values of `kinds` put back, how many, and how many are unknown.

        Matched in either case, since models change it. A placeholder inside a URL stays: whoever
        is led to open that would carry the value out. `before` is what precedes `text`. Unknown is
        what has the form of a placeholder but is altered, forgotten, or not of this workload.
        """
        if not marked(text):
            return text, 0, 0
        self._forget(self._clock())
        parts, at, restored, unknown = [], 0, 0, 0
        for match in _FORM.finditer(text):
            entry = self._by_name.get(match[0].upper())
            if entry is None:
                unknown += 1
            elif entry.sent and entry.kind in kinds and not _in_url(text, match.start(), before):
                parts += [text[at : match.start()], entry.value]
                at = match.end()
                restored += 1
        return "".join([*parts, text[at:]]), restored, unknown

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Yield where this workload's own placeholders stand in `text`."""
        if self._by_name and marked(text):
            for match in _FORM.finditer(text):
                if match[0].upper() in self._by_name:
                    yield match.span()

    def _unused(self, value: str, kind: str) -> str:
        name, tries = "", 0
        while not name or name in self._by_name:
            data = b"%d:%s" % (tries, value.encode("utf-8", "surrogatepass"))
            name = _name(kind, hmac.digest(self._key, data, "sha256"))
            tries += 1
        return name

    def _forget(self, now: float) -> None:
        while self._by_value:
            oldest = next(iter(self._by_value.values()))
            full = len(self._by_value) > ENTRIES_MAX or self._size > CHARACTERS_MAX
            if not full and now - oldest.used <= AGE_MAX:
                return
            del self._by_value[oldest.value], self._by_name[oldest.name]
            self._size -= len(oldest.value)


def marked(text: str) -> bool:
    """False: there is no placeholder in `text`, whoever's it may be."""
    return _MARK in text.lower()


def unfinished(text: str) -> int:
    """Return where at the end of `text` a placeholder may have begun; len(text) when nowhere."""
    match = _UNFINISHED.search(text, max(0, len(text) - SIZE + 1))
    return match.start() if match else len(text)


def check_character(text: str) -> str:
    """Return the check character of `text` in A-Z and 0-9: ISO/IEC 7064, MOD 37,36."""
    product = 36
    for character in text:
        product = ((product + _ALPHABET.index(character)) % 36 or 36) * 2 % 37
    return _ALPHABET[(1 - product) % 36]


def _name(kind: str, digest: bytes) -> str:
    word = "".join(c for c in kind.upper() if c in _ALPHABET)[:5].ljust(5, "0")
    number, tag = int.from_bytes(digest, "big"), ""
    for _ in range(12):
        number, digit = divmod(number, 36)
        tag += _ALPHABET[digit]
    return f"ANON-{word}-{tag}{check_character(word + tag)}"


def _in_url(text: str, at: int, before: str) -> bool:
    """Whether text[at:], which `before` precedes, goes on with a URL, a Markdown destination or an
    attribute that holds one."""
    near = text[max(0, at - AROUND) : at]
    before = (before + near)[-AROUND:] if len(near) < AROUND else near
    breaks = (match.end() for match in _BREAK.finditer(before, len(before) - _RUN_MAX))
    run = before[max(breaks, default=0) :]
    if len(run) >= _RUN_MAX or "//" in run or "](" in run or "www." in run.lower():
        return True
    opened = before.rfind("<")
    if opened > before.rfind(">") and "//" in before[opened:]:
        return True
    for quote in ('"', "'"):
        begun = before.rfind(quote)
        if before[:begun].rstrip().endswith("=") and "//" in before[begun:]:
            return True
    return False
