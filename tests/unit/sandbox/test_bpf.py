"""The simulator loads what the kernel loads, refuses what it refuses, and computes as it does."""

from __future__ import annotations

import itertools
import struct

import pytest

from sandbox.seccomp import bpf
from sandbox.seccomp.text import answer_text, answers, listing, pseudo_code, residue

RETURN_A = (bpf.RET_A, 0, 0, 0)
RETURN = (bpf.RET_K, 0, 0, bpf.ALLOW)
K, X = 0, 8


def assemble(*instructions: tuple[int, int, int, int]) -> bytes:
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)


def result(*instructions: tuple[int, int, int, int], words: tuple[int, ...] = (0,) * 16) -> int:
    return bpf.run(bpf.decode(assemble(*instructions)), words)


@pytest.mark.parametrize(
    ("operation", "a", "b", "expected"),
    [
        (bpf.ADD, 0xFFFFFFFF, 2, 1),
        (bpf.SUB, 1, 2, 0xFFFFFFFF),
        (bpf.MUL, 0x10000, 0x10001, 0x10000),
        (bpf.DIV, 7, 2, 3),
        (bpf.OR, 5, 2, 7),
        (bpf.AND, 7, 2, 2),
        (bpf.XOR, 7, 2, 5),
        (bpf.LSH, 0x80000001, 1, 2),
        (bpf.RSH, 0x80000001, 1, 0x40000000),
    ],
)
def test_arithmetic_has_32_bits(operation: int, a: int, b: int, expected: int) -> None:
    load = (bpf.LD_IMM, 0, 0, a)
    assert result(load, (bpf.ALU | operation | K, 0, 0, b), RETURN_A) == expected
    by_x = ((bpf.LDX_IMM, 0, 0, b), load, (bpf.ALU | operation | X, 0, 0, 0), RETURN_A)
    assert result(*by_x) == expected


@pytest.mark.parametrize(
    ("comparison", "true", "false"),
    [(bpf.JEQ, 5, 6), (bpf.JGT, 6, 5), (bpf.JGE, 5, 4), (bpf.JSET, 4, 8)],
)
def test_jumps_compare_without_sign(comparison: int, true: int, false: int) -> None:
    for value, expected in ((true, 1), (false, 2)):
        found = result(
            (bpf.LD_IMM, 0, 0, value),
            (bpf.JMP | comparison, 0, 1, 5),
            (bpf.RET_K, 0, 0, 1),
            (bpf.RET_K, 0, 0, 2),
        )
        assert found == expected
    top = ((bpf.LD_IMM, 0, 0, 0x80000000), (bpf.JMP | bpf.JGT, 0, 1, 5))
    assert result(*top, (bpf.RET_K, 0, 0, 1), (bpf.RET_K, 0, 0, 2)) == 1


def test_registers_memory_and_the_length() -> None:
    program = (
        (bpf.LD_LEN, 0, 0, 0), (bpf.ST, 0, 0, 3), (bpf.LDX_MEM, 0, 0, 3), (bpf.TXA, 0, 0, 0),
        (bpf.ALU | bpf.NEG, 0, 0, 0), (bpf.TAX, 0, 0, 0), (bpf.STX, 0, 0, 15),
        (bpf.LD_MEM, 0, 0, 15), RETURN_A,
    )  # fmt: skip
    assert result(*program) == 2**32 - 64
    assert result((bpf.LDX_LEN, 0, 0, 0), (bpf.TXA, 0, 0, 0), RETURN_A) == 64
    assert result((bpf.JMP | bpf.JA, 0, 0, 1), RETURN, RETURN_A) == 0


def test_a_division_by_x_of_zero_ends_with_zero() -> None:
    """0 is KILL_THREAD: a filter that computes nonsense closes."""
    assert result((bpf.LD_IMM, 0, 0, 9), (bpf.ALU | bpf.DIV | X, 0, 0, 0), RETURN) == 0


def test_a_call_becomes_sixteen_words() -> None:
    words = bpf.seccomp_data(-1, [1 << 32 | 7, -1], bpf.I386)
    assert words == (0xFFFFFFFF, bpf.I386, 0, 0, 7, 1, *(0xFFFFFFFF,) * 2, *(0,) * 8)


