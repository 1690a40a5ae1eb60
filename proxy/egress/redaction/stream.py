"""Masking a text that arrives in pieces: hold back what may be the beginning of a secret.

A channel holds text only while a beginning is live in one of the text's views: a keyword of a rule
followed by characters its value may have, digits that may become a number, an escape or an encoded
run cut off, a prefix of a key in use. All other text passes at once. Of ordinary kinds at most CAP
characters of a view are held; of encoded blocks up to HELD_MAX characters of the text itself.
"""

from __future__ import annotations

import re

from . import encodings
from .hold import CAP, STIRRED, HoldBack
from .rules import Rule
from .scan import Finding
from .text import Masker
from .views import DecodeLimit, View, Work

HELD_MAX = 16 * 1024
_LEFT = 400  # released text kept as context: borders and keywords, which codes make longer
_LONG = 512  # from this length on, what is held is looked at only when it has grown by an eighth
_TAIL = re.compile(r"[A-Za-z0-9_.~%+/=\\-]*")
_CODED_TAIL = re.compile(r"[^\s\"'<>]*")
_BLOCK_TAIL = re.compile(r"[A-Za-z0-9+/=\s\\:,.%&#;_-]*")
_SHOWN = 64  # as much of a token that is still growing says whether it is of its kind
_NOWHERE = 1 << 62
_WORD_END = re.compile(r"[A-Za-z0-9_]*\Z")


class Channel:
    """One stream of text, such as one field of one choice. Feed it, and flush it at its end."""

    __slots__ = (
        *("_block", "_held", "_hold", "_left", "_masker", "_phrases", "_stirred", "_swallow"),
        *("_waits", "_wake", "_word"),
    )

    def __init__(self, masker: Masker, hold: HoldBack) -> None:
        self._masker = masker
        self._hold = hold
        self._left = ""
        self._held = ""
        self._wake = 0
        self._block = False
        self._swallow: re.Pattern[str] | None = None  # what of the coming text is masked already
        self._word = ""
        self._waits = hold.words(masker.treatment.groups)
        self._phrases = hold.phrases(masker.treatment.groups)
        self._stirred = False  # a name stands near that would make a secret of a value

    @property
    def pending(self) -> bool:
        """True while text is held back."""
        return bool(self._held)

    @property
    def in_block(self) -> bool:
        """True inside a block such as a private key, whose end has not come yet."""
        return self._swallow is _BLOCK_TAIL or (self._block and self.pending)

    def feed(self, text: str) -> str:
        """Take the next piece; return what can be passed on now, masked. Raises ScanFailed."""
        if not self._held and self._swallow is None:
            # Most pieces are words that begin nothing: they pass after one look.
            quiet = self._hold.quiet(self._word + text, self._stirred)
            if quiet is not None and self._passes(quiet[0]):
                self._word = quiet[0]
                self._stirred = self._stirred or quiet[1]
                self._left = (self._left + text)[-_LEFT:]
                return text
        if self._swallow:
            text = self._drop(text)
        if not text:
            return ""
        held = self._held + text
        if len(held) < self._wake and "-" not in text:  # which may be the end of a block
            self._held = held
            return ""
        passed = self._advance(held)
        if not self._held:
            match = _WORD_END.search(self._left, max(0, len(self._left) - STIRRED))
            self._word = match[0] if match else ""
        long = _LONG // 4 if self._block else _LONG
        self._wake = len(self._held) * 9 // 8 if len(self._held) > long else 0
        return passed

    def _passes(self, word: str) -> bool:
        if not word:
            return not self._phrases
        return not (self._waits or self._masker.guard.begins(word))

    def flush(self) -> str:
        """The stream has ended in good order: return the rest, masked. Raises ScanFailed."""
        held, self._swallow = self._held, None
        if not held:
            return ""
        text = self._masker.keys(held)
        whole = self._left + text
        self._word, self._stirred, self._wake = "", True, 0
        return self._release(whole, self._masker.find(whole, Work()), len(self._left), len(whole))

    def drop(self) -> None:
        """The stream has broken off: forget what was held. It is never passed on unmasked."""
        self._held = ""
        self._wake = 0

    def _advance(self, text: str) -> str:
        masker, left = self._masker, len(self._left)
        # The beginning of a key in use is not masked as such before all of it could have come.
        unfinished = masker.guard.holds(text)
        known = masker.keys(text[:unfinished])
        text = known + text[unfinished:]
        whole = self._left + text
        views = list(masker.scanner.views(whole, Work(), final=False))
        self._stirred = any(self._hold.stirred(view.text[-STIRRED:]) for view, _ in views)
        furthest = left + len(known)
        point, firm, growing = furthest, furthest, None
        for view, _ in views:
            at, rule = self._live(view, left)
            if at < point:
                point, growing = at, rule
            if view.parent and view.pending is not None:
                firm = min(firm, view.parent.span(view.pending, view.pending + 1)[0])
        if min(point, firm) <= left and len(text) <= CAP and "-----" not in text:
            self._held = text
            return ""
        found: list[Finding] = []
        self._block = False
        for view, hits in views:
            for start, end, rule in masker.confirm(view, hits):
                found.append(Finding(*view.span(start, end), rule))
                if rule and rule.hold == "block" and end == len(view.text):
                    firm, self._block = min(firm, found[-1].start), True  # its end may come yet
        found = masker.disjoint(found)
        for item in found:
            if item.start < point <= item.end:
                point = max(left, item.start)
        if all(len(view.text) - view.after(point) > CAP for view, _ in views):
            if growing and growing.check and not growing.check(whole[point : point + _SHOWN]):
                growing = None
            if growing and not (found and found[-1].end == len(whole)):
                # An unbroken token of a growing kind counts as found, up to its end.
                found = [item for item in found if item.end <= point]
                found.append(Finding(point, furthest, growing))
            if found and found[-1].end >= furthest <= firm:
                self._swallow = _CODED_TAIL if len(views) > 1 else _TAIL
                return self._release(whole, found, left, len(whole))
            point = furthest
        point = max(left, min(point, firm))
        for item in found:
            if item.start < point < item.end:  # an encoded run in it that is not at its end
                point = max(left, item.start)
        if len(whole) - point > HELD_MAX:
            if not (found and found[-1].end == len(whole)):
                raise DecodeLimit("An encoded text in a stream is too long.")
            self._swallow = _BLOCK_TAIL if self._block else _CODED_TAIL
            return self._release(whole, found, left, len(whole))
        return self._release(whole, [item for item in found if item.end <= point], left, point)

    def _live(self, view: View, left: int) -> tuple[int, Rule | None]:
        """Return from where on the text must be held by what `view` ends in."""
        text = view.text
        at, rule = self._hold.start(text, view.after(left), self._masker.treatment.groups)
        first = min(
            encodings.begun(text), self._masker.guard.holds(text) if view.parent else len(text)
        )
        if first < at:
            at, rule = first, None
        return (view.span(at, at + 1)[0], rule) if at < len(text) else (_NOWHERE, None)

    def _release(self, whole: str, found: list[Finding], left: int, point: int) -> str:
        passed = self._masker.replace(whole[:point], found, left)
        if found:  # as in a finished text: what is gone now may have hidden another value's limits
            passed = self._masker.text(passed, self._left)
        self._held = whole[point:]
        self._left = (self._left + passed)[-_LEFT:]
        return passed

    def _drop(self, text: str) -> str:
        """Drop what still belongs to the masked value; return what follows it."""
        match = self._swallow.match(text) if self._swallow else None
        end = match.end() if match else 0
        if end < len(text):
            self._swallow = None
        return text[end:]
