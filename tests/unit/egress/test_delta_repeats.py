"""An event like the last, save its piece, is not parsed again: what a long answer costs."""

from __future__ import annotations

import json

import pytest

from proxy import providers
from proxy.egress import deltas
from proxy.egress.guard import KeyGuard
from proxy.egress.keys import KeyRing
from proxy.egress.redaction import rules
from proxy.egress.redaction.scan import Scanner
from proxy.egress.redaction.stream import HoldBack
from proxy.egress.redaction.text import Masker

from .harness import delta

WORDS = ("thank ", "you, ", "we ", "have ", "found ", "your ", "order ")


@pytest.mark.parametrize("separators", [(", ", ": "), (",", ":")], ids=["spaced", "compact"])
def test_events_that_differ_in_their_piece_alone_are_parsed_once(
    monkeypatch: pytest.MonkeyPatch, separators: tuple[str, str]
) -> None:
    parsed = []
    parse = deltas.parse
    monkeypatch.setattr(deltas, "parse", lambda data: parsed.append(data) or parse(data))
    book = rules.load()
    masker = Masker(Scanner(book), KeyGuard(KeyRing()), "standard")
    provider = providers.load()["openai-compatible"]
    kind = next(r.stream for r in provider.routes if r.path == "/chat/completions")
    assert kind is not None
    stream = deltas.StreamMasker(kind, provider, masker, HoldBack(book))
    events = [json.dumps(json.loads(delta(word)[6:]), separators=separators) for word in WORDS]
    sent = [event.data for data in events for event in stream.event(data)[1]]
    sent += [event.data for event in stream.end()]
    texts = [json.loads(data)["choices"][0]["delta"].get("content", "") for data in sent]
    assert "".join(texts) == "".join(WORDS)
    assert len(parsed) <= 2
