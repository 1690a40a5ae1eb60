"""Masking one finished text, with both detectors: the keys in use, then the rules."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from proxy.egress.guard import KeyGuard

from .json_walk import rewrite
from .scan import Finding, ScanFailed, Scanner

LIVE_KEY = "live-key"
_PASSES = 6


@dataclass(slots=True)
class Tally:
    """How many values were masked, by rule id; `live_keys` counts keys in use (an incident)."""

    rules: Counter[str] = field(default_factory=Counter)
    live_keys: int = 0

    def as_record(self) -> dict[str, int]:
        """Return the counts for the audit record."""
        record = dict(sorted(self.rules.items()))
        if self.live_keys:
            record[LIVE_KEY] = self.live_keys
        return record


class Masker:
    """Masks texts for one direction of one request and keeps the tally."""

    __slots__ = ("groups", "guard", "scanner", "tally")

    def __init__(self, scanner: Scanner, guard: KeyGuard, redact: str) -> None:
        self.scanner = scanner
        self.guard = guard
        self.groups = scanner.book.classes[redact]
        self.tally = Tally()

    def text(self, text: str, before: str = "") -> str:
        """Return `text` masked; the same object when there was nothing.

        `before` is what stands in front of it where it counts as context, such as the object key
        of a JSON value. A second call with the result changes nothing: masking is repeated until
        it finds nothing more. Raises ScanFailed when that never happens.
        """
        text = self.keys(text)
        for _ in range(_PASSES):
            whole = before + text if before else text
            found = self.scanner.find(whole, self.groups)
            masked = self.replace(whole, found, len(before)) if found else text
            if masked == text:
                return text
            text = masked
        raise ScanFailed("Masking does not come to an end.")

    def document(self, text: str) -> str:
        """Return the valid JSON document `text` with all its strings masked."""
        return rewrite(text, self.text, self.suspects)

    def suspects(self, text: str) -> bool:
        """False: neither detector can find anything in `text`. Raises ScanFailed."""
        return self.guard.suspects(text) or self.scanner.suspects(text)

    def keys(self, text: str) -> str:
        """Mask only the keys in use."""
        text, found = self.guard.mask(text)
        self.tally.live_keys += found
        return text

    def replace(self, text: str, found: list[Finding], start: int = 0) -> str:
        """Return `text` from `start` on with `found` masked, and count it."""
        parts = []
        at = start
        for item in found:
            if item.end <= start:
                continue
            self.tally.rules[item.rule.id] += 1
            parts += [text[at : max(at, item.start)], item.rule.placeholder]
            at = item.end
        parts.append(text[at:])
        return "".join(parts)
