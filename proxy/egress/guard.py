"""The exact-match guard: finds the keys in use, in clear or encoded, in anything that passes.

The keys stay in secret memory. What this object keeps is too little to be worth stealing: of each
written form a fragment of six characters from its middle and its first three. A fragment seen in
a text is only then compared with the key itself, read for that moment.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from urllib.parse import quote

from ahocorasick_rs import AhoCorasick

from .keys import KeyRing

MASK = "[REDACTED:live-key]"
_FRAGMENT, _HEAD, _SHORTEST = 6, 3, 8
_ENTITIES = (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;"), ("'", "&#x27;"))
_EDGES_FROM = 32  # keys from this length on are also found when an upstream echoes only an end


class KeyGuard:
    """Masks every form of every key of `ring`; call `refresh` after the ring was loaded."""

    __slots__ = ("_fragments", "_heads", "_longest", "_owners", "_ring")

    def __init__(self, ring: KeyRing) -> None:
        self._ring = ring
        self._fragments: AhoCorasick | None = None
        self._owners: list[str] = []
        self._heads: re.Pattern[str] | None = None
        self._longest = 0

    def refresh(self) -> None:
        """Take the fragments anew from the keys now in the ring."""
        fragments: set[str] = set()
        owners: set[str] = set()
        heads: set[str] = set()
        self._longest = 0
        for name in self._ring:
            for form in _forms(self._ring, name):
                middle = max(0, (len(form) - _FRAGMENT) // 2)
                fragments.add(form[middle : middle + _FRAGMENT])
                owners.add(name)
                heads.add(form[:_HEAD])
                self._longest = max(self._longest, len(form))
        self._owners = sorted(owners)
        self._fragments = AhoCorasick(sorted(fragments)) if fragments else None
        # At the end of a text also one or two characters may be the beginning of a key.
        ends = {re.escape(head[:n]) + r"\Z" for head in heads for n in range(1, len(head))}
        parts = [re.escape(head) for head in sorted(heads)] + sorted(ends)
        self._heads = re.compile("|".join(parts)) if parts else None

    def mask(self, text: str) -> tuple[str, int]:
        """Return `text` with every key masked, and how many were found (0: the same object)."""
        if not self.suspects(text):
            return text, 0
        found = 0
        # The longest of all first: one key may be the beginning of another.
        forms = {form for name in self._owners for form in _forms(self._ring, name)}
        for form in sorted(forms, key=len, reverse=True):
            times = text.count(form)
            if times:
                found += times
                text = text.replace(form, MASK)
        return text, found

    def find(self, text: str) -> list[tuple[int, int]]:
        """Return the range of every key in `text`; they may overlap."""
        forms = {form for name in self._owners for form in _forms(self._ring, name)}
        found = []
        for form in forms:
            at = text.find(form)
            while at >= 0:
                found.append((at, at + len(form)))
                at = text.find(form, at + 1)
        return found

    def suspects(self, text: str) -> bool:
        """False: no form of any key is in `text`."""
        if self._fragments is None:
            return False
        try:
            return bool(self._fragments.find_matches_as_indexes(text))
        except UnicodeEncodeError:  # a lone surrogate, which no key holds
            known = text.encode("utf-8", "replace").decode("utf-8")
            return bool(self._fragments.find_matches_as_indexes(known))

    def begins(self, word: str) -> bool:
        """True if `word` holds the head of a key, or is the beginning of one."""
        return self._heads is not None and self._heads.search(word) is not None

    def holds(self, text: str) -> int:
        """Return where in `text` an unfinished key may begin; len(text) when nowhere."""
        if self._heads is None:
            return len(text)
        forms: list[str] | None = None
        for match in self._heads.finditer(text, max(0, len(text) - self._longest)):
            tail = text[match.start() :]
            if forms is None:
                forms = [form for name in self._owners for form in _forms(self._ring, name)]
            if any(form.startswith(tail) for form in forms):
                return match.start()
        return len(text)


def _forms(ring: KeyRing, name: str) -> Iterator[str]:
    """Yield the key as it may be written; each is garbage as soon as the caller is done."""
    raw = bytes(ring.value(name))
    text = raw.decode("utf-8", "surrogateescape")
    if len(text) < _SHORTEST:
        return  # so short that it would be found by chance everywhere; no provider's key is
    seen = {text}
    yield text
    if len(text) >= _EDGES_FROM:
        # 16 at the front, since providers' fixed beginnings are up to 12 characters long.
        yield from (text[:16], text[-12:])
    for other in (
        json.dumps(text)[1:-1],
        quote(raw, safe=""),
        _html(text),
        raw.hex(),
        raw.hex().upper(),
        *_base64(raw),
    ):
        if other not in seen:
            seen.add(other)
            yield other


def _html(text: str) -> str:
    """As html.escape, whose module brings half a megabyte of entity names."""
    for plain, entity in _ENTITIES:
        text = text.replace(plain, entity)
    return text


def _base64(raw: bytes) -> Iterator[str]:
    """The part of the base64 text that no neighbouring byte changes, at the three alignments."""
    for shift, lost in ((0, 0), (1, 2), (2, 3)):
        whole = (shift + len(raw)) * 8 // 6
        padded = bytes(shift) + raw
        yield base64.b64encode(padded)[lost:whole].decode("ascii")
        yield base64.urlsafe_b64encode(padded)[lost:whole].decode("ascii")
