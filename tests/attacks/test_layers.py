"""Every attempt against the sandbox less one layer: which layers carry, and which carry alone."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sandbox import credentials, syscalls
from sandbox.errors import LaunchFailed
from tests.attacks import control
from tests.attacks.attempts import ATTEMPTS as ALL
from tests.attacks.attempts import PROGRAM
from tests.attacks.attempts.attempt import NONE, Attempt, is_errno
from tests.attacks.cell import Bench
from tests.attacks.layers import LAYERS, RESTS_ON_ONE, Layer
from tests.attacks.report import MATRIX
from tests.attacks.scene import Bystanders, Place, command

# The launcher alone sets no limits that need a controller.
ATTEMPTS = tuple(attempt for attempt in ALL if not attempt.controller)


@contextmanager
def within(network: int) -> Iterator[None]:
    """This thread, and what it starts, in another network namespace."""
    home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    syscalls.setns(network, syscalls.CLONE_NEWNET)
    try:
        yield
    finally:
        syscalls.setns(home, syscalls.CLONE_NEWNET)
        os.close(home)


def stand_in_network() -> int:
    """A network namespace that plays the machine's, so that nothing can leave the real one."""
    with within(os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)):
        syscalls.unshare(syscalls.CLONE_NEWNET)
        subprocess.run(["sh", "-c", control.NETWORK, "sh", "true"], check=True, timeout=30)
        return os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


class Stage:
    """Bait and bystanders in a network of their own, and what the controls answer there."""

    def __init__(self, place: Place, folder: Path) -> None:
        self.place = place
        self.network = stand_in_network()
        with within(self.network):
            self.others = Bystanders(folder)
        self.base: dict[str, str] = {}
        self.outside: dict[str, str] = {}

    def facts(self, bench: Bench) -> dict[str, str]:
        """The words of an attempt: the sentinel stands for every other process."""
        others, victim = self.others, str(self.others.sentinel.pid)
        return {
            **others.facts(), **self.place.facts(), "supervisor": victim, "zygote": victim,
            "scratch": str(self.place.scratch), "setgroups": "allow",
            "run": str(others.socket.parent), "channel": str(others.socket),
            "leaf": str(bench.cell.slice.path),
        }  # fmt: skip

    def ask_controls(self, bench: Bench) -> None:
        """Run every control once, and every attempt against all layers."""
        facts = {**self.facts(bench), "setgroups": "deny"}
        with within(self.network):
            for attempt in ATTEMPTS:
                self.lay_bait(attempt)
                words = command(self.place, PROGRAM[attempt.id], attempt.id, attempt.words, facts)
                self.outside[attempt.id] = control.run(attempt.control, words)
        self.others.drain()
        self.base = {id_: answer for id_, (answer, _) in self.ask_all(bench).items()}

    def ask_all(self, bench: Bench, filters: bool = True) -> dict[str, tuple[str, int]]:
        """Every attempt's answer, and how much arrived at the bystanders meanwhile.

        Without `filters` only those that the filters let pass: they are asked before any other
        layer, so that what they refuse does not depend on one.
        """
        facts = self.facts(bench)
        found = {}
        for attempt in ATTEMPTS:
            if not filters and attempt.decided(bench.plan.seccomp) != "allow":
                continue
            self.lay_bait(attempt)
            words = tuple(word.format_map(facts) for word in attempt.words)
            answer = bench.run(PROGRAM[attempt.id], words, name=attempt.id).answer
            found[attempt.id] = answer, self.others.drain()
        return found

    def lay_bait(self, attempt: Attempt) -> None:
        """Again, where an attempt could have taken it."""
        if any("{scratch}" in word or "{programs}" in word for word in attempt.words):
            self.place.lay_bait()

    def mark(self, attempt: Attempt, answer: str, arrived: int) -> str:
        """One cell of the matrix, in the letters of report.matrix_lines."""
        base, outside = self.base[attempt.id], self.outside[attempt.id]
        if not re.fullmatch(attempt.works, outside):
            return "?"
        alike = re.fullmatch(attempt.works, answer) and not re.fullmatch(attempt.works, base)
        like_outside = alike and not re.fullmatch(attempt.beneath, answer)
        if attempt.layer != NONE and (arrived or like_outside):
            # A malformed request that the kernel looks at says not who refuses a well-formed one.
            return "r" if is_errno(answer) not in ("", "ECONNREFUSED") else "X"
        return "." if re.sub(r"\d+", "N", answer) == re.sub(r"\d+", "N", base) else "o"


@pytest.fixture(scope="module")
def stage(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """The stage, with the answers of the whole sandbox."""
    made = Stage(place, tmp_path_factory.mktemp("stage"))
    with within(made.network):
        bench = Bench(place)
    try:
        made.ask_controls(bench)
    finally:
        bench.close()
    yield made
    made.others.close()
    os.close(made.network)


@pytest.fixture
def bench(
    request: pytest.FixtureRequest, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bench]:
    """A launcher that goes without the layer of the test."""
    layer: Layer = request.param
    layer.remove(monkeypatch)
    with within(stage.network):
        made = Bench(stage.place, **layer.changes)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("bench", "layer"), [(layer, layer) for layer in LAYERS], indirect=["bench"],
    ids=[layer.name.replace(" ", "-") for layer in LAYERS],
)  # fmt: skip
def test_no_critical_attack_gets_through_without(
    bench: Bench, layer: Layer, stage: Stage, request: pytest.FixtureRequest
) -> None:
    looked = bench.run("descriptors", ("harmless",), look=True)
    assert looked.answer == "returned 0"
    failed = {one.layer for one in looked.findings if one.verdict == "FAIL"}
    assert failed == ({layer.noticed} if layer.noticed else set()), looked.findings
    matrix = request.config.stash[MATRIX]
    through = set()
    for attempt in ATTEMPTS:
        matrix.setdefault(attempt.id, {})
    answers = stage.ask_all(bench, filters=layer.noticed == "seccomp")
    for attempt in ATTEMPTS:
        if attempt.id not in answers:
            continue
        id_, (answer, arrived) = attempt.id, answers[attempt.id]
        matrix[id_][layer.name] = mark = stage.mark(attempt, answer, arrived)
        if mark == "X":
            print(f"{id_} {attempt.promise}: {answer}, with all layers: {stage.base[id_]}")
            through |= {id_} if attempt.critical else set()
    expected = {id_ for id_, name in RESTS_ON_ONE if name == layer.name}
    assert through == expected


def test_without_no_new_privileges_nothing_starts(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot be left out alone: the kernel then refuses Landlock and filters to us."""
    with monkeypatch.context() as patch:
        patch.setattr(credentials, "no_new_privileges", lambda: None)
        bench = Bench(stage.place)
    try:
        with pytest.raises(LaunchFailed, match="landlock"):
            bench.run("descriptors", ("harmless",))
    finally:
        bench.close()
