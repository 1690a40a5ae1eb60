"""A seccomp filter in words: the listing of its instructions, and what it answers to each call.

The second is worked out from the instructions alone. With architecture and number known, most of a
filter falls away and a small decision tree over the arguments remains; the kernel does the same at
load (seccomp_is_const_allow() in kernel/seccomp.c) to find the calls that need no filter run.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sandbox.seccomp import bpf
from sandbox.seccomp.bpf import BadProgram, Program

Names = Callable[[int], str | None]

_ACTIONS = {
    bpf.KILL_PROCESS: "kill",
    bpf.KILL_THREAD: "kill the thread",
    bpf.TRAP: "trap",
    bpf.USER_NOTIF: "ask a supervisor",
    bpf.TRACE: "ask a tracer",
    bpf.LOG: "allow and log",
    bpf.ALLOW: "allow",
}
_ARCHITECTURES = {bpf.X86_64: "x86_64", bpf.I386: "i386", bpf.AARCH64: "aarch64"}
_ARITHMETIC = {
    bpf.ADD: "add", bpf.SUB: "sub", bpf.MUL: "mul", bpf.DIV: "div", bpf.OR: "or", bpf.AND: "and",
    bpf.XOR: "xor", bpf.LSH: "lsh", bpf.RSH: "rsh",
}  # fmt: skip
_COMPARISONS = {bpf.JEQ: "jeq", bpf.JGT: "jgt", bpf.JGE: "jge", bpf.JSET: "jset"}
_SIGNS = {bpf.JEQ: "==", bpf.JGT: ">", bpf.JGE: ">=", bpf.JSET: "&"}
_NUMBER, _ARCH = 0, 1  # words of struct seccomp_data; the arguments begin with word 4


def answer_text(answer: int) -> str:
    """A filter's answer as policies write it: "allow", "kill" or the name of an errno."""
    if answer & bpf.ACTION == bpf.ERRNO:
        number = answer & bpf.DATA
        return errno.errorcode.get(number, f"errno {number}")
    # An action that the kernel does not know kills: __seccomp_filter().
    return _ACTIONS.get(answer & bpf.ACTION, "kill")


def listing(program: Program, names: Names) -> Iterator[str]:
    """One line per instruction, jumps by label. `names` knows the numbers of calls."""
    targets = {t for place in range(len(program)) for t in _targets(program, place)}
    labels = {place: f"L{number}" for number, place in enumerate(sorted(targets), 1)}
    loaded: int | None = None  # the word in A, to show a constant as what it stands for
    for place, (code, yes, no, k) in enumerate(program):
        if code == bpf.LD_WORD:
            loaded = k // 4
        start = f"{labels.get(place, ''):>5}  {place:>4}  "
        kind, operand = code & 7, "X" if code & 8 else f"{k:#x}"
        if code == bpf.LD_WORD:
            text = f"ld    {_word(k // 4)}"
        elif code == bpf.JMP | bpf.JA:
            text = f"ja    {labels[place + 1 + k]}"
        elif kind == bpf.JMP:
            ways = [labels[place + 1 + skip] if skip else "next" for skip in (yes, no)]
            text = f"{_COMPARISONS[code & 0xF0]:<5} {operand:<12} yes {ways[0]:<5} no {ways[1]:<5}"
            text += f"  {_meaning(loaded, k, names)}"
        elif kind == bpf.RET:
            text = f"ret   {answer_text(k) if code == bpf.RET_K else 'A'}"
        elif code == bpf.ALU | bpf.NEG:
            text = "neg"
        elif kind == bpf.ALU:
            text = f"{_ARITHMETIC[code & 0xF0]:<5} {operand}"
        elif kind == bpf.MISC:
            text = "tax" if code == bpf.TAX else "txa"
        else:
            text = _other(code, k)
        yield (start + text).rstrip()


def _targets(program: Program, place: int) -> list[int]:
    """Where the instruction at `place` jumps to, except to the next one."""
    code, yes, no, k = program[place]
    if code & 7 != bpf.JMP:
        return []
    skips = (k,) if code == bpf.JMP | bpf.JA else (yes, no)
    return [place + 1 + skip for skip in skips if skip or code == bpf.JMP | bpf.JA]


def _other(code: int, k: int) -> str:
    register = {bpf.LD: "ld", bpf.LDX: "ldx", bpf.ST: "st", bpf.STX: "stx"}[code & 7]
    if code in (bpf.LD_MEM, bpf.LDX_MEM, bpf.ST, bpf.STX):
        return f"{register:<5} M[{k}]"
    return (
        f"{register:<5} {'length of the data' if code in (bpf.LD_LEN, bpf.LDX_LEN) else f'{k:#x}'}"
    )


def _word(word: int) -> str:
    if word < 4:
        return ("number", "arch", "ip.low", "ip.high")[word]
    return f"arg{(word - 4) // 2}.{('low', 'high')[word % 2]}"


