"""Emitted BPF against the truth table: every number, every argument corner, foreign call tables."""

from __future__ import annotations

import errno
import functools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence

from sandbox import bpf
from sandbox.bpf_text import Branch, Tree, answer_text, residue
from sandbox.plan import SeccompSpec
from sandbox.truth_table import Row, Tests, TruthTable, outside

NEWEST = 600  # above every x86-64 number for years to come
_U32, _U64 = 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF


def answer_of(verdict: str) -> int:
    """A verdict as the number that a filter returns."""
    plain = {"allow": bpf.ALLOW, "kill": bpf.KILL_PROCESS}
    return plain[verdict] if verdict in plain else bpf.ERRNO | getattr(errno, verdict)


def corners(rows: Iterable[Row], chance: random.Random) -> Iterator[list[int]]:
    """Argument lists on and beside every comparison in `rows`, before an empty, a full and a random
    background: the value, one more and less, the upper half set, all bits set that the mask does
    not look at; each single bit turned; and what is left where an argument has only few values."""
    fixed = [[0] * 6, [_U64] * 6]
    backgrounds = [*fixed, [chance.getrandbits(64) for _ in range(6)]]
    yield from backgrounds
    conditions = dict.fromkeys(condition for row in rows for condition in row.conditions)
    for tests, among in {t: len(condition) for condition in conditions for t in condition}.items():
        matching = {test.index: test.value for test in tests}
        # The many alternatives of an "only" stand side by side: a bit turned leads to a neighbour.
        bits = range(64) if among <= 8 else chance.sample(range(64), 1)
        for test in tests:
            value = test.value
            beside = {value, value + 1, value - 1, value ^ 1 << 32, value | 0xFFFF_FFFF << 32}
            beside.add(value | ~test.mask)
            turned = {value ^ 1 << bit for bit in bits}
            for background, values in zip(
                backgrounds, (beside | turned, beside, beside), strict=True
            ):
                for other in values:
                    arguments = [matching.get(index, word) for index, word in enumerate(background)]
                    arguments[test.index] = other & _U64
                    yield arguments
    for index, value in (left for condition in conditions for left in _left(condition)):
        for background in fixed:
            yield [value if place == index else word for place, word in enumerate(background)]


def _left(alternatives: tuple[Tests, ...]) -> Iterator[tuple[int, int]]:
    """(argument, value) of the 32-bit values that fit none of the alternatives, where few do."""
    tests = [tests[0] for tests in alternatives if len(tests) == 1]
    if len({test.index for test in tests}) == 1 and all(t.mask >> 32 == 0 for t in tests):
        for mask, value in outside((test.mask, test.value) for test in tests):
            yield tests[0].index, value | ~mask & 0xFFFF_FFFF
            yield tests[0].index, value


def ways(tree: Tree, words: tuple[tuple[int, int], ...] = ()) -> Iterator[list[int]]:
    """Arguments for each way through what a filter does with one call: so is found what the filter
    looks for and no rule does."""
    if isinstance(tree, Branch):
        met = dict(words).get(tree.word, 0) & ~tree.mask | tree.k
        yield from ways(tree.yes, (*words, (tree.word, met)))
        yield from ways(tree.no, words)
        return
    found = [0] * 6
    for word, value in dict(words).items():
        found[(word - 4) // 2] |= value << 32 * (word % 2)
    yield found


def disagreements(
    spec: SeccompSpec,
    programs: Sequence[bytes],
    number_of: Callable[[str], int],
    seed: int = 0,
) -> tuple[int, list[str]]:
    """How many calls were tried on the simulator, and those that `programs` answer otherwise than
    the table: every number up to NEWEST, -1 and those beside every number that the programs compare
    with, x32 and foreign tables; arguments as in `corners` and `ways`, random ones from `seed`."""
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

    jumps = {i.k for program in loaded for i in program if i.code & 7 == bpf.JMP}
    numbers = {*range(NEWEST + 1), bpf.X32_BIT - 1, -1, *(k + d for k in jumps for d in (-1, 0, 1))}
    numbers |= {*calls} | {1 << bit for bit in range(10, 30)}
    for number in (n for n in numbers if -1 <= n < bpf.X32_BIT):
        call = calls.get(number, f"#{number}")
        tried_ways = (way for program in loaded for way in ways(residue(program, number & _U32)))
        for arguments in (*corners(table.rows(call), chance), *tried_ways):
            expected = answer_of(table.verdict(call, arguments))
            compare(call, expected, bpf.seccomp_data(number, arguments))
        for arch in (bpf.I386, bpf.AARCH64):
            data = bpf.seccomp_data(number, arch=arch)
            compare(f"number {number} of another architecture", bpf.KILL_PROCESS, data)
        if 0 <= number < bpf.X32_BIT:
            data = bpf.seccomp_data(number | bpf.X32_BIT)
            compare(f"x32 number {number}", bpf.KILL_PROCESS, data)
    return tried, wrong
