"""A text with some of its parts replaced, which still knows where every character came from."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import NamedTuple


class Edit(NamedTuple):
    """`text` takes the place of [start, end) of the text before.

    Where each character of `text` stands for some units of its own, `where` gives the positions
    of all units, and (`many`, `few`) says that `many` units made `few` characters: (4, 3) for
    base64. Without it, each character stands for the whole. From `pending` on, what was read says
    nothing yet, but would if more text followed.
    """

    start: int
    end: int
    text: str
    where: Sequence[int] | None = None
    many: int = 1
    few: int = 1
    pending: int | None = None


class Edited:
    """The text after the edits; `edits` are in order and do not overlap."""

    __slots__ = ("_at", "_edits", "text")

    def __init__(self, text: str, edits: list[Edit]) -> None:
        parts: list[str] = []
        self._edits = edits
        self._at: list[int] = []  # where each edit's own text begins, afterwards
        size = done = 0
        for edit in edits:
            parts += (text[done : edit.start], edit.text)
            size += edit.start - done
            self._at.append(size)
            size += len(edit.text)
            done = edit.end
        parts.append(text[done:])
        self.text = "".join(parts)

    def before(self, position: int) -> tuple[int, int]:
        """Return the range of the text before that the character at `position` came from."""
        number = bisect_right(self._at, position) - 1
        if number < 0:
            return position, position + 1
        edit = self._edits[number]
        inside = position - self._at[number]
        if inside >= len(edit.text):
            at = edit.end + inside - len(edit.text)
            return at, at + 1
        if edit.where is None:
            return edit.start, edit.end
        first = inside // edit.few * edit.many
        last = min(first + edit.many, len(edit.where)) - 1
        end = edit.end if inside == len(edit.text) - 1 else edit.where[last] + 1
        return edit.where[first], end

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Return the range of the text before that [start, end), not empty, came from."""
        return self.before(start)[0], self.before(end - 1)[1]

    def after(self, position: int) -> int:
        """Return the first position afterwards that came from `position` or behind it."""
        shift = 0
        for edit, at in zip(self._edits, self._at, strict=True):
            if edit.start >= position:
                break
            shift = at + len(edit.text) - edit.end
            if edit.end > position:
                if edit.where is None:
                    return at
                groups = -(-bisect_left(edit.where, position) // edit.many)
                return at + min(groups * edit.few, len(edit.text))
        return position + shift


def disjoint(edits: list[Edit]) -> list[Edit]:
    """Return `edits` in order; of two that overlap, the longer one stays."""
    edits.sort(key=lambda edit: (edit.start, -edit.end))
    kept: list[Edit] = []
    for edit in edits:
        if kept and edit.start < kept[-1].end:
            if edit.end - edit.start > kept[-1].end - kept[-1].start:
                kept[-1] = edit
        else:
            kept.append(edit)
    return kept
