"""The emitted BPF answers as the rules say: every number, every argument corner, foreign tables.

The table comes from the rules, the answers from the simulator. Seeds are part of every message.
"""

from __future__ import annotations

import random
import tomllib
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

pytest.importorskip("seccomp", reason="Debian's python3-seccomp is not installed")

from sandbox.errors import SandboxError
from sandbox.plan import ArgTest, SeccompSpec, SyscallRule
from sandbox.seccomp import bpf, call_number, compile_filters, digests
from sandbox.seccomp.check import answer_of, corners, disagreements
from sandbox.seccomp.text import Branch, answers
from sandbox.seccomp.truth_table import TruthTable, outside
from tests.host.sandbox.conftest import shipped_plan

POLICIES = [
    tomllib.loads(path.read_text())["id"]
    for path in sorted((Path(__file__).parents[3] / "policies").glob("*.toml"))
]
SEED = random.SystemRandom().getrandbits(32)
WORD = 0xFFFF_FFFF


@pytest.mark.parametrize("policy", POLICIES)
def test_the_bpf_of_every_shipped_policy_agrees_with_its_table(policy: str, tmp_path: Path) -> None:
    spec = shipped_plan(tmp_path, policy).seccomp
    tried, wrong = disagreements(spec, compile_filters(spec), call_number, SEED)
    assert not wrong, f"seed {SEED}: {wrong[:10]}"
    assert tried > 3000


@pytest.mark.parametrize("policy", ["executor.main", "service.swtpm"])
def test_what_is_read_from_the_bpf_is_what_it_does(policy: str, tmp_path: Path) -> None:
    """The decisions that `policy seccomp --pseudo` shows, for every span of numbers."""
    spec = shipped_plan(tmp_path, policy).seccomp
    table, chance = TruthTable(spec), random.Random(SEED)
    rows = {call_number(call): table.rows(call) for call in table.calls}
    for program in map(bpf.decode, compile_filters(spec)):
        for first, last, tree in answers(program):
            for number in {first, last, (first + last) // 2}:
                for arguments in corners(rows.get(number, ()), chance):
                    words, left = bpf.seccomp_data(number, arguments), tree
                    while isinstance(left, Branch):
                        value = words[left.word] & left.mask
                        left = (
                            left.yes if bpf.COMPARISONS[left.comparison](value, left.k) else left.no
                        )
                    assert left == bpf.run(program, words), (SEED, number, arguments)


@pytest.mark.parametrize("which", ["refusing", "main"])
@pytest.mark.parametrize("policy", ["adapter.rest", "service.swtpm"])
def test_one_changed_byte_is_found(policy: str, which: str, tmp_path: Path) -> None:
    """A bit is turned in one filter, which is tried alone: the other would hide much.

    Mutants that the kernel would not load, or that answer nothing otherwise, are left out. In the
    refusing filter only constants are turned: where one rule's mask covers a neighbour's values as
    well, the same answer comes from two rules, and such mutants are no other filter.
    """
    spec = shipped_plan(tmp_path, policy).seccomp
    first, last = compile_filters(spec)
    alone = SeccompSpec((), spec.refuse, "allow") if which == "refusing" else SeccompSpec(spec.main)
    program = first if which == "refusing" else last
    meant = answers(bpf.decode(program))
    assert not disagreements(alone, [program], call_number, SEED)[1]
    places = [*range(len(program))]
    if which == "refusing":
        exact = (bpf.JMP | bpf.JEQ, bpf.RET_K)
        code = enumerate(bpf.decode(program))
        places = [8 * n + 4 + byte for n, i in code if i.code in exact for byte in range(4)]
    chance, tried = random.Random(SEED), 0
    while tried < 6:
        mutant = bytearray(program)
        place, bit = chance.choice(places), chance.randrange(8)
        mutant[place] ^= 1 << bit
        try:
            if answers(bpf.decode(bytes(mutant))) == meant:
                continue
        except bpf.BadProgram:
            continue
        tried += 1
        _, wrong = disagreements(alone, [bytes(mutant)], call_number, SEED)
        assert wrong, f"seed {SEED}: bit {bit} of byte {place} went unnoticed"
        assert digests([bytes(mutant)]) != digests([program])


def test_foreign_system_call_tables_are_killed() -> None:
    (program,) = map(bpf.decode, compile_filters(SeccompSpec((SyscallRule("getpid", "allow"),))))
    getpid = call_number("getpid")
    assert bpf.run(program, bpf.seccomp_data(getpid)) == bpf.ALLOW
    for arch in (bpf.I386, bpf.AARCH64):
        assert bpf.run(program, bpf.seccomp_data(getpid, arch=arch)) == bpf.KILL_PROCESS
    assert bpf.run(program, bpf.seccomp_data(getpid | bpf.X32_BIT)) == bpf.KILL_PROCESS


def test_a_rule_too_much_in_the_bpf_is_found() -> None:
    narrow = SeccompSpec((SyscallRule("getpid", "allow"),))
    wide = SeccompSpec((SyscallRule("getpid", "allow"), SyscallRule("getuid", "allow")))
    _, wrong = disagreements(narrow, compile_filters(wide), call_number)
    assert len(wrong) > 2 and "allow, not ENOSYS" in wrong[0]


CALLS = ("socket", "ioctl", "clone", "openat", "mmap", "fcntl", "#467", "prctl")
VALUES = st.one_of(st.integers(0, 20), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1))


