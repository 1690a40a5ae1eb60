"""Treating one finished text, with both detectors: the keys in use, then the rules."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from proxy.egress.guard import MASK, KeyGuard
from proxy.providers import Place

from .actions import Blocked, Treatment
from .database import Hit
from .json_restore import restore
from .json_walk import NOTHING, Document, rewrite
from .placeholders import VALUE_MAX, marked
from .scan import Finding, ScanFailed, Scanner, disjoint
from .views import View, Work

LIVE_KEY = "live-key"
_PASSES = 32  # values in a row, of which each hides the limit of the next, come out one by one


def _zeros() -> defaultdict[Any, int]:
    return defaultdict(int)  # a Counter takes five times as long to make


@dataclass(slots=True)
class Tally:
    """How many values were found, by rule id; `live_keys` counts keys in use (an incident).

    `actions`: the same by (class of rules, what was done), and what became of placeholders.
    """

    rules: defaultdict[str, int] = field(default_factory=_zeros)
    live_keys: int = 0
    actions: defaultdict[tuple[str, str], int] = field(default_factory=_zeros)

    def as_record(self) -> dict[str, int]:
        """Return the counts by rule for the audit record."""
        record = dict(sorted(self.rules.items()))
        if self.live_keys:
            record[LIVE_KEY] = self.live_keys
        return record

    def as_actions(self) -> dict[str, dict[str, int]]:
        """Return the counts by class and action for the audit record."""
        record: dict[str, dict[str, int]] = {}
        for (group, action), count in sorted(self.actions.items()):
            record.setdefault(group, {})[action] = count
        return record


class Masker:
    """Treats the texts of one direction of one request and keeps the tally.

    `treatment` is the workload's, or the name of a preset. `sent`: the workload wrote the texts,
    so that what is pseudonymised in them may be put back in answers to it.
    """

    __slots__ = ("guard", "scanner", "sent", "tally", "treatment", "work")

    def __init__(
        self, scanner: Scanner, guard: KeyGuard, treatment: Treatment | str, *, sent: bool = False
    ) -> None:
        self.scanner = scanner
        self.guard = guard
        self.treatment = scanner.presets[treatment] if isinstance(treatment, str) else treatment
        self.sent = sent
        self.tally = Tally()
        self.work = Work()

    def text(self, text: str, before: str = "") -> str:
        """Return `text` masked; the same object when there was nothing.

        `before` is what stands in front of it where it counts as context, such as the object key
        of a JSON value. A second call with the result changes nothing: masking is repeated until
        it finds nothing more. Raises ScanFailed when that never happens, DecodeLimit when too much
        of the request's text is encoded, Blocked for a value of a blocked kind.
        """
        text = self.keys(text)
        for _ in range(_PASSES):
            whole = before + text if before else text
            found = self.find(whole, self.work)
            masked = self.replace(whole, found, len(before)) if found else text
            if masked == text:
                return text
            text = masked
        raise ScanFailed("Masking does not come to an end.")

    def document(
        self,
        document: Document | str,
        opaque: Set[str] = frozenset(),
        signed: Mapping[str, str] = NOTHING,
        places: Mapping[str, Place] = NOTHING,
    ) -> str:
        """Return the text of a valid JSON document with all its strings masked.

        `opaque` and `signed` as for json_walk.rewrite. `places` tells which keys lead to fields in
        which the policy may have the workload's own values put back: see json_restore.restore.
        """
        text = rewrite(document, self.text, self.suspects, opaque, signed)
        open_ = {key: place for key, place in places.items() if self.restores(place)}
        return restore(text, self.restore, open_) if open_ and marked(text) else text

    def find(self, text: str, work: Work) -> list[Finding]:
        """Return what either detector finds in any view of `text`; a key in use has no rule.

        Keys that stand in clear are left to `keys`. Raises ScanFailed and DecodeLimit.
        """
        found: list[Finding] = []
        for view, hits in self.scanner.views(text, work):
            for start, end, rule in self.confirm(view, hits):
                found.append(Finding(*view.span(start, end), rule))
        return self.disjoint(found)

    def confirm(self, view: View, hits: list[Hit]) -> list[Finding]:
        """Return what either detector finds in one view, as ranges of its text."""
        found: list[Finding] = []
        if view.parent is not None and self.guard.suspects(view.text):
            found += [Finding(start, end, None) for start, end in self.guard.find(view.text)]
        if hits:
            found += self.scanner.confirm(view, hits, self.treatment)
        return found

    def disjoint(self, found: list[Finding]) -> list[Finding]:
        """Return `found` in order and without overlap."""
        return disjoint(found, self.treatment) if found else found

    def suspects(self, text: str) -> bool:
        """False: neither detector can find anything in `text`, however it is read.

        Raises ScanFailed and DecodeLimit.
        """
        if self.guard.suspects(text):
            return True
        for view, hits in self.scanner.views(text, self.work):
            if self.scanner.likely(view, hits) or (view.parent and self.guard.suspects(view.text)):
                return True
        return False

    def keys(self, text: str) -> str:
        """Mask only the keys in use."""
        text, found = self.guard.mask(text)
        self.tally.live_keys += found
        return text

    def replace(self, text: str, found: list[Finding], start: int = 0) -> str:
        """Return `text` from `start` on with `found` treated, and count it. Raises Blocked."""
        parts = []
        at = start
        for item in found:
            if item.end <= start:
                continue
            value = text[item.start : item.end] if item.start >= start else ""
            parts += [text[at : max(at, item.start)], self._stand_in(value, item)]
            at = item.end
        parts.append(text[at:])
        return "".join(parts)

    def restore(self, text: str, place: Place, before: str = "") -> str:
        """Return the masked `text` with the workload's own values put back, as its policy says.

        `before` is what precedes `text` in the same place, as far as it is known.
        """
        kinds, pseudonyms = self.treatment.restored.get(place), self.treatment.pseudonyms
        if not kinds or pseudonyms is None:
            return text
        text, restored, unknown = pseudonyms.restore(text, kinds, before)
        if restored or unknown:
            self.tally.actions["placeholder", "restored"] += restored
            self.tally.actions["placeholder", "unknown"] += unknown
        return text

    def restores(self, place: Place) -> bool:
        """True where `restore` may put something back."""
        return place in self.treatment.restored and self.treatment.pseudonyms is not None

    def _stand_in(self, value: str, item: Finding) -> str:
        """Return what takes the place of `value`; it is empty where its beginning is gone."""
        if item.rule is None:
            self.tally.live_keys += 1
            return MASK
        rule, action = item.rule, self.treatment.actions[item.rule.id]
        self.tally.rules[rule.id] += 1
        pseudonyms = self.treatment.pseudonyms
        if action == "pseudonymise" and (pseudonyms is None or not 0 < len(value) <= VALUE_MAX):
            action = "mask"
        self.tally.actions[rule.group, action] += 1
        if action == "block":
            raise Blocked(rule.id)
        if action == "pseudonymise" and pseudonyms is not None:
            return pseudonyms.stand_in(value, rule.id, sent=self.sent)
        return rule.placeholder
