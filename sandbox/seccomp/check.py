"""Emitted BPF against the truth table: every number, every argument corner, foreign call tables."""

from __future__ import annotations

import errno
import functools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence

from sandbox.plan import SeccompSpec
from sandbox.seccomp import bpf
from sandbox.seccomp.text import Branch, Tree, answer_text, residue
from sandbox.seccomp.truth_table import Row, Tests, TruthTable, outside

NEWEST = 600  # above every x86-64 number for years to come
_U32, _U64 = 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF


def answer_of(verdict: str) -> int:
    """A verdict as the number that a filter returns."""
    plain = {"allow": bpf.ALLOW, "kill": bpf.KILL_PROCESS}
    return plain[verdict] if verdict in plain else bpf.ERRNO | getattr(errno, verdict)


def corners(rows: Iterable[Row], chance: random.Random) -> Iterator[list[int]]:
    """Argument lists on and beside every comparison in `rows`: the value, one more and less, the
    upper half set, all bits set that the mask does not look at, each single bit turned; and what is
    left where an argument has few values. The other arguments are such that no rule minds them
    (else that rule's answer would hide this one's), all ones, or random."""
    conditions = [*dict.fromkeys(condition for row in rows for condition in row.conditions)]
    passing = unminded(conditions, chance)
    backgrounds = [passing, [_U64] * 6, [chance.getrandbits(64) for _ in range(6)]]
    yield from ([0] * 6, *backgrounds)
    for tests, among in {t: len(condition) for condition in conditions for t in condition}.items():
        matching = {test.index: test.value for test in tests}
        # The many alternatives of an "only" stand side by side: a bit turned leads to a neighbour.
        bits = range(64) if among <= 8 else chance.sample(range(64), 1)
        for test in tests:
            value = test.value
            beside = {value, value + 1, value - 1, value ^ 1 << 32, value | 0xFFFF_FFFF << 32}
            beside.add(value | ~test.mask)
            turned = {value ^ 1 << bit for bit in bits}
            for background in backgrounds:
                for other in beside | turned if background is passing else beside:
                    arguments = [matching.get(index, word) for index, word in enumerate(background)]
                    arguments[test.index] = other & _U64
                    yield arguments
    for index, value in (left for condition in conditions for left in _left(condition)):
        yield [value if place == index else word for place, word in enumerate(passing)]


def unminded(conditions: Sequence[tuple[Tests, ...]], chance: random.Random) -> list[int]:
    """Six arguments that fit no condition, as far as they can be found one by one."""
    found = [0] * 6
    for condition in conditions:
        if left := [*_left(condition)]:
            index, value = chance.choice(left)
            found[index] = value
    return found


def _left(alternatives: tuple[Tests, ...]) -> Iterator[tuple[int, int]]:
    """(argument, value) pairs that fit none of the alternatives: the corners of what they leave."""
    tests = [tests[0] for tests in alternatives if len(tests) == 1]
    if len({test.index for test in tests}) == 1 and all(t.mask >> 32 == 0 for t in tests):
        for mask, value in outside((test.mask, test.value) for test in tests):
            yield tests[0].index, value | ~mask & 0xFFFF_FFFF
            yield tests[0].index, value


def ways(tree: Tree, words: tuple[int, ...]) -> Iterator[list[int]]:
    """Arguments for each way through what a filter does with one call: so is found what the filter
    looks for and no rule does. `words` are those of a call that no rule minds."""
    if isinstance(tree, Branch):
        met = words[tree.word] & ~tree.mask | tree.k
        yield from ways(tree.yes, (*words[: tree.word], met, *words[tree.word + 1 :]))
        yield from ways(tree.no, words)
    else:
        yield [words[low] | words[low + 1] << 32 for low in range(4, 16, 2)]


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
    tried, wrong = 0, []
    chance = random.Random(seed)  # noqa: S311  # nosec B311 - test values, no secrets
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
        rows = table.rows(call)
        words = bpf.seccomp_data(0, unminded([c for row in rows for c in row.conditions], chance))
        through = (way for p in loaded for way in ways(residue(p, number & _U32), words))
        for arguments in (*corners(rows, chance), *through):
            expected = answer_of(table.verdict(call, arguments))
            compare(call, expected, bpf.seccomp_data(number, arguments))
        for arch in (bpf.I386, bpf.AARCH64):
            data = bpf.seccomp_data(number, arch=arch)
            compare(f"number {number} of another architecture", bpf.KILL_PROCESS, data)
        if 0 <= number < bpf.X32_BIT:
            data = bpf.seccomp_data(number | bpf.X32_BIT)
            compare(f"x32 number {number}", bpf.KILL_PROCESS, data)
    return tried, wrong
