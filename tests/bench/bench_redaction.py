"""How fast the rules find secrets: hyperscan and confirm, against `re` rule by rule.

With ANCHORHOLD_CORPUS naming a file of secret cases (one JSON object a line with `kind`,
`positives` and `negatives`, each example in base64), it also says how much of it is found.
"""

from __future__ import annotations

import base64
import json
import os
import re
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from proxy.egress.guard import KeyGuard
from proxy.egress.keys import KeyRing
from proxy.egress.redaction import database, rules
from proxy.egress.redaction.actions import Treatment
from proxy.egress.redaction.hold import HoldBack
from proxy.egress.redaction.scan import Scanner
from proxy.egress.redaction.stream import Channel
from proxy.egress.redaction.text import Masker
from proxy.egress.redaction.views import DecodeLimit
from tests.bench.figure import Figure
from tests.unit.egress.evasions import EVASIONS
from tests.unit.egress.samples import SECRETS

SAMPLE = 400  # positives of the corpus that are tried in every disguise
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
    """Which share of the positives is found, as it stands and disguised, and of the negatives.

    Disguised, one positive of each kind and every tenth of the rest stand for all.
    """
    cases = [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]
    sides = {
        side: [base64.b64decode(example).decode() for case in cases for example in case[side]]
        for side in ("positives", "negatives")
    }

    def stopped(text: str) -> bool:
        try:
            return bool(scanner.find(text, treatment))
        except DecodeLimit:
            return True  # refused

    def share(texts: list[str]) -> float:
        return 100 * sum(map(stopped, texts)) / len(texts)

    figures = [Figure(f"corpus: {side} found", share(texts), "%") for side, texts in sides.items()]
    wrong = sorted(set(sides["negatives"]) - set(sides["positives"]))  # one kind's may be another's
    figures.append(Figure("corpus: negatives found that no kind has", share(wrong), "%"))
    known = [text for text in sides["positives"] if scanner.find(text, treatment)]
    sample = known[:: max(1, len(known) // SAMPLE)]
    for name, disguise in EVASIONS.items():
        found = share([f"see {disguise(text)} now" for text in sample])
        figures.append(Figure(f"recall of those known, {name}", found, "%"))
    return figures


def streams(scanner: Scanner) -> list[Figure]:
    """What a piece of a stream costs: words that begin nothing, and text with digits and signs."""
    hold = HoldBack(scanner.book)
    quiet = re.findall(
        r" ?[A-Za-z]+", "for the third quarter we move our meeting into room four " * 80
    )
    mixed = re.findall(r" ?[^ ]+", PROSE * 8)
    figures = []
    for name, pieces in (("clean words", quiet), ("prose with numbers", mixed)):

        def work(pieces: list[str] = pieces) -> None:
            channel = Channel(Masker(scanner, KeyGuard(KeyRing()), "standard"), hold)
            for piece in pieces:
                channel.feed(piece)

        cost = seconds(work, 5) / len(pieces) * 1e6
        figures.append(Figure(f"one delta of a stream: {name}", cost, "us"))
    return figures


def main() -> list[Figure]:
    """Measure; the ratio is of speeds, so that higher is better and no bound applies."""
    began = time.perf_counter()
    book = rules.load()
    scanner = Scanner(book)
    ready = time.perf_counter() - began
    if not database.stored():
        raise RuntimeError("set-up left no compiled rules")
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
    figures += [
        Figure(f"{len(book.rules)} rules ready at a start", ready, "s", bound=1),
        *streams(scanner),
    ]
    path = os.environ.get("ANCHORHOLD_CORPUS")
    if path is None:
        print("bench: ANCHORHOLD_CORPUS is not set; recall is not measured")
        return figures
    return figures + corpus(scanner, scanner.presets["secrets"], path)


if __name__ == "__main__":
    for figure in main():
        print(*figure.row(), sep="  ")
