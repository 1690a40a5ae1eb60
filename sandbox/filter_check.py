"""Emitted BPF against the truth table: every number, every argument corner, foreign call tables."""

from __future__ import annotations

import errno
import functools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence

from sandbox import bpf
from sandbox.bpf_text import answer_text
from sandbox.plan import SeccompSpec
from sandbox.truth_table import Row, TruthTable

NEWEST = 600  # above every x86-64 number for years to come
_U64 = 0xFFFF_FFFF_FFFF_FFFF


def answer_of(verdict: str) -> int:
    """A verdict as the number that a filter returns."""
    plain = {"allow": bpf.ALLOW, "kill": bpf.KILL_PROCESS}
    return plain[verdict] if verdict in plain else bpf.ERRNO | getattr(errno, verdict)


def corners(rows: Iterable[Row], chance: random.Random) -> Iterator[list[int]]:
    """Argument lists on and beside every comparison in `rows`, before an empty, a full and a random
    background: the value, one more and less, each of its bits turned, and the upper half set."""
    fixed = [[0] * 6, [_U64] * 6]
    backgrounds = [*fixed, [chance.getrandbits(64) for _ in range(6)]]
    yield from backgrounds
    for tests in dict.fromkeys(t for r in rows for c in r.conditions for t in c):
        matching = {test.index: test.value for test in tests}
        for test in tests:
            value = test.value
            beside = {value, value + 1, value - 1, value ^ 1 << 32, value | 0xFFFF_FFFF << 32}
            beside |= {value ^ 1 << chance.randrange(64), value | ~test.mask}
            for background in backgrounds:
                for other in beside:
                    arguments = [matching.get(index, word) for index, word in enumerate(background)]
                    arguments[test.index] = other & _U64
                    yield arguments


def disagreements(
    spec: SeccompSpec,
    programs: Sequence[bytes],
    number_of: Callable[[str], int],
    seed: int = 0,
) -> tuple[int, list[str]]:
    """How many calls were tried on the simulator, and those that `programs` answer otherwise than
    the table: every number up to NEWEST, some beyond, -1, x32 and foreign tables; arguments as in
    `corners`, random ones from `seed`."""
    table, loaded = TruthTable(spec), [bpf.decode(program) for program in programs]
    calls = {number_of(call): call for call in table.calls}
    chance, tried, wrong = random.Random(seed), 0, []  # noqa: S311 - test values, no secrets
    answer = functools.partial(bpf.run_all, loaded)

    def compare(what: str, expected: int, data: tuple[int, ...]) -> None:
        nonlocal tried
        tried += 1
        if (found := answer(data)) != expected:
            shown = f"{what}: {answer_text(found)}, not {answer_text(expected)}"
            wrong.append(f"{shown}: words {' '.join(f'{word:#x}' for word in data)}")

    beyond = [bpf.X32_BIT - 1, *(1 << bit for bit in range(10, 30)), -1]
    for number in {*range(NEWEST + 1), *beyond, *(n for n in calls if n >= 0)}:
        call = calls.get(number, f"#{number}")
        for arguments in corners(table.rows(call), chance):
            expected = answer_of(table.verdict(call, arguments))
            compare(call, expected, bpf.seccomp_data(number, arguments))
        for arch in (bpf.I386, bpf.AARCH64):
            data = bpf.seccomp_data(number, arch=arch)
            compare(f"number {number} of another architecture", bpf.KILL_PROCESS, data)
        if 0 <= number < bpf.X32_BIT:
            data = bpf.seccomp_data(number | bpf.X32_BIT)
            compare(f"x32 number {number}", bpf.KILL_PROCESS, data)
    return tried, wrong
