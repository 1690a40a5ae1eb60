"""Every way to read a text: as it stands, normalised, decoded, and what that holds in turn.

Each view is made of the one before by undoing one layer of encoding everywhere at once, with a
map back; a finding in any of them is a range of the text itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from proxy.errors import ProxyError

from . import encodings, normalise
from .edits import Edit, Edited, disjoint

OPENED_MAX = 5  # layers of encoded runs, one inside the other
DEPTH = 16  # views of one text, with those that undo short escapes
RUNS_MAX = 20_000
DECODED_MAX = 16 * 1024 * 1024

Gates = dict[int, list[int]]  # which of encodings.GATES matched, and where


class ScanFailed(ProxyError):  # reads as a sentence where it is raised
    """The scanner could not do its work; nothing that it was given may pass."""

    code = "scan_failed"


class DecodeLimit(ScanFailed):
    """A text holds more encoded runs, or nests them deeper, than is looked into."""

    code = "decode_limit"


@dataclass(slots=True)
class Work:
    """How much of one request's texts has been decoded; past the limits it is refused."""

    runs: int = 0
    decoded: int = 0

    def spend(self, edits: list[Edit]) -> None:
        """Count what was opened. Raises DecodeLimit."""
        self.runs += sum(edit.where is not None or len(edit.text) > 8 for edit in edits)
        self.decoded += sum(len(edit.text) for edit in edits)
        if self.runs > RUNS_MAX or self.decoded > DECODED_MAX:
            raise DecodeLimit("Too much of the text is encoded.")


class View:
    """One reading of a text; `parent` is the one that it was made of."""

    __slots__ = ("_edited", "depth", "opened", "parent", "pending", "text")

    def __init__(self, text: str, parent: View | None = None, edited: Edited | None = None) -> None:
        self.text = text
        self.parent = parent
        self._edited = edited
        self.depth: int = parent.depth + 1 if parent else 0
        self.opened: int = parent.opened if parent else 0
        self.pending: int | None = None  # from where on the parent's text does not say enough yet

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Return the range of the text itself that `self.text[start:end]`, not empty, is."""
        view: View | None = self
        while view is not None:
            if view._edited is not None:
                start, end = view._edited.span(start, end)
            view = view.parent
        return start, end

    def after(self, position: int) -> int:
        """Return the first position here that came from `position` of the text, or behind it."""
        if self.parent is None:
            return position
        position = self.parent.after(position)
        return self._edited.after(position) if self._edited else position


def unfolded(view: View, gates: Gates, work: Work, final: bool = True) -> View | None:
    """Return the next view, with one layer undone; None where nothing is encoded or unusual.

    `gates` are the scanner's for this view's text. Short escapes and what is dropped come first:
    only then are whole runs opened, which may have been hidden by them. `final`: no text follows.
    Raises DecodeLimit.
    """
    return cleaned(view, gates, work, final) or _opened(view, gates, work, final)


def cleaned(view: View, gates: Gates, work: Work, final: bool = True) -> View | None:
    """Return the view with look-alikes, unseen characters and short escapes undone, if any.

    Not `final`: an escape that may be cut off is left out.
    """
    text = normalise.fold(view.text)
    edits = [] if text.isascii() else list(normalise.edits(text))
    if encodings.INLINE in gates:
        edits += encodings.inline(text)
    if text.isascii() and (encodings.INLINE in gates or not final):
        edits += normalise.edits(text)
    end = len(text) if final else encodings.cut_off(text)
    if end < len(text):
        edits = [edit for edit in edits if edit.end <= end]
        edits.append(Edit(end, len(text), "", pending=end))
    if not edits:
        return View(text, view) if text is not view.text and text != view.text else None
    return _edited(view, text, disjoint(edits), work)


def _opened(view: View, gates: Gates, work: Work, final: bool) -> View | None:
    edits = list(_runs(view.text, gates, final))
    if not edits:
        return None
    if view.opened >= OPENED_MAX:
        raise DecodeLimit("A text is encoded too many times over.")
    following = _edited(view, view.text, disjoint(edits), work)
    if following:
        following.opened += 1
    return following


def _edited(view: View, text: str, edits: list[Edit], work: Work) -> View | None:
    work.spend(edits)
    edited = Edited(text, edits)
    if edited.text == view.text:
        return None
    if view.depth >= DEPTH:
        raise DecodeLimit("A text is escaped too many times over.")
    following = View(edited.text, view, edited)
    pending = [edit.pending for edit in edits if edit.pending is not None]
    following.pending = min(pending, default=None)
    return following


def _runs(text: str, gates: Gates, final: bool) -> Iterable[Edit]:
    done = 0
    for hit in gates.get(encodings.BASE64, ()):
        if hit > done and (edit := encodings.base64_run(text, hit, final)):
            yield edit
            done = edit.end
    done = 0
    for hit in gates.get(encodings.HEX, ()):
        for edit in encodings.hex_runs(text, hit, final) if hit > done else ():
            yield edit
            done = edit.end
    if encodings.PACKED in gates:
        yield from encodings.packed_runs(text, final)
    if encodings.WIDE in gates:
        yield from encodings.wide_runs(text, final)
