"""The examples in the rule files: expanded, and tried against the rules.

An example is a text in which ``{20:alnum}`` stands for twenty random characters of an alphabet, so
that no rule file holds anything that looks like a key; ``{}`` stands for nothing, and breaks a
published value up. The same example always gives the same text.
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Iterable, Iterator

from .actions import Treatment
from .rules import Rule, RuleBook, RulesInvalid
from .scan import Scanner

_RUN = re.compile(r"\{(?:(\d+):([a-zA-Z0-9]+))?\}")
_ALPHABETS = {
    "alnum": string.ascii_letters + string.digits,
    "letter": string.ascii_letters,
    "lower": string.ascii_lowercase + string.digits,
    "upper": string.ascii_uppercase + string.digits,
    "abc": string.ascii_lowercase,
    "digit": string.digits,
    "hex": string.digits + "abcdef",
    "HEX": string.digits + "ABCDEF",
    "base32": string.ascii_uppercase + "234567",
    "base58": (string.ascii_letters + string.digits).translate({ord(c): None for c in "0OIl"}),
    "base64": string.ascii_letters + string.digits + "+/",
    "url": string.ascii_letters + string.digits + "-_",
    "word": string.ascii_letters + string.digits + "_",
    "bech32": "QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L",
}
_TELLING = 8  # shorter runs may stand in a masked text by chance


def expand(example: str) -> tuple[str, list[str]]:
    """Return the text that `example` stands for, and its random runs; raises RulesInvalid."""
    draw = random.Random(example)  # noqa: S311  # nosec B311  # the same text every time is wanted
    runs: list[str] = []

    def run(match: re.Match[str]) -> str:
        if match[1] is None:
            return ""
        size, name = int(match[1]), match[2]
        alphabet = _ALPHABETS.get(name)
        if alphabet is None or not 0 < size <= 4096:
            raise RulesInvalid(f"an example asks for {match[0]}: no such alphabet, or too long.")
        while True:
            text = "".join(draw.choices(alphabet, k=size))
            digits = any(c.isdigit() for c in text)
            # Whole keys hold a digit and a letter, as good as always.
            if (
                size < _TELLING
                or name in ("letter", "abc", "digit")
                or (digits and not text.isdigit())
            ):
                break
        runs.append(text)
        return text

    return _RUN.sub(run, example), runs


def faults(scanner: Scanner, rules: Iterable[Rule] | None = None) -> Iterator[str]:
    """Try every example of `rules` (all, if none); yield a sentence for each that fails."""
    book = scanner.book
    groups = {group: alone(book, group) for group in book.groups}
    for rule in book.rules if rules is None else rules:
        for number, example in enumerate(rule.match, 1):
            if not _masked(scanner, groups[rule.group], rule, example):
                yield f"{rule.id}: match example {number} is not masked by this rule as a whole."
        for number, example in enumerate(rule.clean, 1):
            text, _ = expand(example)
            if any(item.rule is rule for item in scanner.find(text, groups[rule.group])):
                yield f"{rule.id}: clean example {number} is masked."


def alone(book: RuleBook, group: str) -> Treatment:
    """Return the treatment that masks one group; so other groups' rules take nothing from it."""
    actions = {rule.id: "mask" if rule.group == group else "allow" for rule in book.rules}
    return Treatment(actions, frozenset({group}), {})  # type: ignore[arg-type]  # two of its words


def _masked(scanner: Scanner, treatment: Treatment, rule: Rule, example: str) -> bool:
    """True: `rule` itself finds something in the example and no long random run is left."""
    text, runs = expand(example)
    found = scanner.find(text, treatment)
    starts, ends = [item.start for item in found], [item.end for item in found]
    left = "".join(text[a:b] for a, b in zip([0, *ends], [*starts, len(text)], strict=True))
    return any(item.rule is rule for item in found) and not any(
        run in left for run in runs if len(run) >= _TELLING
    )
