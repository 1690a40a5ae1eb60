"""Every attempt in a workload that the supervisor launches, and what became of it."""

from __future__ import annotations

import re
from typing import NoReturn

import pytest

from sandbox.cgroup import find_mount
from tests.attacks import control
from tests.attacks.attempts import ATTEMPTS, PROGRAM
from tests.attacks.attempts.attempt import NONE, Attempt, is_errno
from tests.attacks.events import visible
from tests.attacks.report import ALLOWED, FAILED, REFUSED, UNTESTABLE, Row
from tests.attacks.scene import SHIPPED, WEAKEST, command
from tests.attacks.suite import Suite

CONTROLLERS = (find_mount() / "cgroup.controllers").read_text().split()


def named(attempt: Attempt) -> str:
    return f"{attempt.id} {attempt.promise}".replace(" ", "-").replace("/", "_")


def lacking(rows: list[Row], id_: str, promise: str, why: str) -> NoReturn:
    """Say loudly that this is not tried here."""
    rows.append(Row(id_, promise, SHIPPED, "", why, "", "", UNTESTABLE))
    pytest.skip(f"{id_} {promise}: not testable here, {why}; the VM tier tries it")


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=named)
def test_refused(suite: Suite, attempt: Attempt, rows: list[Row]) -> None:
    program = PROGRAM[attempt.id]
    if attempt.controller and attempt.controller not in CONTROLLERS:
        lacking(rows, attempt.id, attempt.promise, f"no v2 {attempt.controller} controller")
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
    for policy in (SHIPPED,) if attempt.controller else (SHIPPED, WEAKEST):
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


@pytest.mark.parametrize(
    ("id_", "promise"),
    [("A43", "spinning on all cores gets the share of cpu.max"), ("A44", "no page goes to swap")],
)
def test_measured_in_a_machine(rows: list[Row], id_: str, promise: str) -> None:
    lacking(rows, id_, promise, "a share and a swap are measured where nothing else runs")
