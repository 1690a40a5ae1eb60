"""Expressions whose time grows with the text and with nothing else, for rules that are not ours.

`re` backtracks: one careless expression of an administrator, ``(a+)+b``, would stop the proxy for
minutes on a line that a workload can choose. RE2 cannot, and refuses what it cannot do in linear
time. It does not look round: the limits of a value are matched with it and then left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import re2

_LEFT = {
    "word": "[^A-Za-z0-9_]",
    "name": "[^A-Za-z]",
    "letter": "[^A-Za-z]",
    "token": "[^A-Za-z0-9_./-]",
    "digit": "[^0-9.A-Za-z]",
}
_RIGHT = {"word": "[^A-Za-z0-9_]", "token": "[^A-Za-z0-9_-]", "digit": "[^0-9A-Za-z]"}


@dataclass(frozen=True, slots=True)
class Found:
    """A match; group 0 is the value between its limits."""

    text: str
    spans: dict[int | str, tuple[int, int]]

    def start(self, group: int | str = 0) -> int:
        """Return where `group` begins in the whole text."""
        return self.spans[group][0]

    def end(self, group: int | str = 0) -> int:
        """Return where `group` ends in the whole text."""
        return self.spans[group][1]

    def __getitem__(self, group: int | str) -> str:
        start, end = self.spans[group]
        return self.text[start:end]


class Linear:
    """A compiled expression with the members that are used of `re.Pattern`."""

    def __init__(self, pattern: str, left: str, right: str, *, caseless: bool) -> None:
        """Compile; ValueError says why RE2 refuses `pattern`. The limits as in rule files."""
        options = re2.Options()
        options.case_sensitive, options.log_errors = not caseless, False
        before, behind = _LEFT.get(left, r"(?s:.)"), _RIGHT.get(right)
        whole = f"{before}(?P<whole>{pattern})" + (f"(?:{behind}|$)" if behind else "")
        try:
            self._compiled: Any = re2.compile(whole, options)
        except re2.error as error:
            said = error.args[0] if error.args else ""
            raise ValueError(said.decode() if isinstance(said, bytes) else str(said)) from None
        self.pattern = pattern
        self.groupindex: dict[str, int] = dict(self._compiled.groupindex)
        self.groups = self._compiled.groups - 1

    def search(self, text: str, start: int = 0, end: int | None = None) -> Found | None:
        """Return the first match within `text[start:end]`; what stands next to it counts."""
        # One character more on both sides; before the beginning one that limits every value.
        low = start - 1
        window = (text[low] if start else "\0") + text[
            start : (len(text) if end is None else end) + 1
        ]
        match = self._compiled.search(window)
        if not match:
            return None
        names: list[tuple[int | str, int]] = [(0, self.groupindex["whole"])]
        names += self.groupindex.items()
        return Found(text, {name: (low + match.start(n), low + match.end(n)) for name, n in names})

    def match(self, text: str, start: int = 0, end: int | None = None) -> Found | None:
        """Return the match that begins at `start`."""
        found = self.search(text, start, end)
        return found if found and found.start() == start else None
