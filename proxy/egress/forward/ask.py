"""Destinations that the operator decides on: requests are held until he has, or time is up."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from proxy.egress.errors import Refusal

from .destination import Destination

HELD_MAX = 16  # requests of one workload that may wait at the same time
ANSWERS_MAX = 1024

# Writes the record of a question: workload, host, port, rule, verdict, reason, and more.
Note = Callable[..., None]


@dataclass(slots=True)
class _Answer:
    """The operator's word on one destination: good until then, for so many requests."""

    allowed: bool
    until: float
    uses: int


@dataclass(slots=True)
class _Question:
    id: str
    rule: Destination
    waiting: list[asyncio.Future[bool]] = field(default_factory=list)


class Asks:
    """The open questions and the answers of all workloads."""

    def __init__(self, note: Note, now: Callable[[], float] = time.monotonic) -> None:
        self._note = note
        self._now = now
        self._answers: dict[tuple[str, str, int], _Answer] = {}
        self._questions: dict[tuple[str, str, int], _Question] = {}

    async def permission(self, workload: str, host: str, port: int, rule: Destination) -> None:
        """Return when the operator allows it; one use of his word is spent. Raises Refusal."""
        key = (workload, host, port)
        if not self._spent(key):
            return
        held = [q for (who, _, _), q in self._questions.items() if who == workload]
        if sum(len(question.waiting) for question in held) >= HELD_MAX:
            message = f"{HELD_MAX} requests wait for the operator already."
            raise Refusal("too_many_requests", message)
        question = self._questions.get(key)
        if question is None:
            question = _Question(os.urandom(4).hex(), rule)
            until = datetime.now(UTC) + timedelta(seconds=rule.hold)
            self._note(
                workload, host, port, rule, "held", None, id=question.id,
                until=until.strftime("%Y-%m-%dT%H:%M:%SZ"),
            )  # fmt: skip
            self._questions[key] = question  # only now: what is not on record, nobody answers
        answered: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        question.waiting.append(answered)
        try:
            async with asyncio.timeout(rule.hold):
                allowed = await answered
        except TimeoutError:
            if len(question.waiting) == 1:
                self._note(workload, host, port, rule, "refused", "ask_timeout", id=question.id)
            message = f"Nobody allowed this host within {rule.hold:g} s."
            raise Refusal("ask_timeout", message, by_rule=True) from None
        finally:
            question.waiting.remove(answered)
            if not question.waiting and self._questions.get(key) is question:
                del self._questions[key]
        if not allowed:
            raise _refused()
        if self._spent(key):
            raise Refusal("destination_refused", "The operator's word is used up.", by_rule=True)

    def answer(
        self, workload: str, host: str, port: int, *, allowed: bool, seconds: float, uses: int
    ) -> None:
        """Take the operator's word; those who wait for it go on."""
        key = (workload, host, port)
        while len(self._answers) >= ANSWERS_MAX:
            del self._answers[next(iter(self._answers))]
        self._answers[key] = _Answer(allowed, self._now() + seconds, uses)
        question = self._questions.pop(key, None)
        if question is None:
            return
        verdict = "allowed" if allowed else "refused"
        self._note(workload, host, port, question.rule, verdict, None, id=question.id)
        for waiting in question.waiting:
            if not waiting.done():
                waiting.set_result(allowed)

    def _spent(self, key: tuple[str, str, int]) -> bool:
        """True when there is no answer; otherwise one use is taken. Raises Refusal for a no."""
        answer = self._answers.get(key)
        if answer is None or answer.until <= self._now() or answer.uses <= 0:
            self._answers.pop(key, None)
            return True
        if not answer.allowed:
            raise _refused()
        answer.uses -= 1
        return False


def _refused() -> Refusal:
    return Refusal("destination_refused", "The operator refused this host.", by_rule=True)