@st.composite
def argument_tests(draw: st.DrawFn, most: int) -> tuple[ArgTest, ...]:
    """Comparisons of up to `most` different arguments; "ne" stands alone."""
    found = []
    operators = ("eq", "ne", "masked_eq") if most == 1 else ("eq", "masked_eq")
    for index in sorted(draw(st.sets(st.integers(0, 5), min_size=1, max_size=most))):
        op, value = draw(st.sampled_from(operators)), draw(VALUES)
        mask = 2**64 - 1
        if op == "masked_eq":
            mask = draw(st.sampled_from((WORD, value or 1, 0xF0, 1 << 31, 1 << 40 | 1)))
        found.append(ArgTest(index, op, value & mask, mask))
    return tuple(found)


@st.composite
def specs(draw: st.DrawFn) -> SeccompSpec:
    """Rules as a policy may hold them: in one filter, all rules of a call answer alike."""

    def rules(actions: tuple[str, ...], default: str) -> tuple[SyscallRule, ...]:
        found: dict[tuple[object, ...], SyscallRule] = {}
        for call in draw(st.sets(st.sampled_from(CALLS), max_size=4)):
            action = draw(st.sampled_from(actions))
            most = draw(st.sampled_from((1, 2)))
            choice = draw(st.lists(argument_tests(most), max_size=4)) if action != default else []
            for tests in choice or [()]:
                found[call, tests] = SyscallRule(call, action, tests, f"{call} {action}: drawn")
        return tuple(found.values())

    main = rules(("allow", "kill", "EPERM"), "ENOSYS")
    return SeccompSpec(main, rules(("kill", "EPERM", "EINVAL"), "allow"))


@given(specs(), st.integers(0, 2**32))
@settings(max_examples=25, deadline=None, phases=[Phase.explicit, Phase.generate])
def test_random_rules_are_compiled_as_written(spec: SeccompSpec, seed: int) -> None:
    tried, wrong = disagreements(spec, compile_filters(spec), call_number, seed)
    assert tried and not wrong, (seed, wrong[:5])


@given(st.sets(st.integers(0, 255), max_size=12), st.sets(st.sampled_from((1, 6, 64, 192))))
@settings(max_examples=60, deadline=None)
def test_outside_is_exact(values: set[int], bits: set[int]) -> None:
    inside = [*((255, value) for value in values), *((bit, bit) for bit in bits)]
    cubes = outside(inside, width=8)
    for number in range(256):
        hits = sum(number & mask == value for mask, value in cubes)
        assert hits == (not any(number & mask == value for mask, value in inside)), number


