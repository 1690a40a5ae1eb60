"""Classic BPF as seccomp uses it: read a filter, refuse what the kernel refuses, run the rest.

A filter is an array of `struct sock_filter`: an operation, two jump distances and a constant. It
computes with an accumulator A, a register X and sixteen words of memory over one `struct
seccomp_data`. Jumps lead forward only, so every filter ends. Nothing here needs libseccomp or the
kernel. Sources: seccomp(2); linux/filter.h; bpf_check_classic() and bpf_convert_filter() in
net/core/filter.c; seccomp_check_filter() and seccomp_run_filters() in kernel/seccomp.c.
"""

from __future__ import annotations

import operator
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from sandbox.errors import SandboxError

# An operation is a class, and what the class leaves open: size and mode of a load, kind of
# arithmetic or jump; the bit _X says that the operand is X instead of the constant.
LD, LDX, ST, STX, ALU, JMP, RET, MISC = range(8)
_IMM, _ABS, _MEM, _LEN = 0x00, 0x20, 0x60, 0x80
_X = 0x08
ADD, SUB, MUL, DIV, OR, AND, LSH, RSH, NEG, _, XOR = range(0x00, 0xB0, 0x10)
JA, JEQ, JGT, JGE, JSET = range(0x00, 0x50, 0x10)
RET_K, RET_A, TAX, TXA = RET, RET | 0x10, MISC, MISC | 0x80
LD_WORD, LD_IMM, LD_MEM, LD_LEN = (LD | mode for mode in (_ABS, _IMM, _MEM, _LEN))
LDX_IMM, LDX_MEM, LDX_LEN = (LDX | mode for mode in (_IMM, _MEM, _LEN))

ARITHMETIC: dict[int, Callable[[int, int], int]] = {
    ADD: operator.add,
    SUB: operator.sub,
    MUL: operator.mul,
    DIV: operator.floordiv,
    OR: operator.or_,
    AND: operator.and_,
    XOR: operator.xor,
    LSH: lambda a, b: a << (b & 31),
    RSH: lambda a, b: a >> (b & 31),
}
COMPARISONS: dict[int, Callable[[int, int], object]] = {
    JEQ: operator.eq,
    JGT: operator.gt,
    JGE: operator.ge,
    JSET: operator.and_,
}
# The whole list of seccomp_check_filter(). No half words, no packets, no remainder.
ALLOWED = frozenset(
    {LD_WORD, LD_IMM, LD_MEM, LD_LEN, LDX_IMM, LDX_MEM, LDX_LEN, ST, STX, RET_K, RET_A, TAX, TXA}
    | {ALU | kind | source for kind in ARITHMETIC for source in (0, _X)}
    | {JMP | kind | source for kind in COMPARISONS for source in (0, _X)}
    | {ALU | NEG, JMP | JA}
)

_INSTRUCTION = struct.Struct("=HBBI")  # struct sock_filter
_DATA = struct.Struct("=IIQ6Q")  # struct seccomp_data: nr, arch, instruction_pointer, args
_WORDS = struct.Struct("=16I")
_LONGEST = 4096  # BPF_MAXINSNS
_MEMORY = 16  # BPF_MEMWORDS
_U32, _U64 = 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF

# linux/audit.h: what seccomp_data.arch holds. x32 calls arrive as x86-64 with a bit in the number.
X86_64, I386, AARCH64 = 0xC000003E, 0x40000003, 0xC00000B7
X32_BIT = 0x4000_0000

# linux/seccomp.h: the upper half of an answer is the action, the lower half its data (an errno).
KILL_PROCESS, KILL_THREAD, TRAP, ERRNO = 0x80000000, 0x00000000, 0x00030000, 0x00050000
USER_NOTIF, TRACE, LOG, ALLOW = 0x7FC00000, 0x7FF00000, 0x7FFC0000, 0x7FFF0000
ACTION, DATA = 0xFFFF0000, 0x0000FFFF


class BadProgram(SandboxError):
    """Bytes that the kernel would not load as a seccomp filter; the message says where and why."""

    def __init__(self, message: str) -> None:
        super().__init__("bpf_program", message, "compile the filter again from its policy")


class Instruction(NamedTuple):
    """One `struct sock_filter`; `yes` and `no` are how many instructions a jump skips."""

    code: int
    yes: int
    no: int
    k: int


Program = tuple[Instruction, ...]


