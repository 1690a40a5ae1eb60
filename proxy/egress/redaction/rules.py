"""The rule files: strict TOML into compiled rules, all or nothing."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, cast, get_args

from proxy.errors import ProxyError

from . import checks, national, personal

Hold = Literal["token", "mixed", "word", "assignment", "digits", "phrase", "block"]
Severity = Literal["low", "medium", "high", "critical"]
FOLDER = Path(__file__).resolve().parent.parent / "rules"
_CHECKS = checks.CHECKS | personal.CHECKS | national.CHECKS
_ID = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
_LEFT = {
    "word": r"(?<![A-Za-z0-9_])",
    "name": r"(?:(?<![A-Za-z])|(?-i:(?<=[a-z0-9])(?=[A-Z])))",  # also a hump: "theApiKey"
    "token": r"(?<![A-Za-z0-9_./-])",  # nosec B105  # an expression, no password
    "letter": r"(?<![A-Za-z])",
    "digit": r"(?<![\d.A-Za-z])(?<![0-9A-Fa-f]{4}-)",  # nor in a UUID
    # Anywhere in a word, but deep in what may be base64 only where a word begins.
    "run": r"(?:(?<![A-Za-z0-9_])|(?<![A-Za-z0-9+/_-]{48}))",
    "none": "",
}
_RIGHT = {
    "word": r"(?![A-Za-z0-9_])",
    "token": r"(?![A-Za-z0-9_-])",  # nosec B105  # an expression, no password
    "digit": r"(?![\dA-Za-z])",
    "run": r"(?![A-Za-z0-9_-]{4})",  # a few characters more hide nothing
    "none": "",
}
_BORDER = re.compile(r"\(\?<?[!=](?:\[[^\]]*\]\*?)+\)")  # which hyperscan does not know
# The name ends, or goes on as names do: "fooKey", "foobot", but neither "foot" nor "FOOTER".
_STOP = (
    r"(?:(?=tokens?|keys?|secret|api|auth|access|client|app|id\b|bot|pass|cred|pub)"
    r"|(?-i:(?![a-z])(?!(?<=[A-Z])[A-Z]{2})))"
)
# Between a name that tells and its value, in the notations of programs, settings and prose:
# FOO_KEY=, "fooKey": ", foo.key := `, <fooKey>, "FOO", "value": ", set("foo", ", const key: str =.
_NAME_END = r"""[\w.-]{0,24}(?:[ \t][\w.-]{1,16}){0,2}[\\"'`\])]{0,3}"""
_BETWEEN = (
    _NAME_END + r"""(?:,?\s{1,24}["']?(?:secret_?|default_?)?value["']?)?"""
    r"""(?:\s{0,2}:\s{0,2}&?(?:str|string|text|varchar)\b)?\s{0,4}"""
    r"""(?:(?::{1,4}=?|={1,3}>?|\?=|\.=|\|\|=?|:?\s(?:is|ist)\s|(?<=\s)(?=["'`]))[ \t]{0,4}"""
    r"""|>(?!\s)|>\s{0,2}\n\s{0,24}|[,(]\s{0,16}(?=[rbuf]?\\?["'`]))(?:[rbuf](?=\\?["'`]))?\\?["'`]{0,3}"""
)
_TRIGGER = (
    r"""[\w.-]*(?:[ \t][\w.-]+){0,2}[\\"'`\])]*"""
    r"""(?:\s*[:=>,|?("'`]|\si(?:s|st)\s|,?\s+["']?\w{0,8}value)"""
)
# Names such as "key" and "token" stand in every text: for them the beginning of a value counts too.
_NARROW = (
    r"""[\w.-]*(?:[ \t][\w.-]+){0,2}[\\"'`\])]*"""
    r"""(?:\s*(?::\s*&?(?:str|string|text|varchar)\s*=|:+=?|=+>?|\?=|\.=|>|\|\|=?)\s*[rbuf]?[\\"'`]*"""
    r"""|[,(]\s*[rbuf]?\\?["'`]+|\s["'`]+|\si(?:s|st)\s["'`]*|,?\s+["']?\w{0,8}value["'\s:=]+)"""
    r"""[^\s"'`<>,;(){}]{8}"""
)
_REPEAT = re.compile(r"(?<!\\)\{(\d+)(,?)(\d*)\}(\)*(?:=\{0,\d\}|=\?)?\)*$)?")
_ENOUGH = 8
_BLOCK = 32  # characters of a key block's body; the shortest keys have 60


class RulesInvalid(ProxyError):  # reads as a sentence where it is raised
    """A rule file is wrong; the proxy does not start with half its rules."""

    code = "rules_invalid"
    fix = "Correct the rule file named."


@dataclass(frozen=True, slots=True)
class Rule:
    """One kind of secret or personal datum.

    `pattern` is what hyperscan gets; `confirm` says for `re` where exactly the value is; its
    group `secret` (or all of it) is masked. `keywords` (lower case) must stand in the match or up
    to 60 characters before it, and are what holds a stream back, in the way `hold` says. `grows`:
    an unfinished token at the hold-back's cap counts as a match. `match` and `clean` are examples
    in the notation of `examples.py`. `digits`: every value holds three digits in a row, with at
    most one of " ./()-" between two. Not `ours`: this host's administrator wrote it.
    """

    id: str
    group: str
    severity: Severity
    why: str
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
    match: tuple[str, ...]
    clean: tuple[str, ...]
    digits: bool
    ours: bool = True

    @property
    def placeholder(self) -> str:
        """The text that takes the place of a value of this kind."""
        return f"[REDACTED:{self.id}]"


@dataclass(frozen=True, slots=True)
class RuleBook:
    """All rules; what each group of them is; and which groups each class of a policy masks."""

    rules: tuple[Rule, ...]
    groups: dict[str, str]
    classes: dict[str, frozenset[str]]


_TYPES: dict[str, type] = {
    "id": str, "group": str, "severity": str, "why": str, "pattern": str, "trigger": str,
    "name": str, "value": str, "keywords": list, "caseless": bool, "check": str,
    "entropy": float, "hold": str, "left": str, "right": str, "body": str, "end": str,
    "grows": bool, "generic": bool, "digits": bool, "match": list, "clean": list,
}  # fmt: skip


def load(*folders: Path, own: Mapping[str, str] = MappingProxyType({})) -> RuleBook:
    """Read every ``*.toml`` of `folders` (ours, if none) by name; raises RulesInvalid.

    `own`: further files of this host's administrator, their texts by name.
    """
    rules: list[Rule] = []
    groups: dict[str, str] = {}
    classes: dict[str, frozenset[str]] = {}
    files = [
        (path.name, _text(path), path.parent == FOLDER)
        for folder in folders or (FOLDER,)
        for path in sorted(folder.glob("*.toml"))
    ]
    for name, text, ours in [*files, *((name, text, False) for name, text in own.items())]:
        try:
            document = tomllib.loads(text)
        except ValueError as error:
            raise RulesInvalid(f"{name}: {error}.") from None
        groups |= document.pop("group", {})
        for preset, members in document.pop("class", {}).items():
            classes[preset] = classes.get(preset, frozenset()) | frozenset(members)
        for index, item in enumerate(document.pop("rule", ()), 1):
            rules.append(_rule(item, f"{name}: rule {index}", ours=ours))
        if document:
            raise RulesInvalid(f"{name}: unknown table {next(iter(document))}.")
    names = [rule.id for rule in rules]
    if not names:
        raise RulesInvalid("There are no rules.")
    for name in names:
        if names.count(name) > 1:
            raise RulesInvalid(f"Two rules are called {name}.")
    known = {rule.group for rule in rules}
    for group in sorted(known - groups.keys()):
        raise RulesInvalid(f"group {group} is used by a rule and described nowhere.")
    for name, members in classes.items():
        for group in sorted(members - known):
            raise RulesInvalid(f"class {name}: no rule is in group {group}.")
    return RuleBook(tuple(rules), groups, classes)


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise RulesInvalid(f"{path.name}: {error}.") from None


def _rule(item: dict[str, Any], at: str, *, ours: bool) -> Rule:
    at = f"{at} ({item.get('id', 'without id')})"
    for name, value in item.items():
        if name not in _TYPES:
            raise RulesInvalid(f"{at}: unknown field {name}.")
        if not isinstance(value, _TYPES[name]):
            raise RulesInvalid(f"{at}: {name} is not a {_TYPES[name].__name__}.")
    named = "name" in item or "value" in item
    for name in ("id", "group", *(("name", "value") if named else ("pattern",))):
        if name not in item:
            raise RulesInvalid(f"{at}: {name} is missing.")
    hold = item.get("hold", "assignment" if named else "token")
    if hold not in get_args(Hold) or not _ID.fullmatch(item["id"]):
        raise RulesInvalid(f"{at}: id or hold is not of the known form.")
    keywords = tuple(item.get("keywords", [item["name"]] if named else ()))
    if any(word != word.lower() or not word for word in keywords):
        raise RulesInvalid(f"{at}: keywords are lower case and not empty.")
    if not keywords and hold not in ("digits", "mixed"):
        raise RulesInvalid(f"{at}: only a rule that holds digits or mixed needs no keyword.")
    check = item.get("check")
    if check is not None and check not in _CHECKS:
        raise RulesInvalid(f"{at}: no check is called {check}.")
    caseless = item.get("caseless", named)
    try:
        exact, pattern = _expressions(item, named)
        confirm = re.compile(exact, re.ASCII | (re.IGNORECASE if caseless else 0))
        if not ours:
            confirm = _linear(item, named, caseless)
    except (KeyError, ValueError, re.error) as error:
        raise RulesInvalid(f"{at}: {error}.") from None
    if item.get("severity") not in get_args(Severity) or not item.get("why"):
        raise RulesInvalid(f"{at}: severity ({', '.join(get_args(Severity))}) or why is missing.")
    if not item.get("match") or not item.get("clean"):
        raise RulesInvalid(f"{at}: match and clean have one example each at least.")
    return Rule(
        id=item["id"],
        group=item["group"],
        severity=item["severity"],
        why=item["why"],
        pattern=pattern,
        caseless=caseless,
        confirm=confirm,
        keywords=keywords,
        check=_CHECKS[check] if check else None,
        entropy=item.get("entropy", 0.0),
        hold=hold,
        bounded=item.get("left", "word") in ("word", "token"),
        digits=item.get("digits", hold == "digits"),
        ours=ours,
        grows=item.get("grows", False),
        generic=item.get("generic", False),
        match=tuple(item["match"]),
        clean=tuple(item["clean"]),
    )


def _expressions(item: dict[str, Any], named: bool) -> tuple[str, str]:
    """Return the exact expression for `re`, and one for hyperscan that matches wherever it does."""
    left = _LEFT[item.get("left", "name" if named else "word")]
    right = _RIGHT[item.get("right", "word")]
    if named:
        # The name is a word or an alternation; what stands behind it is the same for all.
        before = "(?:^|[^A-Za-z])" if item.get("left") == "letter" else ""
        behind = _NARROW if item.get("generic") else _TRIGGER
        trigger = f"{before}(?:{item.get('trigger', item['name'])}){behind}"
        return (
            f"{left}(?:{item['name']}){_STOP}{_BETWEEN}(?P<secret>{item['value']}){right}",
            trigger,
        )
    pattern = item["pattern"]
    trigger = _loose(item.get("trigger", _BORDER.sub("", re.sub(r"\(\?P<\w+>", "(", pattern))))
    if item.get("hold") == "block":
        body, end = item["body"], item["end"]
        # The body runs to the end mark, or to the first character that it cannot hold. A short one
        # counts only where the text ends, since more of it may come.
        inside = f"(?:(?!{end})(?:{body}))"
        return f"{pattern}(?:{inside}{{{_BLOCK},}}(?:{end})?|{inside}*\\Z)", trigger
    return f"{left}(?:{pattern}){right}", trigger


def _linear(item: dict[str, Any], named: bool, caseless: bool) -> re.Pattern[str]:
    """Return the exact expression of a rule that is not ours; raises ValueError."""
    from .linear import Linear  # three megabytes that only such rules need

    if item.get("hold") == "block":
        raise ValueError("only our own rules hold a block")
    pattern = item.get("pattern", "")
    if named:
        between = _BETWEEN.replace(r"""(?<=\s)(?=["'`])""", r"""\s["'`]""").replace(r">(?!\s)", ">")
        between = between.replace(r"""(?=[rbuf]?\\?["'`])""", "")
        between = between.replace(r"""(?:[rbuf](?=\\?["'`]))?""", "")
        pattern = f"(?:{item['name']}){between}(?P<secret>{item['value']})"
    left = item.get("left", "name" if named else "word")
    linear = Linear(pattern, left, item.get("right", "word"), caseless=caseless)
    return cast("re.Pattern[str]", linear)  # which has the members that are used


def _loose(pattern: str) -> str:
    """Return `pattern` with its long counted repeats left open, and the last one cut short.

    Counting costs hyperscan states: all rules compile in a fifth of the time, and each match is
    reported once and not at every further character.
    """

    def loose(match: re.Match[str]) -> str:
        least, most, end = int(match[1]), match[3] or (match[1] if not match[2] else ""), match[4]
        if end is not None and least:
            return f"{{{min(least, _ENOUGH)}}}" + re.sub(r"=(?:\?|\{0,\d\})", "", end)
        if end is not None or (most and int(most) <= _ENOUGH):
            return match[0]
        return f"{{{min(least, _ENOUGH)},}}"

    return _REPEAT.sub(loose, pattern)
