"""Where a text that goes on must be held back, since a secret may have begun there."""

from __future__ import annotations

import functools
import re

from ahocorasick_rs import AhoCorasick

from . import encodings
from .rules import Rule, RuleBook

CAP = 320  # of ordinary kinds, as many characters of a view are held
STIRRED = 128  # characters behind a name that tells of a secret in which its value may begin
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")
_TELLING = 4
_REMEMBERED = 16_384  # short texts
# Words of less than 16 letters: from there on it may be base64 that can be opened.
_QUIET = re.compile(r"(?:[A-Za-z]{0,15}[ \n.,;!?'()])*([A-Za-z]{0,15})")
# Of those, what cannot stand between a name and its value.
_WORDS = re.compile(r"(?! ?(?:is|ist|i)(?: |\Z))[a-z]*(?: (?!(?:is|ist|i)(?: |\Z))[a-z]*)*")
_CAPITALS = re.compile(r"(?:.*[^A-Za-z])?[A-Z]{1,6}", re.DOTALL)
_WORD = re.compile(r"[A-Za-z0-9_]")
_DELIMITER = re.compile(r"[\s\"'<>`]")
# A word that may be a value without a fixed beginning: it has a digit, or begins in capitals.
_MIXED = re.compile(r"\S*\d|[A-Z]{1,6}\Z")
# Digits with what may stand between them; two capitals may begin an IBAN.
_DIGITS = re.compile(
    r"(?:[+(0-9][0-9 ().+/-]*|(?<![A-Za-z0-9])[A-Z](?:[A-Z](?:\d(?:\d[A-Z0-9 ]*)?)?)?)\Z"
)
# Names and numbers in a row, which may become an address, and the small words between them.
_NAME = r"[A-Z0-9#\u00c0-\u00de][^\s,]*"
_SMALL = r"[a-z\u00e0]{1,9}"
_PHRASE = re.compile(
    rf"(?<![^\s(\"'])(?:(?:{_NAME}[ ,\n]{{1,3}}(?:{_SMALL}['\u2019 ,]{{1,2}}){{0,3}}){{1,14}}"
    rf"(?:{_NAME}|{_SMALL})?|{_NAME})\Z"
)
_BLOCK = re.compile(r"-{1,5}(?:B[A-Z0-9 ]{0,60}-{0,5})?\Z")
# What may stand behind a name that tells, up to and with its unfinished value.
_ASSIGNED = re.compile(
    r"[\w.-]{0,24}(?:[ \t][\w.-]{0,16}){0,2}[\\\"'`\])]{0,3}"
    r"(?:,?\s{0,24}[\"']?[a-z_]{0,13}[\"']?\s{0,3}\Z"
    r"|(?:,?\s{1,24}[\"']?[a-z_]{0,8}value[\"']?)?(?:\s{0,2}:\s{0,2}&?\w{0,7})?\s{0,4}"
    r"(?:[?.]?[:=|,>(]{1,5}|[?.]\Z|:?\si(?:st?)?(?:\s|\Z)|(?<=\s)[\"'`])\s{0,26}"
    r"(?:(?:bearer|basic|token|[a-z-]{0,9})[\s:]{0,3})?[rbuf]?[\\\"'`]{0,4}[^\s\"'`<>]*\Z)",
    re.IGNORECASE | re.ASCII,
)
# The first of it that may belong to the value; what is before is context and may pass.
_OPERATOR = re.compile(r"[^\w \t.-]|\si(?:s|st)\s|\s\s", re.IGNORECASE)


