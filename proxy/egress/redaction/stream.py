"""Masking a text that arrives in pieces: hold back what may be the beginning of a secret.

A channel holds text only while a beginning is live: a keyword of a rule followed by characters
its value may have, digits that may become a number, a prefix of a key in use. All other text
passes at once. At most `CAP` characters are held.
"""

from __future__ import annotations

import re

from ahocorasick_rs import AhoCorasick

from .rules import Rule, RuleBook
from .scan import Finding
from .text import Masker
from .views import Work

CAP = 320
_LEFT = 64  # released text kept as context for borders and keywords
_DELIMITER = re.compile(r"[\s\"'<>`|]")
_TAIL = re.compile(r"[A-Za-z0-9_.~%+/=\\-]*")
# Digits with what may stand between them; two capitals may begin an IBAN.
_DIGITS = re.compile(
    r"(?:[+(0-9][0-9 ().+/-]*|(?<![A-Za-z0-9])[A-Z](?:[A-Z](?:\d(?:\d[A-Z0-9 ]*)?)?)?)\Z"
)
_BLOCK = re.compile(r"-{1,5}(?:B[A-Z0-9 ]{0,60}-{0,5})?\Z")
# What may stand behind a name that tells, up to and with its unfinished value (see rules.py).
_ASSIGNED = re.compile(
    r"[\w.-]{0,24}(?:[ \t][\w.-]{0,16}){0,2}[\\\"'`\])]{0,3}"
    r"(?:,?\s{0,24}[\"']?[a-z_]{0,13}[\"']?\s{0,3}\Z"
    r"|(?:,?\s{1,24}[\"']?[a-z_]{0,8}value[\"']?)?(?:\s{0,2}:\s{0,2}&?\w{0,7})?\s{0,4}"
    r"(?:[:=?.|,>(]{1,5}|:?\si(?:st?)?(?:\s|\Z)|(?<=\s)[\"'`])\s{0,26}"
    r"(?:(?:bearer|basic|token|[a-z-]{0,9})[\s:]{0,3})?[rbuf]?[\\\"'`]{0,4}[^\s\"'`<>]*\Z)",
    re.IGNORECASE | re.ASCII,
)
# A word that may be a value without a fixed beginning: it has a digit, or begins in capitals.
_MIXED = re.compile(r"\S*\d|[A-Z]{1,6}\Z")


class HoldBack:
    """Where a text may be the unfinished beginning of a match; built once from the rules."""

    def __init__(self, book: RuleBook) -> None:
        tokens = [rule for rule in book.rules if rule.hold == "token"]
        self._grows = {word: rule for rule in tokens if rule.grows for word in rule.keywords}
        bounded = {word for rule in tokens if rule.bounded for word in rule.keywords}
        free = {word for rule in tokens if not rule.bounded for word in rule.keywords}
        named = {w for rule in book.rules if rule.hold == "assignment" for w in rule.keywords}
        self._tokens = re.compile(
            f"(?<![A-Za-z0-9_])(?:{_any(bounded)})|(?:{_any(free)})", re.IGNORECASE | re.ASCII
        )
        self._names = AhoCorasick(sorted(named))
        self._words = {rule.group for rule in book.rules if rule.hold == "word"}
        self._mixed = {rule.group for rule in book.rules if rule.hold == "mixed"}
        every = bounded | free | named
        self._partial = {word[:n] for word in every for n in range(1, len(word))}
        self._longest = max(len(word) for word in every)

    def start(self, text: str, released: int, groups: frozenset[str]) -> tuple[int, Rule | None]:
        """Return from where on `text` must be held, and the growing rule if that is why.

        `released` characters at the front are context only. len(text): nothing need be held.
        `groups` are the rule groups to mask: kinds that show only at their end hold every word.
        """
        point, rule = len(text), None
        cut = released
        for delimiter in _DELIMITER.finditer(text, released):
            cut = delimiter.end()
        token = self._tokens.search(text, cut)
        if self._words & groups:
            point = cut
        elif token:
            point, rule = token.start(), self._grows.get(token[0].lower())
        if self._mixed & groups and _MIXED.match(text, cut):
            point = cut
        for size in range(min(self._longest, len(text) - released), 0, -1):
            if text[-size:].lower() in self._partial:
                point = min(point, len(text) - size)
                break
        # No more than CAP is ever held, so nothing earlier counts; the shapes take quadratic time.
        near = max(released, len(text) - CAP)
        lowered = text[near:].encode("ascii", "replace").decode("ascii").lower()
        for _, start, end in self._names.find_matches_as_indexes(lowered, overlapping=True):
            if near + start >= point:
                break
            if _ASSIGNED.match(text, near + end):
                point, rule = near + start, None
                break
        for shape in (_DIGITS, _BLOCK):
            match = shape.search(text, near)
            if match and match.start() < point:
                point, rule = match.start(), None
        return point, rule


