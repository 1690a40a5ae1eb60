"""The [[redact]] blocks of a policy: what becomes of a class of values, or of one rule's.

Which classes, rules and presets there are stands in the egress proxy's rule files, and in those of
this host, which lie in the folder `redaction` beside its policies. Only their names are read here;
what they search for concerns the proxy alone.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

from supervisor.policy.document import Table
from supervisor.policy.errors import PolicyError, PolicyErrors
from supervisor.policy.model import Exemption, Policy, Redaction

FOLDER = Path(__file__).resolve().parents[2] / "proxy" / "egress" / "rules"
OWN = "redaction"
_OWN_MAX = 256 * 1024  # bytes of all files together: they travel in the proxy's configuration
ACTIONS = ("mask", "pseudonymise", "block", "allow")
PLACES = ("text", "tool-arguments")
_ID = r"[a-z][a-z0-9-]{0,62}"
_NAME = r"[a-z0-9]+(-[a-z0-9]+)*"
_LIVE_KEY = "live-key"  # what the proxy calls a key that it puts in itself
_DONE = {"mask": "masked", "pseudonymise": "pseudonymised", "block": "blocked", "allow": "ALLOWED"}

ParseExemption = Callable[[Table | None], Exemption | None]


class RuleNamesInvalid(Exception):
    """A rule file cannot be read; no policy is parsed until it is corrected."""

    code = "rule_names_invalid"
    fix = "correct the rule file named, or install the package again"


@dataclass(frozen=True, slots=True)
class Names:
    """The classes of rules, the rules, and the presets that a model rule may name."""

    classes: frozenset[str]
    rules: frozenset[str]
    presets: tuple[str, ...]


@cache
def names(*folders: Path) -> Names:
    """Read the names in every ``*.toml`` of `folders` (the shipped rules, if none).

    Raises RuleNamesInvalid naming the file.
    """
    classes: set[str] = set()
    rules: set[str] = set()
    presets: set[str] = set()
    for path in (p for folder in folders or (FOLDER,) for p in sorted(folder.glob("*.toml"))):
        try:
            document = tomllib.loads(path.read_text("utf-8"))
            presets |= document.get("class", {}).keys()
            for rule in document.get("rule", ()):
                rules.add(rule["id"])
                classes.add(rule["group"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RuleNamesInvalid(f"{path.name}: {error}") from None
    if not presets:
        raise RuleNamesInvalid(f"{folders[0] if folders else FOLDER} has no presets")
    return Names(frozenset(classes), frozenset(rules), tuple(sorted(presets)))


def names_at(policies: Path) -> Names:
    """The names of the shipped rules and of those beside `policies`.

    Raises PolicyErrors naming the file that is broken.
    """
    names.cache_clear()  # files may have changed since the last reload
    try:
        own_rules(policies)
        return names(FOLDER, policies / OWN)
    except RuleNamesInvalid as error:
        wrong = PolicyError("rule-file", OWN, 1, "-", str(error), error.fix)
        raise PolicyErrors([wrong]) from None


def own_rules(policies: Path) -> dict[str, str]:
    """The text of this host's own rule files by name. Raises RuleNamesInvalid."""
    found: dict[str, str] = {}
    for path in sorted((policies / OWN).glob("*.toml")):
        try:
            found[path.name] = path.read_text("utf-8")
        except (OSError, ValueError) as error:
            raise RuleNamesInvalid(f"{path.name}: {error}") from None
    if sum(map(len, found.values())) > _OWN_MAX:
        raise RuleNamesInvalid(f"{policies / OWN}: more than {_OWN_MAX} bytes of rules")
    return found


def parse_redactions(tables: Sequence[Table], exemption: ParseExemption) -> tuple[Redaction, ...]:
    """Every block; mistakes are recorded in their document. `exemption` parses an exception."""
    found = tuple(_redaction(table, exemption) for table in tables)
    _once(tables)
    return found


def plan_redactions(
    policy: Policy, known: Names, errors: list[PolicyError]
) -> list[dict[str, Any]]:
    """What the proxy is told. It knows the day itself, so what has expired ends there too."""
    errors += [error for each in policy.redactions for error in _unknown(policy, each, known)]
    if policy.redactions and not policy.reaches_out:
        first = policy.redactions[0]
        errors.append(
            PolicyError(
                "unknown-model", policy.file, first.line, "redact", "no rule lets anything out",
                "remove it, or add the rule", first.id,
            )
        )  # fmt: skip
    return [_entry(redaction) for redaction in policy.redactions]