class HoldBack:
    """Where a text may be the unfinished beginning of a match; built once from the rules."""

    def __init__(self, book: RuleBook) -> None:
        tokens = [rule for rule in book.rules if rule.hold == "token"]
        named = [rule for rule in book.rules if rule.hold == "assignment"]
        self._grows = {word: rule for rule in tokens if rule.grows for word in rule.keywords}
        free = {word for rule in tokens if not rule.bounded for word in rule.keywords}
        context = {
            w for rule in tokens if "secret" in rule.confirm.groupindex for w in rule.keywords
        }
        # A rule that masks its own name too: that name is part of what must be held.
        free |= {w for r in named if "secret" not in r.confirm.groupindex for w in r.keywords}
        bounded = {word for rule in tokens if rule.bounded for word in rule.keywords} - free
        self._free = free
        self._words = sorted(bounded | free)
        self._tokens = AhoCorasick(self._words)
        hints = {word for rule in book.rules if rule.hold == "mixed" for word in rule.keywords}
        mixed = {word for word in hints if len(word) >= _TELLING}  # shorter ones are everywhere
        self._names = AhoCorasick(sorted({word for rule in named for word in rule.keywords}))
        stirring = {word for rule in named for word in rule.keywords} | mixed
        stirring |= {w for w in free & context if len(w) >= _TELLING}
        self._stirring = AhoCorasick(sorted(stirring))
        self._hints = AhoCorasick(sorted(mixed)) if mixed else None
        self._whole = {rule.group for rule in book.rules if rule.hold in ("word", "phrase")}
        self._phrases = {rule.group for rule in book.rules if rule.hold == "phrase"}
        self._mixed = {rule.group for rule in book.rules if rule.hold == "mixed"}
        # Inside a word a beginning counts from its third letter on: else nearly every word waits.
        self._bounded_parts = {w[:n] for w in bounded | free for n in range(1, len(w) + 1)}
        self._free_parts = {w[:n] for w in free for n in range(3, len(w) + 1)}
        self._longest = max(map(len, self._words))
        self.quiet = functools.lru_cache(_REMEMBERED)(self._quiet)

    def _quiet(self, text: str, stirred: bool) -> tuple[str, bool] | None:
        """Return the word that `text` ends in (it may be "") if it begins no secret, else None.

        `text` begins where a word does. `stirred`: a name that tells stands near; then nothing that
        could come between it and a value is quiet. The answer's second part: such a name is in
        `text`. Answers are remembered: the same words come again.
        """
        match = _QUIET.fullmatch(text)
        if match is None:
            return None
        size, lowered = len(text), _lower(text)
        stirs = self.stirred(lowered)
        if (stirs or stirred) and not _WORDS.fullmatch(lowered):
            return None
        cut = max(text.rfind(" "), text.rfind("\n"), text.rfind("'")) + 1
        if self._token(lowered, cut)[0] < size or self._cut_off(lowered, 0) < size:
            return None
        if _CAPITALS.fullmatch(text) or encodings.begun(text) < size:
            return None
        return match[1], stirs

    def phrases(self, groups: frozenset[str]) -> bool:
        """True if a kind is to be masked that is made of several words."""
        return not self._phrases.isdisjoint(groups)

    def words(self, groups: frozenset[str]) -> bool:
        """True if a kind is to be masked that shows only at its end, so that every word waits."""
        return not self._whole.isdisjoint(groups)

    def stirred(self, text: str) -> bool:
        """True if a name in `text` tells that the value of a secret may follow."""
        return bool(self._stirring.find_matches_as_indexes(_lower(text)))

    def start(self, text: str, released: int, groups: frozenset[str]) -> tuple[int, Rule | None]:
        """Return from where on `text` must be held, and the growing rule if that is why.

        `released` characters at the front are context only. len(text): nothing need be held.
        `groups` are the rule groups to mask: kinds that show only at their end hold every word.
        """
        point, rule = len(text), None
        # No more than CAP is ever held, except of kinds that grow, so nothing earlier counts.
        near = max(released, len(text) - CAP)
        lowered = _lower(text)
        cut = near
        for delimiter in _DELIMITER.finditer(text, near):
            cut = delimiter.end()
        if cut == near:
            while cut > released and not _DELIMITER.match(text, cut - 1):
                cut -= 1
        point, rule = self._token(lowered, cut)
        if point > cut and self._waits(text, cut, groups):
            point, rule = cut, None
        point = min(point, self._cut_off(lowered, released))
        far = max(0, len(text) - CAP - STIRRED)  # a name may have passed already, as context
        for _, _, end in self._names.find_matches_as_indexes(lowered[far:], overlapping=True):
            match = _ASSIGNED.match(text, far + end)
            operator = _OPERATOR.search(text, far + end) if match else None
            if operator:
                at = max(released, operator.start())
                if at < point:
                    point, rule = at, None
                break
        shapes = (_DIGITS, _PHRASE, _BLOCK) if self.phrases(groups) else (_DIGITS, _BLOCK)
        for shape in shapes:
            match = shape.search(text, near)
            if match and match.start() < point:
                point, rule = match.start(), None
        return point, rule

    def _waits(self, text: str, cut: int, groups: frozenset[str]) -> bool:
        """True if the word that begins at `cut` may turn out to be a secret by its end alone."""
        if self.words(groups):
            return True
        if self._mixed.isdisjoint(groups):
            return False
        if _MIXED.match(text, cut):
            return True
        near = _lower(text[max(0, cut - STIRRED) :])
        return self._hints is not None and bool(self._hints.find_matches_as_indexes(near))

    def _token(self, lowered: str, cut: int) -> tuple[int, Rule | None]:
        """Return where after `cut` the first token of a known beginning starts, and if it grows."""
        first, rule = len(lowered), None
        for number, start, _ in self._tokens.find_matches_as_indexes(
            lowered[cut:], overlapping=True
        ):
            word = self._words[number]
            at = cut + start
            if at < first and (word in self._free or at == 0 or not _WORD.match(lowered, at - 1)):
                first, rule = at, self._grows.get(word)
        return first, rule

    def _cut_off(self, lowered: str, released: int) -> int:
        """Return where at the end the beginning of a keyword stands; len(lowered) for nowhere."""
        for size in range(min(self._longest, len(lowered) - released), 0, -1):
            at = len(lowered) - size
            tail = lowered[at:]
            if tail in self._free_parts or (
                tail in self._bounded_parts and (at == 0 or not _WORD.match(lowered, at - 1))
            ):
                return at
        return len(lowered)


def _lower(text: str) -> str:
    """Return `text` in lower case and of the same length, with what is not ASCII left out."""
    return (text if text.isascii() else _NOT_ASCII.sub("\0", text)).lower()
