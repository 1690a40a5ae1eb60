"""What becomes of a value that a rule found: masked, pseudonymised, refused, or left alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import get_args

from proxy.egress.config import Action, Redaction
from proxy.errors import ConfigError, ProxyError
from proxy.providers import Place

from .placeholders import Pseudonyms
from .rules import RuleBook

_ORDER: dict[Action, int] = {action: order for order, action in enumerate(get_args(Action))}


class Blocked(ProxyError):
    """A value was found of a kind that the policy blocks; nothing around it may pass."""

    code = "secret_blocked"
    fix = "Leave such values out, or have the policy's [[redact]] changed."

    def __init__(self, rule: str) -> None:
        super().__init__(f"A value of the kind {rule} was found, which the policy blocks.")
        self.rule = rule


@dataclass(frozen=True, slots=True)
class Treatment:
    """The action of every rule, by its id; and which kinds' placeholders are put back where.

    `groups` are the rule groups of which anything is looked for. Keys in use have no rule: they
    are masked whatever stands here.
    """

    actions: Mapping[str, Action]
    groups: frozenset[str]
    restored: Mapping[Place, frozenset[str]]
    pseudonyms: Pseudonyms | None = None

    def stricter(self, one: str, other: str) -> bool:
        """True when the rule called `one` is treated more strictly than the one called `other`."""
        return _ORDER[self.actions[one]] > _ORDER[self.actions[other]]


def treat(
    book: RuleBook,
    preset: str,
    redactions: Iterable[Redaction] = (),
    pseudonyms: Pseudonyms | None = None,
) -> Treatment:
    """Return the treatment of a preset (masking its groups), changed by the policy's redactions.

    What is said of a rule goes before what is said of its class.
    """
    masked = book.classes[preset]
    actions: dict[str, Action] = {
        rule.id: "mask" if rule.group in masked else "allow" for rule in book.rules
    }
    restored: dict[Place, set[str]] = {place: set() for place in get_args(Place)}
    for redaction in sorted(redactions, key=lambda one: one.rule is not None):
        ids = _ids(book, redaction)
        actions |= dict.fromkeys(ids, redaction.action)
        for place in get_args(Place):
            restored[place] -= ids
            if place in redaction.restore:
                restored[place] |= ids
    groups = {rule.group for rule in book.rules if actions[rule.id] != "allow"}
    places = {place: frozenset(ids) for place, ids in restored.items() if ids}
    return Treatment(actions, frozenset(groups), places, pseudonyms)


class Treatments:
    """The treatments of one workload's grants; an exception that has run out ends by itself."""

    def __init__(self, book: RuleBook, at: str, redactions: Iterable[Redaction]) -> None:
        """`at` is the workload's place in the configuration, for errors.

        Raises ConfigError for a class or rule that does not exist.
        """
        self._book = book
        self._redactions = tuple(redactions)
        self._pseudonyms = Pseudonyms()
        self._day = date.min
        self._known: dict[str, Treatment] = {}
        for index, redaction in enumerate(self._redactions):
            if not _ids(book, redaction):
                name = redaction.rule or redaction.group
                raise ConfigError(f"{at}.redact[{index}]: no rule or class is called {name}.")

    def of(self, preset: str, today: date | None = None) -> Treatment:
        """Return the treatment of the grants with this preset; `today` is UTC's date."""
        day = today or datetime.now(UTC).date()
        if day != self._day:
            self._day, self._known = day, {}
        if preset not in self._known:
            valid = [r for r in self._redactions if r.expires is None or day <= r.expires]
            self._known[preset] = treat(self._book, preset, valid, self._pseudonyms)
        return self._known[preset]


def _ids(book: RuleBook, redaction: Redaction) -> set[str]:
    """The ids of the rules that a block speaks of."""
    if redaction.rule is not None:
        return {rule.id for rule in book.rules if rule.id == redaction.rule}
    return {rule.id for rule in book.rules if rule.group == redaction.group}