@pytest.mark.parametrize(
    ("wrong", "instructions"),
    [
        ("not 1 to 4096", ()),
        ("not 1 to 4096", (RETURN,) * 4097),
        ("operation 0x28", ((0x28, 0, 0, 0), RETURN)),  # a half word
        ("operation 0x94", ((bpf.ALU | 0x90, 0, 0, 1), RETURN)),  # remainder
        ("operation 0x8c", ((bpf.ALU | bpf.NEG | X, 0, 0, 1), RETURN)),
        ("offset 64", ((bpf.LD_WORD, 0, 0, 64), RETURN)),
        ("offset 2", ((bpf.LD_WORD, 0, 0, 2), RETURN)),
        ("memory word 16", ((bpf.ST, 0, 0, 16), RETURN)),
        ("division by 0", ((bpf.ALU | bpf.DIV, 0, 0, 0), RETURN)),
        ("shift by 32", ((bpf.ALU | bpf.LSH, 0, 0, 32), RETURN)),
        ("behind the end", ((bpf.JMP | bpf.JEQ, 0, 1, 0), RETURN)),
        ("behind the end", ((bpf.JMP | bpf.JA, 0, 0, 0xFFFFFFFF), RETURN)),
        ("does not return", ((bpf.LD_IMM, 0, 0, 0),)),
        ("before it is written", ((bpf.LD_MEM, 0, 0, 0), RETURN)),
        (
            "before it is written",  # written on one of two ways
            ((bpf.JMP | bpf.JEQ, 1, 0, 0), (bpf.ST, 0, 0, 0), (bpf.LD_MEM, 0, 0, 0), RETURN),
        ),
    ],
)
def test_what_the_kernel_would_not_load_is_refused(
    wrong: str, instructions: tuple[tuple[int, int, int, int], ...]
) -> None:
    with pytest.raises(bpf.BadProgram, match=wrong):
        bpf.decode(assemble(*instructions))


def test_a_cut_program_is_refused() -> None:
    assert bpf.decode(assemble(RETURN))
    with pytest.raises(bpf.BadProgram, match="7 bytes"):
        bpf.decode(assemble(RETURN)[:7])


def test_the_strictest_answer_wins_and_the_newest_errno() -> None:
    eperm, enosys = bpf.ERRNO | 1, bpf.ERRNO | 38
    assert bpf.strictest([bpf.ALLOW, eperm]) == bpf.strictest([eperm, bpf.ALLOW]) == eperm
    assert bpf.strictest([eperm, enosys]) == enosys
    assert bpf.strictest([enosys, eperm]) == eperm
    assert bpf.strictest([bpf.KILL_PROCESS, bpf.KILL_THREAD, eperm]) == bpf.KILL_PROCESS
    assert bpf.strictest([bpf.LOG, bpf.TRACE, bpf.USER_NOTIF, bpf.TRAP]) == bpf.TRAP
    assert bpf.strictest([]) == bpf.ALLOW


SMALL = assemble(
    (bpf.LD_WORD, 0, 0, 4),
    (bpf.JMP | bpf.JEQ, 0, 6, bpf.X86_64),
    (bpf.LD_WORD, 0, 0, 0),
    (bpf.JMP | bpf.JEQ, 0, 3, 41),
    (bpf.LD_WORD, 0, 0, 16),
    (bpf.JMP | bpf.JEQ, 1, 0, 1),
    (bpf.RET_K, 0, 0, bpf.ERRNO | 97),
    (bpf.RET_K, 0, 0, bpf.ALLOW),
    (bpf.RET_K, 0, 0, bpf.KILL_PROCESS),
)


def test_a_filter_reads_as_decisions() -> None:
    names = {41: "socket"}.get
    text = list(pseudo_code(bpf.decode(SMALL), names))
    assert text == [
        "architecture is not x86_64: kill",
        f"{' '.join(f'#{n}' for n in range(41))} #0x2a-0xffffffff: allow",
        "socket:",
        "    if arg0.low == 0x1: allow",
        "    EAFNOSUPPORT",
    ]
    lines = list(listing(bpf.decode(SMALL), names))
    assert len(lines) == 9
    assert lines[3].endswith("socket") and "yes next  no L1" in lines[3]
    assert lines[7].split() == ["L1", "7", "ret", "allow"]


def test_the_residue_answers_as_the_program_for_every_number() -> None:
    program = bpf.decode(SMALL)
    spans = answers(program)
    assert [spans[0][0], spans[-1][1]] == [0, 2**32 - 1]
    assert all(one[1] + 1 == other[0] for one, other in itertools.pairwise(spans))
    assert residue(program, 40) == bpf.run(program, bpf.seccomp_data(40)) == bpf.ALLOW
    assert residue(program, 41, bpf.AARCH64) == bpf.KILL_PROCESS


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (bpf.ALLOW, "allow"),
        (bpf.ERRNO | 38, "ENOSYS"),
        (bpf.LOG, "allow and log"),
        (1 << 16, "kill"),
    ],
)
def test_an_answer_has_a_name(answer: int, text: str) -> None:
    assert answer_text(answer) == text
