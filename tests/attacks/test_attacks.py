"""Every attempt in a workload that the supervisor launches, and what became of it."""

from __future__ import annotations

import re

import pytest

from tests.attacks import control
from tests.attacks.attempts import ATTEMPTS, PROGRAM
from tests.attacks.attempts.attempt import NONE, Attempt, is_errno
from tests.attacks.events import visible
from tests.attacks.report import ALLOWED, FAILED, REFUSED, UNTESTABLE, Row
from tests.attacks.scene import SHIPPED, WEAKEST, command
from tests.attacks.suite import Suite


def named(attempt: Attempt) -> str:
    return f"{attempt.id} {attempt.promise}".replace(" ", "-").replace("/", "_")


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=named)
def test_refused(suite: Suite, attempt: Attempt, rows: list[Row]) -> None:
    program = PROGRAM[attempt.id]
    suite.furnish()
    argv = command(suite.scene.place, program, attempt.id, attempt.words, suite.outside)
    outside = control.run(attempt.control, argv)
    works = re.fullmatch(attempt.works, outside) is not None
    if not works and not re.fullmatch(attempt.lacks, outside):
        rows.append(Row(attempt.id, attempt.promise, "", "", "", "", outside, FAILED))
        pytest.fail(f"the control answers {outside}, neither {attempt.works} nor {attempt.lacks}")
    suite.furnish()
    suite.scene.others.drain()
    wrong = []
    for policy in (SHIPPED, WEAKEST):
        before = suite.canary.snapshot()
        answer = suite.attempt(policy, program, attempt.id, attempt.words)
        mistakes = suite.damage(before)
        expected = attempt.expected(suite.spec(policy))
        if not re.fullmatch(expected, answer):
            mistakes.append(f"answered {answer}, not {expected}")
        event = ""
        if visible(refusal := answer if answer == "SIGSYS" else is_errno(answer)):
            event = suite.events.wait(attempt.comm or attempt.id, policy, refusal)
            if not event:
                mistakes.append(f"no record of {refusal}")
        again = suite.attempt(policy, "descriptors", "afterwards", ("harmless",))
        if again != "returned 0":
            mistakes.append(f"a harmless request afterwards: {again}")
        layer = attempt.refused_by(suite.spec(policy))
        passed = ALLOWED if layer == NONE else REFUSED
        verdict = FAILED if mistakes else passed if works else UNTESTABLE
        rows.append(
            Row(attempt.id, attempt.promise, policy, layer, answer, event, outside, verdict)
        )
        wrong += [f"{policy}: {mistake}" for mistake in mistakes]
    assert not wrong, "\n".join([f"outside: {outside}", *wrong])
    if not works:
        pytest.skip(f"{attempt.id} {attempt.promise}: not testable here, outside: {outside}")


def test_the_other_workloads_noticed_nothing(suite: Suite) -> None:
    assert suite.siblings() == suite.pids
