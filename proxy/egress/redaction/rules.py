"""The rule files: strict TOML into compiled rules, all or nothing."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from proxy.errors import ProxyError

from .checks import CHECKS

Hold = Literal["token", "word", "assignment", "digits", "block"]
FOLDER = Path(__file__).resolve().parent.parent / "rules"
_ID = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
_LEFT = {"word": r"(?<![A-Za-z0-9_])", "digit": r"(?<![\d.])", "none": ""}
_RIGHT = {
    "word": r"(?![A-Za-z0-9_])",
    "token": r"(?![A-Za-z0-9_-])",  # nosec B105  # an expression, no password
    "digit": r"(?!\d)",
    "none": "",
}


class RulesInvalid(ProxyError):  # reads as a sentence where it is raised
    """A rule file is wrong; the proxy does not start with half its rules."""

    code = "rules_invalid"
    fix = "Correct the rule file named."


@dataclass(frozen=True, slots=True)
class Rule:
    """One kind of secret or personal datum.

    `pattern` is what hyperscan gets; `confirm` is the same between its borders, for `re`; its
    group `secret` (or all of it) is masked. `keywords` (lower case) must stand in the match or up
    to 60 characters before it, and are what holds a stream back, in the way `hold` says. `grows`:
    an unfinished token at the hold-back's cap counts as a match.
    """

    id: str
    group: str
    pattern: str
    caseless: bool
    confirm: re.Pattern[str]
    keywords: tuple[str, ...]
    check: Callable[[str], int] | None
    entropy: float
    hold: Hold
    bounded: bool
    grows: bool
    generic: bool

    @property
    def placeholder(self) -> str:
        """The text that takes the place of a value of this kind."""
        return f"[REDACTED:{self.id}]"


@dataclass(frozen=True, slots=True)
class RuleBook:
    """All rules, and which groups of rules each redaction class of the policy masks."""

    rules: tuple[Rule, ...]
    classes: dict[str, frozenset[str]]


_TYPES: dict[str, type] = {
    "id": str, "group": str, "pattern": str, "keywords": list, "caseless": bool, "check": str,
    "entropy": float, "hold": str, "left": str, "right": str, "body": str, "end": str,
    "grows": bool, "generic": bool, "why": str,
}  # fmt: skip


def load(folder: Path = FOLDER) -> RuleBook:
    """Read every ``*.toml`` of `folder` in the order of their names; raises RulesInvalid."""
    rules: list[Rule] = []
    classes: dict[str, frozenset[str]] = {}
    for path in sorted(folder.glob("*.toml")):
        try:
            document = tomllib.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise RulesInvalid(f"{path.name}: {error}.") from None
        for name, groups in document.pop("class", {}).items():
            classes[name] = frozenset(groups)
        for index, item in enumerate(document.pop("rule", ()), 1):
            rules.append(_rule(item, f"{path.name}: rule {index}"))
        if document:
            raise RulesInvalid(f"{path.name}: unknown table {next(iter(document))}.")
    names = [rule.id for rule in rules]
    if len(set(names)) != len(names) or not names:
        raise RulesInvalid("There are no rules, or two of one name.")
    known = {rule.group for rule in rules}
    for name, groups in classes.items():
        for group in sorted(groups - known):
            raise RulesInvalid(f"class {name}: no rule is in group {group}.")
    return RuleBook(tuple(rules), classes)


def _rule(item: dict[str, Any], at: str) -> Rule:
    for name, value in item.items():
        if name not in _TYPES:
            raise RulesInvalid(f"{at}: unknown field {name}.")
        if not isinstance(value, _TYPES[name]):
            raise RulesInvalid(f"{at}: {name} is not a {_TYPES[name].__name__}.")
    for name in ("id", "group", "pattern"):
        if name not in item:
            raise RulesInvalid(f"{at}: {name} is missing.")
    at = f"{at} ({item['id']})"
    hold = item.get("hold", "token")
    if hold not in get_args(Hold) or not _ID.fullmatch(item["id"]):
        raise RulesInvalid(f"{at}: id or hold is not of the known form.")
    keywords = tuple(item.get("keywords", ()))
    if any(word != word.lower() or not word for word in keywords):
        raise RulesInvalid(f"{at}: keywords are lower case and not empty.")
    if not keywords and hold != "digits":
        raise RulesInvalid(f"{at}: only a rule that holds digits needs no keyword.")
    check = item.get("check")
    if check is not None and check not in CHECKS:
        raise RulesInvalid(f"{at}: no check is called {check}.")
    try:
        pattern = item["pattern"]
        left, right = _LEFT[item.get("left", "word")], _RIGHT[item.get("right", "word")]
        whole = f"{left}(?:{pattern}){right}"
        if hold == "block":
            body, end = item["body"], item["end"]
            # The body runs to the end mark, or to the first character that it cannot hold.
            whole = f"{pattern}(?:{body})*?(?:{end}|(?!{body}))"
        flags = re.ASCII | (re.IGNORECASE if item.get("caseless") else 0)
        confirm = re.compile(whole, flags)
    except (KeyError, re.error) as error:
        raise RulesInvalid(f"{at}: {error}.") from None
    return Rule(
        id=item["id"],
        group=item["group"],
        pattern=re.sub(r"\(\?P<\w+>", "(", pattern),
        caseless=item.get("caseless", False),
        confirm=confirm,
        keywords=keywords,
        check=CHECKS[check] if check else None,
        entropy=item.get("entropy", 0.0),
        hold=hold,
        bounded=left != "",
        grows=item.get("grows", False),
        generic=item.get("generic", False),
    )
