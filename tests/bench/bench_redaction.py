"""How fast the rules find secrets: hyperscan and confirm, against `re` rule by rule.

With ANCHORHOLD_CORPUS naming a file of secret cases (one JSON object a line with `kind`,
`positives` and `negatives`, each example in base64), it also says how much of it is found.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from proxy.egress.redaction import rules
from proxy.egress.redaction.actions import Treatment
from proxy.egress.redaction.scan import Scanner
from tests.bench.figure import Figure
from tests.unit.egress.samples import SECRETS

PROSE = (
    "Dear team, the meeting of 2026-11-23 is moved to 10:30 in room 4.12; please bring the report "
    "on order 83721 and the figures for the third quarter, and tell Jane (jane@example.org). "
)


def text() -> str:
    """Half a megabyte of letters with one secret in about 25 KB."""
    block = PROSE * 140
    return "".join(block + secret + ". " for secret in SECRETS.values())


def seconds(work: object, rounds: int) -> float:
    """The best of several rounds, because other work only ever adds time."""
    best = float("inf")
    for _ in range(rounds):
        began = time.perf_counter()
        work()  # type: ignore[operator]  # a plain callable
        best = min(best, time.perf_counter() - began)
    return best


def corpus(scanner: Scanner, treatment: Treatment, path: str) -> list[Figure]:
    """Which share of the positives is found and of the negatives is not left alone."""
    counts = {"positives": [0, 0], "negatives": [0, 0]}
    for line in Path(path).read_text("utf-8").splitlines():
        case = json.loads(line)
        for side, count in counts.items():
            for example in case[side]:
                found = scanner.find(base64.b64decode(example).decode(), treatment)
                count[0] += bool(found)
                count[1] += 1
    return [
        Figure(f"corpus: {side} found", 100 * hit / max(1, total), "%")
        for side, (hit, total) in counts.items()
    ]


def main() -> list[Figure]:
    """Measure; the ratio is of speeds, so that higher is better and no bound applies."""
    book = rules.load()
    scanner = Scanner(book)
    treatment = scanner.presets["standard"]
    sample = text()
    size = len(sample) / 1e6
    if len(scanner.find(sample, treatment)) < len(SECRETS):
        raise RuntimeError("the scanner missed a sample")
    fast = size / seconds(lambda: scanner.find(sample, treatment), 5)
    short = sample[: len(sample) // 8]
    slow = (
        len(short) / 1e6 / seconds(lambda: [list(r.confirm.finditer(short)) for r in book.rules], 1)
    )
    figures = [Figure("scan of all rules", fast, "MB/s", slow, "re rule by rule")]
    path = os.environ.get("ANCHORHOLD_CORPUS")
    if path is None:
        print("bench: ANCHORHOLD_CORPUS is not set; recall is not measured")
        return figures
    return figures + corpus(scanner, scanner.presets["secrets"], path)


if __name__ == "__main__":
    for figure in main():
        print(*figure.row(), sep="  ")