def _meaning(word: int | None, k: int, names: Names) -> str:
    if word == _NUMBER:
        return "the x32 bit" if k == bpf.X32_BIT else names(k) or ""
    return _ARCHITECTURES.get(k, "") if word == _ARCH else ""


@dataclass(frozen=True, slots=True)
class Branch:
    """A question that remains: `word & mask` compared with `k`, and what follows from it."""

    word: int
    mask: int
    comparison: int
    k: int
    yes: Tree
    no: Tree

    def __str__(self) -> str:
        sign, word = _SIGNS[self.comparison], _word(self.word)
        if self.mask == 0xFFFF_FFFF:
            return f"{word} {sign} {self.k:#x}"
        return f"{word} & {self.mask:#x} {sign} {self.k:#x}"


Tree = int | Branch


def residue(program: Program, number: int, arch: int = bpf.X86_64) -> Tree:
    """What is left of `program` once the call is known: an answer, or a test of an argument.

    Raises BadProgram for a program that computes with arguments in a way libseccomp never does.
    """
    known = {_NUMBER: number, _ARCH: arch}
    ends: dict[tuple[int, int, int | None], Tree] = {}

    def follow(place: int, value: int, word: int | None) -> Tree:
        """From `place` on, with A known to be `value`, or `word & value`."""
        key = (place, value, word)
        if key not in ends:
            ends[key] = step(place, value, word)
        return ends[key]

    def step(place: int, value: int, word: int | None) -> Tree:
        code, yes, no, k = program[place]
        after = place + 1
        if code == bpf.RET_K:
            return k
        if code == bpf.LD_WORD:
            word = None if k // 4 in known else k // 4
            return follow(after, known.get(k // 4, 0xFFFF_FFFF), word)
        if code == bpf.ALU | bpf.AND:
            # Nothing of the word is left under a mask of 0: A is known again.
            return follow(after, value & k, word if value & k else None)
        if code == bpf.JMP | bpf.JA:
            return follow(after + k, value, word)
        comparison = code & 0xF0
        if code & 7 != bpf.JMP or code & 8:
            raise BadProgram(f"instruction {place}: operation {code:#x} on an argument")
        if word is None:
            skipped = yes if bpf.COMPARISONS[comparison](value, k) else no
            return follow(after + skipped, value, word)
        ways = follow(after + yes, value, word), follow(after + no, value, word)
        return ways[0] if ways[0] == ways[1] else Branch(word, value, comparison, k, *ways)

    return follow(0, 0, None)


def answers(program: Program, arch: int = bpf.X86_64) -> list[tuple[int, int, Tree]]:
    """What `program` does with every 32-bit number, as (first, last, residue), without a gap.

    Between two constants that the program compares with, all numbers fare alike.
    """
    constants = {i.k for i in program if i.code & 7 == bpf.JMP and i.code != bpf.JMP | bpf.JA}
    cuts = sorted(cut for k in {*constants, 0} for cut in (k, k + 1) if cut < 2**32)
    found: list[tuple[int, int, Tree]] = []
    for first, following in zip(cuts, [*cuts[1:], 2**32], strict=True):
        if first == following:
            continue
        tree = residue(program, first, arch)
        if found and found[-1][2] == tree:
            found[-1] = (found[-1][0], following - 1, tree)
        else:
            found.append((first, following - 1, tree))
    return found


def pseudo_code(program: Program, names: Names) -> Iterator[str]:
    """The whole filter as decisions: calls that fare alike together, every number accounted for."""
    foreign = {residue(program, 0, arch) for arch in (bpf.I386, bpf.AARCH64, 0)}
    yield f"architecture is not x86_64: {' or '.join(map(_leaf, foreign))}"
    alike: dict[Tree, list[tuple[int, int]]] = {}
    for first, last, tree in answers(program):
        alike.setdefault(tree, []).append((first, last))
    for tree, numbers in sorted(alike.items(), key=lambda item: not isinstance(item[0], int)):
        calls = " ".join(_interval(first, last, names) for first, last in numbers)
        if isinstance(tree, int):
            yield f"{calls}: {answer_text(tree)}"
        else:
            yield f"{calls}:"
            yield from _branches(tree, "    ")


def _branches(tree: Tree, indent: str) -> Iterator[str]:
    while isinstance(tree, Branch):
        if isinstance(tree.yes, Branch) and not isinstance(tree.no, Branch):
            yield f"{indent}if not {tree}: {answer_text(tree.no)}"
            tree = tree.yes
            continue
        if isinstance(tree.yes, Branch):
            yield f"{indent}if {tree}:"
            yield from _branches(tree.yes, indent + "    ")
        else:
            yield f"{indent}if {tree}: {answer_text(tree.yes)}"
        tree = tree.no
    yield indent + answer_text(tree)


def _leaf(tree: Tree) -> str:
    return answer_text(tree) if isinstance(tree, int) else str(tree)


def _interval(first: int, last: int, names: Names) -> str:
    if last - first < 600:
        return " ".join(names(number) or f"#{number}" for number in range(first, last + 1))
    return f"#{first:#x}-{last:#x}"
