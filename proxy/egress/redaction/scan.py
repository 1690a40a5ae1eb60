"""One pass of hyperscan over each view of a text, then a close look only where it pointed."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator
from typing import NamedTuple

import hyperscan

from . import encodings
from .actions import Treatment, treat
from .checks import entropy, monotonous, ours
from .database import Database, Expression, Hit, packed, stored
from .rules import Rule, RuleBook
from .views import Gates, View, Work, cleaned, unfolded
from .views import ScanFailed as ScanFailed  # named with the scanner by those who catch it

WINDOW = 400  # characters looked at on both sides of a hit
REACH = 16_384  # how far back the beginning of a very long token is looked for
NEAR = 60  # how far before a match its keyword may stand
SHORTEST = 8
# The name of a kind in a placeholder is no keyword.
_MASKED = re.compile(r"\[redacted:[a-z0-9-]*\]|\A[a-z0-9:-]{0,40}\]")
_TOKEN = string.ascii_letters + string.digits + "_-.+/=%\\"
# Rules of digits match at so many places that they cost more than all others together. They have a
# database of their own, which only sees what is near three digits with little in between. Where
# these are is asked of the text's shape: digits as "0", what may be between as " ", the rest "x".
_SHAPE = bytes(
    ord("0" if chr(byte) in string.digits else " " if chr(byte) in " ./()-" else "x")
    for byte in range(256)
)
_DIGITS_NEXT = re.compile(rb"0 ?0 ?0").search
_BEFORE, _BEHIND = 160, 64  # bytes round such a place: a number, and its keyword before it
_STRIDE = 512  # bytes that are taken with it unseen: where there is one, there are more
_NUMBER = 64  # no number is longer


class Finding(NamedTuple):
    """`text[start:end]` is a secret of the kind `rule`, or without one a key in use."""

    start: int
    end: int
    rule: Rule | None


class Scanner:
    """All rules in two hyperscan databases.

    Only end offsets are asked for (start offsets would refuse many patterns); the span comes from
    the rule's `re` in a window round the end.
    """

    def __init__(self, book: RuleBook) -> None:
        self.book = book
        main: list[Expression] = []
        numbers: list[Expression] = []
        for number, rule in enumerate(book.rules):
            flags = hyperscan.HS_FLAG_CASELESS if rule.caseless else 0
            (numbers if rule.digits else main).append((number, rule.pattern, flags))
        for number, (gate, once) in enumerate(encodings.GATES, len(book.rules)):
            main.append((number, gate, hyperscan.HS_FLAG_SINGLEMATCH if once else 0))
        ready = stored()
        self._numbers = Database(numbers, ready) if numbers else None
        self._main = Database(main, ready)
        self.presets = {name: treat(book, name) for name in book.classes}

    def packed(self) -> bytes:
        """Return both databases as a file for the next start."""
        return packed([each for each in (self._main, self._numbers) if each])

    def find(self, text: str, treatment: Treatment) -> list[Finding]:
        """Return what `text` holds that `treatment` does not allow, in order, without overlap.

        Encoded values are found too, as the range that their code takes. The workload's own
        placeholders are passed over. Raises ScanFailed and DecodeLimit.
        """
        found: list[Finding] = []
        for view, hits in self.views(text, Work()):
            for start, end, rule in self.confirm(view, hits, treatment) if hits else ():
                found.append(Finding(*view.span(start, end), rule))
        return disjoint(found, treatment) if found else found

    def likely(self, view: View, hits: list[Hit]) -> bool:
        """True if one of `hits` in `view` needs a closer look: its keyword stands near it."""
        return any(_near(self.book.rules[number], view.text, end) for number, end in hits)

    def views(
        self, text: str, work: Work, *, final: bool = True
    ) -> Iterator[tuple[View, list[Hit]]]:
        """Yield every view of `text`, and where rules may match in it.

        Not `final`: more text may follow. Raises ScanFailed and DecodeLimit.
        """
        view: View | None = View(text) if len(text) >= SHORTEST or not final else None
        while view is not None:
            hits, gates = self._scan(view.text)
            yield view, hits
            if encodings.FORM in gates or (not final and "+" in view.text):
                # In a form's data a plus is a space (WHATWG URL, section 5.1); elsewhere it is not.
                spaced = View(view.text.replace("+", " "), view)
                hits, inside = self._scan(spaced.text)
                yield spaced, hits
                if plain := cleaned(spaced, inside, work, final):
                    yield plain, self._scan(plain.text)[0]
            view = unfolded(view, gates, work, final)

    def confirm(self, view: View, hits: list[Hit], treatment: Treatment) -> list[Finding]:
        """Return what of `hits` is a secret, as ranges of the view's text; they may overlap."""
        text = view.text
        windows: dict[int, list[list[int]]] = {}
        for number, at in hits:
            rule = self.book.rules[number]
            if treatment.actions[rule.id] == "allow":
                continue
            spans = windows.setdefault(number, [])
            window = _NUMBER if rule.hold == "digits" else WINDOW
            start = max(0, at - window)
            if ",}" in rule.confirm.pattern:  # as long as it likes: back to where the token begins
                low = max(0, start - REACH)
                start = low + len(text[low:start].rstrip(_TOKEN))
            if spans and start <= spans[-1][1]:
                spans[-1][1] = max(spans[-1][1], at + window)
            else:
                spans.append([start, at + window])
        found: list[Finding] = []
        for number, spans in sorted(windows.items()):  # of equals, the first rule names it
            rule = self.book.rules[number]
            for start, end in spans:
                found += _confirmed(rule, text, start, len(text) if rule.hold == "block" else end)
        if found and treatment.pseudonyms:
            found = _not_ours(found, list(treatment.pseudonyms.spans(text)))
        return found

    def _scan(self, text: str) -> tuple[list[Hit], Gates]:
        """Return (number of the rule, end of the match) of every match, and the open gates."""
        data = text.encode("utf-8", "surrogatepass")
        raw = self._main.scan(data) + self._near_digits(data)
        gates: Gates = {}
        if not raw:
            return raw, gates
        if len(data) != len(text):
            raw = _in_characters(data, raw)
        rules = len(self.book.rules)
        hits = []
        for hit in raw:
            if hit[0] < rules:
                hits.append(hit)
            else:
                gates.setdefault(hit[0] - rules, []).append(hit[1])
        return hits, gates

    def _near_digits(self, data: bytes) -> list[Hit]:
        """Return the matches of the rules of bare digits near any digits."""
        if self._numbers is None:
            return []
        windows: list[list[int]] = []
        shape, at = data.translate(_SHAPE), 0
        while found := _DIGITS_NEXT(shape, at):
            start, at = found.start() - _BEFORE, found.start() + _STRIDE
            if windows and start <= windows[-1][1]:
                windows[-1][1] = at + _BEHIND
            else:
                windows.append([max(0, start), at + _BEHIND])
        return [
            (number, start + end)
            for start, stop in windows
            for number, end in self._numbers.scan(data[start:stop])
        ]


