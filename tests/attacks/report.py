"""What became of every attempt, as a table for people and as JSON for machines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

import pytest

REFUSED, ALLOWED, UNTESTABLE, FAILED = "refused", "allowed", "NOT TESTABLE HERE", "FAILED"


@dataclass(frozen=True)
class Row:
    """One attempt under one policy. `layer` refused it with `answer`; `event` is its record."""

    id: str
    promise: str
    policy: str
    layer: str
    answer: str
    event: str
    outside: str
    verdict: str


ROWS = pytest.StashKey[list[Row]]()
MATRIX = pytest.StashKey[dict[str, dict[str, str]]]()  # attempt, layer, mark


def table(headings: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Lines with aligned columns."""
    rows = list(rows)
    widths = [max(len(row[i]) for row in [headings, *rows]) for i in range(len(headings))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [headings, *rows]
    ]


def lines(rows: list[Row]) -> list[str]:
    """The report: a line per attempt, the worst policy's answer first where they differ."""
    shown = [
        (r.id, r.promise[:62], r.policy, r.layer[:28], r.answer[:24], r.event, r.verdict)
        for r in rows
    ]
    found = table(("attempt", "promise", "policy", "refused by", "answer", "event", ""), shown)
    counts = Counter(row.verdict for row in rows)
    found.append("attempts: " + ", ".join(f"{n} {what}" for what, n in counts.items()))
    return found


def matrix_lines(matrix: Mapping[str, Mapping[str, str]], layers: tuple[str, ...]) -> list[str]:
    """Attempts by removed layer, only those whose answer depends on one.

    "." as with all layers, "o" refused otherwise, "X" let through, "r" the kernel looked at the
    malformed request, "?" not testable; empty: the filters, which are asked first, refuse it.
    """
    marks = {id_: [cells.get(layer, " ") for layer in layers] for id_, cells in matrix.items()}
    interesting = {id_: row for id_, row in marks.items() if set(row) - {".", " ", "?"}}
    columns = tuple(str(number) for number in range(1, len(layers) + 1))
    found = [f"{number:>4} {layer}" for number, layer in enumerate(layers, 1)]
    rows = [(id_, *row) for id_, row in interesting.items()]
    found += table(("", *columns), rows)
    same = len(marks) - len(interesting)
    found.append(f"{same} attempts get the same answer whichever one layer is missing")
    found.append(
        ". as with all layers   o refused otherwise   X let through   r malformed, and looked at   "
        "? not testable here   empty: refused by the filters, which are asked first"
    )
    return found


def as_json(rows: list[Row], matrix: Mapping[str, Mapping[str, str]]) -> dict[str, object]:
    """Everything, for `--json`."""
    return {"attempts": [asdict(row) for row in rows], "matrix": matrix}
