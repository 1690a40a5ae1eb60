"""The exact-match guard: finds our own keys, in clear or encoded, in anything that passes.

The keys stay in secret memory, and the guard never reads them again: it keeps fingerprints. So a
key that was replaced or removed goes on being masked, because its provider may honour it for as
long as nobody revoked it there, while nothing of it is left here that could be used.
"""

from __future__ import annotations

import re

from ahocorasick_rs import AhoCorasick

from .fingerprints import FRAGMENT, HEAD, Print, fingerprints
from .keys import KeyRing

MASK = "[REDACTED:live-key]"
_GONE_MAX = 64  # keys that are not in the ring any more; the oldest goes first


class KeyGuard:
    """Masks every form of every key that is or was in `ring`.

    Call `refresh` each time the ring was loaded, and before anything passes.
    """

    __slots__ = ("_fragments", "_heads", "_keys", "_longest", "_prints", "_ring")

    def __init__(self, ring: KeyRing) -> None:
        self._ring = ring
        self._keys: dict[Print, tuple[Print, ...]] = {}  # by the key's own, those in use last
        self._fragments: AhoCorasick | None = None
        self._prints: list[list[Print]] = []  # by the number of their fragment
        self._heads: re.Pattern[str] | None = None
        self._longest = 0

    def refresh(self) -> None:
        """Take the fingerprints of the keys now in the ring."""
        live = {}
        for name in self._ring:
            if prints := fingerprints(self._ring.value(name)):
                live[prints[0]] = prints
        gone = [(first, prints) for first, prints in self._keys.items() if first not in live]
        self._keys = dict(gone[-_GONE_MAX:]) | live
        by_fragment: dict[str, list[Print]] = {}
        for each in (each for prints in self._keys.values() for each in prints):
            by_fragment.setdefault(each.fragment, []).append(each)
        self._prints = list(by_fragment.values())
        self._fragments = AhoCorasick(list(by_fragment)) if by_fragment else None
        flat = [each for prints in self._prints for each in prints]
        heads = sorted({each.head for each in flat})
        # At the end of a text also one or two characters may be the beginning of a key.
        ends = sorted({re.escape(head[:n]) + r"\Z" for head in heads for n in range(1, HEAD)})
        self._heads = re.compile("|".join([*map(re.escape, heads), *ends])) if heads else None
        self._longest = max((each.length for each in flat), default=0)

    def mask(self, text: str) -> tuple[str, int]:
        """Return `text` with every key masked, and how many were found (0: the same object)."""
        found = _apart(self.find(text))
        for start, end in reversed(found):
            text = text[:start] + MASK + text[end:]
        return text, len(found)

    def find(self, text: str) -> list[tuple[int, int]]:
        """Return the range of every form of a key in `text`; they may overlap."""
        found = []
        for number, at, _ in self._matches(text, True):
            for each in self._prints[number]:
                start = at - each.at
                if start >= 0 and each.fits(text[start : start + each.length]):
                    found.append((start, start + each.length))
        return found

    def suspects(self, text: str) -> bool:
        """False: no form of any key is in `text`."""
        return bool(self._matches(text, False))

    def _matches(self, text: str, overlapping: bool) -> list[tuple[int, int, int]]:
        """Number, start and end of the fragments in `text`."""
        if self._fragments is None:
            return []
        try:
            return self._fragments.find_matches_as_indexes(text, overlapping=overlapping)
        except UnicodeEncodeError:  # a lone surrogate, which no key holds
            known = text.encode("utf-8", "replace").decode("utf-8")
            return self._fragments.find_matches_as_indexes(known, overlapping=overlapping)

    def begins(self, word: str) -> bool:
        """True if `word` holds the head of a key, or is the beginning of one."""
        return self._heads is not None and self._heads.search(word) is not None

    def holds(self, text: str) -> int:
        """Return where in `text` an unfinished key may begin; len(text) when nowhere.

        Whatever begins as a key does is taken for one until its middle tells: no other characters
        of it are known.
        """
        if self._heads is None:
            return len(text)
        for match in self._heads.finditer(text, max(0, len(text) - self._longest)):
            tail = text[match.start() :]
            if any(_may_become(tail, each) for prints in self._prints for each in prints):
                return match.start()
        return len(text)


def _may_become(tail: str, form: Print) -> bool:
    middle = tail[form.at : form.at + FRAGMENT]
    return (
        len(tail) < form.length
        and form.head.startswith(tail[:HEAD])
        and form.fragment.startswith(middle)
    )


def _apart(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The ranges in order, those that overlap as one."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if joined and start < joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((start, end))
    return joined