def _near(rule: Rule, text: str, end: int) -> bool:
    if not rule.keywords or rule.hold == "block":
        return True
    near = text[max(0, end - WINDOW - NEAR) : end + WINDOW].lower()
    return any(word in near for word in rule.keywords)


def _in_characters(data: bytes, hits: list[Hit]) -> list[Hit]:
    """Turn ends in bytes into ends in characters, going through `data` once."""
    out = []
    at = characters = 0
    for number, end in sorted(hits, key=lambda hit: hit[1]):
        while end < len(data) and data[end] & 0xC0 == 0x80:
            end -= 1  # an expression may end inside a character
        characters += len(data[at:end].decode("utf-8", "surrogatepass"))
        out.append((number, characters))
        at = end
    return out


def _confirmed(rule: Rule, text: str, start: int, end: int) -> list[Finding]:
    found = []
    group = "secret" if "secret" in rule.confirm.groupindex else 0
    while match := rule.confirm.search(text, start, end):
        while match.end() >= end < len(text):  # cut off by the window, not by itself
            end += REACH
            match = rule.confirm.match(text, match.start(), end) or match
        start = match.end()
        if rule.keywords:
            near = text[max(0, match.start() - NEAR) : match.end()].lower()
            near = _MASKED.sub(" ", near) if "]" in near else near
            if not any(word in near for word in rule.keywords):
                continue
        value = match[group]
        if ours(value):
            continue
        if rule.entropy and (monotonous(value) or entropy(value) < rule.entropy):
            continue
        size = rule.check(value) if rule.check else len(value)
        if size:
            found.append(Finding(match.start(group), match.start(group) + size, rule))
            if size < len(value):
                start = match.start(group) + size  # what the check left may hold another one
        elif rule.hold == "digits":
            start = match.start() + 1  # digits of something else may stand before it: "57 4111 ..."
    return found


def _not_ours(found: list[Finding], spans: list[tuple[int, int]]) -> list[Finding]:
    """Leave out what holds, besides live placeholders, no more than could be a secret."""
    return [
        item
        for item in found
        if item.end
        - item.start
        - sum(max(0, min(item.end, end) - max(item.start, start)) for start, end in spans)
        >= SHORTEST
        or not any(item.start < end and start < item.end for start, end in spans)
    ]


def disjoint(found: list[Finding], treatment: Treatment) -> list[Finding]:
    """Merge what overlaps; the stricter action decides, then the more telling kind names it."""
    found.sort(key=lambda item: (item.start, -item.end))
    merged: list[Finding] = []
    for item in found:
        if merged and item.start < merged[-1].end:
            last = merged[-1]
            rule = last.rule
            if rule is None or item.rule is None:
                rule = None
            elif treatment.stricter(item.rule.id, rule.id) or (
                rule.generic
                and not item.rule.generic
                and not treatment.stricter(rule.id, item.rule.id)
            ):
                rule = item.rule
            merged[-1] = Finding(last.start, max(last.end, item.end), rule)
        else:
            merged.append(item)
    return merged
