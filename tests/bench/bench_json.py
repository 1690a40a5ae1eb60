"""How fast JSON is read strictly and looked through, clean or with a secret, whole or in pieces."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from proxy.egress.guard import KeyGuard
from proxy.egress.keys import KeyRing
from proxy.egress.redaction import rules
from proxy.egress.redaction.arguments import ArgumentsChannel
from proxy.egress.redaction.hold import HoldBack
from proxy.egress.redaction.json_walk import parse
from proxy.egress.redaction.scan import Scanner
from proxy.egress.redaction.text import Masker
from tests.bench.bench_redaction import seconds
from tests.bench.figure import Figure
from tests.unit.egress.samples import SECRETS

PROSE = 'The minutes are below, what is open is at the end.\nNobody asked for "more" than that. '
PIECE = 6  # characters of one delta


def chat(size: int, each: int) -> dict[str, object]:
    """A chat of about `size` bytes in messages of `each`; a fiftieth of it needs escapes."""
    text = (PROSE * (each // len(PROSE) + 1))[:each]
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": text} for n in range(size // each)]
    return {"model": "llm-v1", "messages": messages, "stream": True}


def main() -> list[Figure]:
    """Measure; speeds are in MB of JSON a second, so that higher is better and no bound applies."""
    scanner = Scanner(book := rules.load())
    masker = Masker(scanner, GUARD, "standard")
    figures = []
    for size, each in ((2_000, 2_000), (1_000_000, 400), (1_000_000, 8_000)):
        text = json.dumps(chat(size, each))
        if masker.document(text) is not text:
            raise RuntimeError("something was found in prose")
        times = max(1, 500_000 // len(text))

        def rate(work: object, text: str = text, times: int = times) -> float:
            taken = seconds(lambda: [work(text) for _ in range(times)], 5)  # type: ignore[operator]  # plain
            return times * len(text) / taken / 1e6

        name = f"chat of {size // 1000} kB, {each} B a message"
        figures += [
            Figure(f"{name}: read strictly", rate(parse), "MB/s", rate(json.loads), "json.loads"),
            Figure(f"{name}: read and found clean", rate(masker.document), "MB/s"),
        ]
    document = chat(1_000_000, 400)
    document["user"] = SECRETS["github-token"]
    text = json.dumps(document)
    if SECRETS["github-token"] in masker.document(text):
        raise RuntimeError("the secret was missed")
    taken = seconds(lambda: masker.document(text), 3)
    figures.append(Figure("the same with one secret, masked", len(text) / taken / 1e6, "MB/s"))
    hold, text = HoldBack(book), json.dumps({"path": "/srv/notes", "content": PROSE * 40})
    pieces = [text[at : at + PIECE] for at in range(0, len(text), PIECE)]

    def feed() -> None:
        channel = ArgumentsChannel(masker, hold)
        for piece in pieces:
            channel.feed(piece)
        channel.flush()

    each_piece = seconds(feed, 5) / len(pieces) * 1e6
    return [*figures, Figure(f"tool arguments, a piece of {PIECE} letters", each_piece, "us")]


GUARD = KeyGuard(KeyRing())

if __name__ == "__main__":
    for figure in main():
        print(*figure.row(), sep="  ")