def relaxed(policy: Policy, today: date) -> list[str]:
    """What the policy's exceptions leave unredacted today, a sentence each."""
    return [
        f"{policy.file}:{r.line} {r.id}: {r.subject} is not redacted until {r.exemption.expires}"
        f" ({r.exemption.ticket} of {r.exemption.owner})"
        for r in policy.redactions
        if r.action == "allow" and r.exemption and not r.expired(today)
    ]


def describe(redaction: Redaction) -> str:
    """What becomes of what, in one line."""
    said = f"{redaction.subject}: {_DONE[redaction.action]}"
    if redaction.restore:
        said += f", put back in {' and '.join(redaction.restore)}"
    if by := redaction.exemption:
        said += f" until {by.expires} (exception {by.ticket} of {by.owner})"
    return said


def _redaction(table: Table, exemption: ParseExemption) -> Redaction:
    table.rule = table.string("id", _ID, what="a name in a-z, 0-9 and -")
    why = table.string("why")
    action = table.choice("action", ACTIONS)
    group, rule = _subject(table, "class"), _subject(table, "rule")
    restore = table.words("restore", PLACES, required=False)
    until = exemption(table.table("exception", required=False))
    table.finish("id, why, class, rule, action, restore, exception")
    if table.has("class") == table.has("rule"):
        fix = "give either class or rule"
        table.fail("one-subject", "class", "not one thing that is treated", fix)
    if restore and action and action != "pseudonymise":
        fix = 'use action = "pseudonymise", or remove restore'
        table.fail("bad-value", "restore", f"nothing can be put back after {action}", fix)
    if action == "allow" and not table.has("exception"):
        fix = "add exception = { owner = ..., ticket = ..., expires = ... }"
        table.fail("missing-key", "exception", "what is allowed needs an exception", fix)
    elif action and action != "allow" and table.has("exception"):
        table.fail("bad-value", "exception", f"{action} needs no exception", "remove it")
    return Redaction(
        table.rule, why, table.line, group, rule, action, tuple(sorted(restore)), until
    )


def _once(tables: Iterable[Table]) -> None:
    """Each class and each rule is spoken of once."""
    seen: dict[tuple[str, object], int] = {}
    for table in tables:
        for key in ("class", "rule"):
            if table.has(key) and (subject := (key, table.values[key])) in seen:
                message = f"{key} {subject[1]} is treated in line {seen[subject]} already"
                table.fail("duplicate-value", key, message, "say it once")
            elif table.has(key):
                seen[subject] = table.at(key)


def _subject(table: Table, key: str) -> str | None:
    if not table.has(key):
        return None
    name = table.string(key, _NAME, what="a name in a-z, 0-9 and -")
    if name == _LIVE_KEY:
        fix = "remove the block"
        table.fail("bad-value", key, "keys in use are masked always and everywhere", fix)
    return name


def _unknown(policy: Policy, redaction: Redaction, known: Names) -> Iterator[PolicyError]:
    """The class or the rule that is spoken of, if there is none."""
    if redaction.group and redaction.group not in known.classes:
        key, name, fix = "class", redaction.group, f"known: {', '.join(sorted(known.classes))}"
    elif redaction.rule and redaction.rule not in known.rules:
        fix = f"the rule files are in proxy/egress/rules, your own in {OWN} beside the policies"
        key, name = "rule", redaction.rule
    else:
        return
    yield PolicyError(
        f"unknown-{key}", policy.file, redaction.line, f"redact.{key}",
        f"there is no {key} {name}", fix, redaction.id,
    )  # fmt: skip


def _entry(redaction: Redaction) -> dict[str, Any]:
    subject = {"class": redaction.group} if redaction.group else {"rule": redaction.rule}
    until = redaction.exemption
    return {
        "id": redaction.id,
        "line": redaction.line,
        **subject,
        "action": redaction.action,
        "restore": list(redaction.restore),
        **({"expires": until.expires.isoformat()} if until else {}),
    }