def seccomp_data(number: int, arguments: Sequence[int] = (), arch: int = X86_64) -> tuple[int, ...]:
    """One call as the sixteen 32-bit words that a filter can load; missing arguments are 0."""
    full = [argument & _U64 for argument in (*arguments, 0, 0, 0, 0, 0, 0)[:6]]
    return _WORDS.unpack(_DATA.pack(number & _U32, arch, 0, *full))


def decode(program: bytes) -> Program:
    """The instructions of a filter. Raises BadProgram for whatever the kernel would not load."""
    if len(program) % _INSTRUCTION.size or not 0 < len(program) <= _LONGEST * _INSTRUCTION.size:
        raise BadProgram(f"{len(program)} bytes are not 1 to {_LONGEST} instructions of 8")
    found = tuple(Instruction(*fields) for fields in _INSTRUCTION.iter_unpack(program))
    for place, instruction in enumerate(found):
        if wrong := _wrong(instruction, len(found) - place - 1):
            raise BadProgram(f"instruction {place}: {wrong}")
    if found[-1].code not in (RET_K, RET_A):
        raise BadProgram(f"instruction {len(found) - 1}: the last one does not return")
    _check_memory(found)
    return found


def _wrong(instruction: Instruction, left: int) -> str | None:
    """What is wrong with one instruction that has `left` others behind it."""
    code, yes, no, k = instruction
    kind = code & 7
    if code not in ALLOWED:
        return f"operation {code:#x} is not for seccomp filters"
    if code == LD_WORD and (k % 4 or k >= _DATA.size):
        return f"offset {k} is no word of struct seccomp_data"
    if (code in (LD_MEM, LDX_MEM) or kind in (ST, STX)) and k >= _MEMORY:
        return f"there is no memory word {k}"
    if code == ALU | DIV and k == 0:
        return "division by 0"
    if code in (ALU | LSH, ALU | RSH) and k >= 32:
        return f"shift by {k}"
    if kind == JMP and (k if code == JMP | JA else max(yes, no)) >= left:
        return "jumps behind the end"
    return None


def _check_memory(program: Program) -> None:
    """No way through `program` reads a memory word that it has not written."""
    written = [2**_MEMORY - 1] * len(program)  # a bit for each word: written on every way to here
    now = 0
    for place, (code, yes, no, k) in enumerate(program):
        now &= written[place]
        if code & 7 in (ST, STX):
            now |= 1 << k
        elif code in (LD_MEM, LDX_MEM) and not now >> k & 1:
            raise BadProgram(f"instruction {place}: memory word {k} is read before it is written")
        elif code & 7 == JMP:
            for skipped in (k,) if code == JMP | JA else (yes, no):
                written[place + 1 + skipped] &= now
            now = 2**_MEMORY - 1  # what follows is reached by jumps alone


def run(program: Program, data: Sequence[int]) -> int:
    """The answer of one filter to one call: `data` as from `seccomp_data`."""
    a = x = place = 0
    memory = [0] * _MEMORY
    while True:
        code, yes, no, k = program[place]
        place += 1
        kind = code & 7
        operand = x if code & _X else k
        if code == LD_WORD:
            a = data[k // 4]
        elif code == JMP | JA:
            place += k
        elif kind == JMP:
            place += yes if COMPARISONS[code & 0xF0](a, operand) else no
        elif kind == RET:
            return a if code == RET_A else k
        elif code == ALU | NEG:
            a = -a & _U32
        elif kind == ALU:
            if code & 0xF0 == DIV and operand == 0:
                return KILL_THREAD  # a division by X = 0 ends the program with 0
            a = ARITHMETIC[code & 0xF0](a, operand) & _U32
        elif kind == LD:
            a = memory[k] if code == LD_MEM else _DATA.size if code == LD_LEN else k
        elif kind == LDX:
            x = memory[k] if code == LDX_MEM else _DATA.size if code == LDX_LEN else k
        elif kind in (ST, STX):
            memory[k] = a if kind == ST else x
        elif code == TAX:
            x = a
        else:
            a = x


def strictest(answers: Iterable[int]) -> int:
    """What the kernel does with the answers of several filters, given in the order of loading.

    The smallest action as a signed number wins, so that killing is before all others; of equal
    actions the filter loaded last decides, and with it the errno.
    """
    newest_first = reversed([*answers])
    return min(newest_first, key=lambda answer: answer & ACTION ^ KILL_PROCESS, default=ALLOW)


def run_all(programs: Iterable[Program], data: Sequence[int]) -> int:
    """The answer of all filters together, given in the order of loading."""
    return strictest([run(program, data) for program in programs])