class Channel:
    """One stream of text, such as one field of one choice. Feed it, and flush it at its end."""

    __slots__ = ("_held", "_hold", "_left", "_masker", "_swallow", "_swallowed")

    def __init__(self, masker: Masker, hold: HoldBack) -> None:
        self._masker = masker
        self._hold = hold
        self._left = ""
        self._held = ""
        self._swallow: Rule | None = None
        self._swallowed = ""

    @property
    def pending(self) -> bool:
        """True while text is held back."""
        return bool(self._held)

    @property
    def in_block(self) -> bool:
        """True inside a block such as a private key, whose end has not come yet."""
        return self._swallow is not None and self._swallow.hold == "block"

    def feed(self, text: str) -> str:
        """Take the next piece; return what can be passed on now, masked. Raises ScanFailed."""
        if self._swallow:
            text = self._drop(text)
        if not text:
            return ""
        return self._advance(self._held + text, final=False)

    def flush(self) -> str:
        """The stream has ended in good order: return the rest, masked. Raises ScanFailed."""
        held, self._swallow, self._swallowed = self._held, None, ""
        return self._advance(held, final=True) if held else ""

    def drop(self) -> None:
        """The stream has broken off: forget what was held. It is never passed on unmasked."""
        self._held = ""

    def _advance(self, text: str, *, final: bool) -> str:
        # The beginning of a key in use is not masked as such before all of it could have come.
        unfinished = len(text) if final else self._masker.guard.holds(text)
        known = self._masker.keys(text[:unfinished])
        text = known + text[unfinished:]
        left = len(self._left)
        whole = self._left + text
        if final:
            found = self._masker.find(whole, Work())
            return self._release(whole, found, left, len(whole))
        point, rule = self._hold.start(whole, left, self._masker.treatment.groups)
        furthest = left + len(known)
        point = min(point, furthest)
        if point <= left and len(text) <= CAP and "-----" not in text:
            self._held = text
            return ""
        found = self._masker.find(whole, Work())
        for item in found:
            if item.rule and item.rule.hold == "block" and item.end == len(whole):
                # Mask now and drop what follows, up to the end of the block.
                self._swallow = item.rule
                self._swallowed = whole[item.start :]
                return self._release(whole, found, left, len(whole))
            if item.start < point <= item.end:
                point = max(left, item.start)
        if furthest - point > CAP:
            if rule and not (found and found[-1].end == len(whole)):
                # An unbroken token of a growing kind counts as found, up to its end.
                found = [item for item in found if item.end <= point]
                found.append(Finding(point, furthest, rule))
            if found and found[-1].end >= furthest:
                self._swallow = found[-1].rule
                return self._release(whole, found, left, len(whole))
            point = furthest
        return self._release(whole, [item for item in found if item.end <= point], left, point)

    def _release(self, whole: str, found: list[Finding], left: int, point: int) -> str:
        passed = self._masker.replace(whole[:point], found, left)
        if found:  # as in a finished text: what is gone now may have hidden another value's limits
            passed = self._masker.text(passed, self._left)
        self._held = whole[point:]
        self._left = whole[max(0, point - _LEFT) : point]
        return passed

    def _drop(self, text: str) -> str:
        """Drop what still belongs to the masked value; return what follows it."""
        rule = self._swallow
        if rule is None:
            return text
        if rule.hold != "block":
            match = _TAIL.match(text)
            end = match.end() if match else 0
            if end < len(text):
                self._swallow, self._left = None, "]"
            return text[end:]
        whole = self._swallowed + text
        match = rule.confirm.match(whole)
        end = match.end() if match else len(self._swallowed)
        if end == len(whole) and not _ended(rule, whole):
            # Keep the beginning for the pattern, and enough of the end to see the END mark whole.
            begin = self._swallowed.find("-----", 5) + 5
            self._swallowed = whole[:begin] + whole[begin:][-120:]
            return ""
        self._swallow, self._swallowed, self._left = None, "", "]"
        return whole[end:]


def _ended(rule: Rule, text: str) -> bool:
    return "-----END" in text and text.endswith("-----")


def _any(words: set[str]) -> str:
    return "|".join(re.escape(word) for word in sorted(words, key=lambda w: (-len(w), w)))
