"""What the filters of a policy answer to which call, and which rule says so: the truth table.

Worked out from the rules alone, with nothing of libseccomp in it: claims and `policy seccomp` read
it, and sandbox/seccomp/check.py holds the emitted BPF against it.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sandbox.plan import ArgTest, SeccompSpec, SyscallRule
from sandbox.seccomp import launch_rules

Tests = tuple[ArgTest, ...]
_U64 = 0xFFFF_FFFF_FFFF_FFFF


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table. It decides a call if every condition holds and no row above it did.

    A condition holds if one of its alternatives does, and an alternative is a list of comparisons
    that hold together; without conditions the row decides whatever is left of the call.
    `reason` is that of the rule that decides: "group set: why".
    """

    call: str
    verdict: str
    conditions: tuple[tuple[Tests, ...], ...]
    reason: str

    def decides(self, arguments: Sequence[int]) -> bool:
        """Whether the conditions hold for these six arguments."""
        return all(
            any(all(holds(test, arguments) for test in tests) for tests in alternatives)
            for alternatives in self.conditions
        )

    def when(self) -> str:
        """The conditions for people: "arg0 is none of 0x1, 0x2", "arg1 has 0x800"."""
        return " and ".join(map(_condition, self.conditions)) or "otherwise"


class TruthTable:
    """The rows of every call that a rule names, and the answer to all others."""

    def __init__(self, spec: SeccompSpec) -> None:
        self._spec = spec
        self._main = _by_call(spec.main + launch_rules(spec))
        self._refuse = _by_call(spec.refuse)
        self.calls = tuple(sorted(self._main.keys() | self._refuse.keys()))
        self._known = {call: self._rows(call) for call in self.calls}

    def rows(self, call: str) -> tuple[Row, ...]:
        """What decides about `call`, in order; the last row has no condition."""
        return self._known.get(call) or self._rows(call)

    def row(self, call: str, arguments: Sequence[int] = ()) -> Row:
        """The row that decides; missing arguments are 0."""
        given = [argument & _U64 for argument in (*arguments, 0, 0, 0, 0, 0, 0)[:6]]
        return next(row for row in self.rows(call) if row.decides(given))

    def verdict(self, call: str, arguments: Sequence[int] = ()) -> str:
        """ "allow", "kill" or the name of an errno."""
        return self.row(call, arguments).verdict

    def may(self, call: str) -> bool:
        """Whether the call is allowed for some arguments."""
        return any(row.verdict == "allow" for row in self.rows(call))

    def _rows(self, call: str) -> tuple[Row, ...]:
        """Every answer of the main filter combined with every answer of the refusing one."""
        found: list[Row] = []
        main = _answers(call, self._main.get(call, []), self._spec.default, _DEFAULT)
        refuse = _answers(call, self._refuse.get(call, []), "allow", "")
        for first in main:
            for second in refuse:
                decides = strictest(second, first)
                conditions = first.conditions + second.conditions
                found.append(Row(call, decides.verdict, conditions, decides.reason))
        return tuple(_needed(found))


_DEFAULT = "default: no rule names this call"


def strictest(older: Row, newer: Row) -> Row:
    """The row whose filter prevails: killing, then refusing; of two errnos that of the `newer`."""
    rank = {"kill": 0, "allow": 2}
    return min((newer, older), key=lambda row: rank.get(row.verdict, 1))


def holds(test: ArgTest, arguments: Sequence[int]) -> bool:
    """Whether one comparison holds: 64 bits, unsigned."""
    value = arguments[test.index]
    if test.op == "masked_eq":
        return value & test.mask == test.value
    return (value == test.value) == (test.op == "eq")


def outside(cubes: Iterable[tuple[int, int]], width: int = 32) -> list[tuple[int, int]]:
    """Disjoint (mask, value) pairs that match exactly the `width`-bit numbers that no pair of
    `cubes` matches. A pair matches the numbers n with n & mask == value."""
    found: list[tuple[int, int]] = []

    def split(bit: int, mask: int, prefix: int, inside: list[tuple[int, int]]) -> None:
        # Bits that no pair looks at are not split: the two halves would be the same.
        tested = functools.reduce(operator.or_, (m for m, _ in inside), 0) & (1 << bit + 1) - 1
        if not inside:
            found.append((mask, prefix))
        elif all(m & tested for m, _ in inside):  # else one of the pairs holds all of it
            bit = tested.bit_length() - 1
            one = 1 << bit
            for value in (0, one):
                left = [(m, v) for m, v in inside if not m & one or v & one == value]
                split(bit - 1, mask | one, prefix | value, left)

    split(width - 1, 0, 0, sorted(set(cubes)))
    return found


def _by_call(rules: Iterable[SyscallRule]) -> dict[str, list[SyscallRule]]:
    found: dict[str, list[SyscallRule]] = {}
    for rule in rules:
        found.setdefault(rule.call, []).append(rule)
    return found


def _answers(call: str, rules: list[SyscallRule], default: str, reason: str) -> list[Row]:
    """One filter's rows for one call. Rules never contradict each other (`unsound` in
    sandbox/seccomp/__init__.py), so those of one verdict and reason are one row, in any order."""
    alike: dict[tuple[str, str], list[Tests]] = {}
    for rule in rules:
        alike.setdefault((rule.action, rule.reason), []).append(rule.tests)
    rows = [
        Row(call, action, (tuple(tests),) if all(tests) else (), why)
        for (action, why), tests in alike.items()
    ]
    rows.sort(key=lambda row: not row.conditions)
    return rows if rows and not rows[-1].conditions else [*rows, Row(call, default, (), reason)]


def _needed(rows: list[Row]) -> list[Row]:
    """Without the rows that answer as the unconditional last one does anyway."""
    while len(rows) > 1 and rows[-2].verdict == rows[-1].verdict:
        del rows[-2]
    return rows


def _condition(alternatives: tuple[Tests, ...]) -> str:
    tests = [tests[0] for tests in alternatives]
    one_word = len({(test.index, test.mask >> 32) for test in tests}) == 1
    if len(tests) > 1 and one_word and all(map(_masked, alternatives)):
        argument, full = f"arg{tests[0].index}", _U64 if tests[0].mask >> 32 else 0xFFFF_FFFF
        if all(test.mask == test.value != full for test in tests):
            return f"{argument} has any of {', '.join(f'{test.value:#x}' for test in tests)}"
        rest = outside(((t.mask, t.value) for t in tests), full.bit_length())
        if all(mask == full for mask, _ in rest):
            return f"{argument} is none of {', '.join(f'{value:#x}' for _, value in rest)}"
    return " or ".join(" and ".join(map(_comparison, tests)) for tests in alternatives)


def _masked(tests: Tests) -> bool:
    return len(tests) == 1 and tests[0].op == "masked_eq"


def _comparison(test: ArgTest) -> str:
    if test.op != "masked_eq":
        return f"arg{test.index} is {'not ' if test.op == 'ne' else ''}{test.value:#x}"
    if test.mask in (0xFFFF_FFFF, _U64):
        return f"arg{test.index} is {test.value:#x}"
    if test.mask == test.value:
        return f"arg{test.index} has {test.value:#x}"
    return f"arg{test.index} & {test.mask:#x} is {test.value:#x}"
