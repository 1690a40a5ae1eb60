"""One pass of hyperscan over a text, then a close look only where it pointed."""

from __future__ import annotations

from typing import NamedTuple, cast

import hyperscan

from proxy.errors import ProxyError

from .actions import Treatment, treat
from .checks import entropy, monotonous, ours
from .rules import Rule, RuleBook, RulesInvalid

WINDOW = 400  # characters looked at on both sides of a hit
NEAR = 60  # how far before a match its keyword may stand
SHORTEST = 8


class ScanFailed(ProxyError):  # reads as a sentence where it is raised
    """The scanner could not do its work; nothing that it was given may pass."""

    code = "scan_failed"


class Finding(NamedTuple):
    """`text[start:end]` is a secret of the kind `rule`."""

    start: int
    end: int
    rule: Rule


class Scanner:
    """All rules in one hyperscan database. For one thread: a scratch space serves one scan.

    Only end offsets are asked for (start offsets would refuse many patterns); the span comes from
    the rule's `re` in a window round the end.
    """

    def __init__(self, book: RuleBook) -> None:
        self.book = book
        self._database = hyperscan.Database()
        flags = [hyperscan.HS_FLAG_CASELESS if rule.caseless else 0 for rule in book.rules]
        try:
            self._database.compile(
                expressions=[rule.pattern.encode("ascii") for rule in book.rules],
                ids=list(range(len(book.rules))),
                elements=len(book.rules),
                flags=flags,
            )
        except (hyperscan.error, UnicodeEncodeError) as error:
            raise RulesInvalid(f"The rules do not compile: {error}.") from None
        self._database.scratch = hyperscan.Scratch(self._database)
        self.presets = {name: treat(book, name) for name in book.classes}

    def find(self, text: str, treatment: Treatment) -> list[Finding]:
        """Return what `text` holds that `treatment` does not allow, in order, without overlap.

        The workload's own placeholders are passed over. Raises ScanFailed.
        """
        if len(text) < SHORTEST:
            return []
        data = text.encode("utf-8", "surrogatepass")
        hits = self._hits(data)
        if not hits:
            return []
        windows: dict[int, list[list[int]]] = {}
        for number, end in hits:
            if treatment.actions[self.book.rules[number].id] == "allow":
                continue
            # Bytes never undercount characters, so this window is wide enough for any text.
            at = end if len(data) == len(text) else len(data[:end].decode("utf-8", "ignore"))
            spans = windows.setdefault(number, [])
            if spans and at - WINDOW <= spans[-1][1]:
                spans[-1][1] = max(spans[-1][1], at + WINDOW)
            else:
                spans.append([max(0, at - WINDOW), at + WINDOW])
        found: list[Finding] = []
        for number, spans in sorted(windows.items()):  # of equals, the first rule names it
            rule = self.book.rules[number]
            for start, end in spans:
                found += _confirmed(rule, text, start, len(text) if rule.hold == "block" else end)
        if found and treatment.pseudonyms:
            found = _not_ours(found, list(treatment.pseudonyms.spans(text)))
        return _disjoint(found, treatment)

    def suspects(self, text: str) -> bool:
        """False: no rule can find anything in `text` or in a part of it. Raises ScanFailed."""
        return bool(self._hits(text.encode("utf-8", "surrogatepass")))

    def _hits(self, data: bytes) -> list[tuple[int, int]]:
        """Return (number of the rule, end in bytes) of every match."""
        hits: list[tuple[int, int]] = []
        try:
            self._database.scan(data, match_event_handler=_collect, context=hits)
        except hyperscan.error as error:
            raise ScanFailed(f"hyperscan: {type(error).__name__}.") from None
        return hits


def _collect(number: int, _start: int, end: int, _flags: int, hits: object) -> None:
    cast("list[tuple[int, int]]", hits).append((number, end))


def _confirmed(rule: Rule, text: str, start: int, end: int) -> list[Finding]:
    found = []
    group = "secret" if "secret" in rule.confirm.groupindex else 0
    while match := rule.confirm.search(text, start, end):
        start = match.end()
        if rule.keywords:
            near = text[max(0, match.start() - NEAR) : match.end()].lower()
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


def _disjoint(found: list[Finding], treatment: Treatment) -> list[Finding]:
    """Merge what overlaps; the stricter action decides, then the more telling kind names it."""
    found.sort(key=lambda item: (item.start, -item.end))
    merged: list[Finding] = []
    for item in found:
        if merged and item.start < merged[-1].end:
            last = merged[-1]
            rule = last.rule
            if treatment.stricter(item.rule.id, rule.id) or (
                rule.generic
                and not item.rule.generic
                and not treatment.stricter(rule.id, item.rule.id)
            ):
                rule = item.rule
            merged[-1] = Finding(last.start, max(last.end, item.end), rule)
        else:
            merged.append(item)
    return merged