@given(st.sets(st.integers(0, WORD), max_size=8), st.integers(0, WORD))
@settings(max_examples=100, deadline=None)
def test_outside_is_exact_in_32_bits(values: set[int], number: int) -> None:
    cubes = outside((WORD, value) for value in values)
    for probe in {number, *values, *(value ^ 1 << 31 for value in values)}:
        assert sum(probe & mask == value for mask, value in cubes) == (probe not in values)


def test_of_two_errnos_the_main_filter_s_is_given() -> None:
    """As the kernel: of equal actions the filter loaded last decides."""
    test = (ArgTest(0, "masked_eq", 1, WORD),)
    spec = SeccompSpec((SyscallRule("acct", "EPERM"),), (SyscallRule("acct", "EINVAL", test),))
    table, programs = TruthTable(spec), [*map(bpf.decode, compile_filters(spec))]
    data = bpf.seccomp_data(call_number("acct"), [1])
    assert table.verdict("acct", [1]) == "EPERM"
    assert bpf.run_all(programs, data) == answer_of("EPERM")


def test_a_row_says_when_in_words() -> None:
    def when(*tests: ArgTest) -> str:
        rules = tuple(SyscallRule("prctl", "EPERM", (test,)) for test in tests)
        main = (SyscallRule("prctl", "allow"),)
        return TruthTable(SeccompSpec(main, rules)).rows("prctl")[0].when()

    only = [ArgTest(0, "masked_eq", value, mask) for mask, value in outside([(WORD, 3), (WORD, 9)])]
    assert when(*only) == "arg0 is none of 0x3, 0x9"
    assert when(ArgTest(1, "masked_eq", 4, 4), ArgTest(1, "masked_eq", 8, 8)) == (
        "arg1 has any of 0x4, 0x8"
    )
    assert when(ArgTest(2, "ne", 5)) == "arg2 is not 0x5"
    assert when(ArgTest(2, "masked_eq", 5, WORD)) == "arg2 is 0x5"


def test_a_call_that_libseccomp_does_not_know_is_named_in_the_error() -> None:
    with pytest.raises(SandboxError, match="no_such_call"):
        compile_filters(SeccompSpec((SyscallRule("no_such_call", "allow"),)))


def test_not_equal_beside_two_comparisons_is_refused() -> None:
    """libseccomp 2.5.4 compiles it too open; the simulator saw that."""
    both = (ArgTest(0, "ne", 1), ArgTest(1, "eq", 0))
    rules = [SyscallRule("socket", "allow", tests) for tests in ((ArgTest(0, "ne", 0),), both)]
    with pytest.raises(SandboxError, match="several comparisons"):
        compile_filters(SeccompSpec(tuple(rules)))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((), (ArgTest(0, "eq", 1),)),  # the unconditional rule would swallow the other
        ((ArgTest(0, "masked_eq", 1, 1),), (ArgTest(0, "masked_eq", 2, 2),)),
        ((ArgTest(0, "ne", 1),), (ArgTest(0, "ne", 2),)),
        ((ArgTest(0, "eq", 1),), (ArgTest(1, "eq", 1),)),
    ],
)
def test_rules_that_contradict_each_other_are_refused(
    one: tuple[ArgTest, ...], other: tuple[ArgTest, ...]
) -> None:
    rules = (SyscallRule("prctl", "allow", one), SyscallRule("prctl", "EPERM", other))
    with pytest.raises(SandboxError, match="prctl differently"):
        compile_filters(SeccompSpec(rules))
    apart = SyscallRule("prctl", "EPERM", (ArgTest(0, "eq", 2),))
    compile_filters(SeccompSpec((SyscallRule("prctl", "allow", (ArgTest(0, "eq", 1),)), apart)))
