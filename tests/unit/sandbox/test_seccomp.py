"""The emitted BPF decides as the rules say: every call number, every argument corner, foreign ABIs.

The interpreter below is our own and knows only what classic BPF for seccomp may hold (seccomp(2)).
"""

from __future__ import annotations

import errno
import functools
import random
import struct
import tomllib
from pathlib import Path

import pytest

seccomp = pytest.importorskip("seccomp", reason="Debian's python3-seccomp is not installed")

from sandbox import seccomp as filters  # noqa: E402
from sandbox.errors import SandboxError  # noqa: E402
from sandbox.plan import ArgTest, SeccompSpec, SyscallRule  # noqa: E402
from tests.host.sandbox.conftest import shipped_plan  # noqa: E402

X86_64, I386, X32_BIT = 0xC000003E, 0x40000003, 0x40000000
ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x80000000
POLICIES = [
    tomllib.loads(path.read_text())["id"]
    for path in sorted((Path(__file__).parents[3] / "policies").glob("*.toml"))
]


def run_bpf(program: bytes, number: int, arguments: list[int], arch: int = X86_64) -> int:
    """The filter's verdict on one call."""
    data = struct.pack("=iIQ6Q", number, arch, 0, *arguments)
    code = [struct.unpack_from("=HBBI", program, i) for i in range(0, len(program), 8)]
    accumulator, counter = 0, 0
    while True:
        operation, true, false, k = code[counter]
        counter += 1
        if operation == 0x20:  # ld [k]
            accumulator = struct.unpack_from("=I", data, k)[0]
        elif operation == 0x54:  # and #k
            accumulator &= k
        elif operation == 0x05:  # ja
            counter += k
        elif operation in (0x15, 0x25, 0x35):  # jeq, jgt, jge
            holds = {0x15: accumulator == k, 0x25: accumulator > k, 0x35: accumulator >= k}
            counter += true if holds[operation] else false
        elif operation == 0x06:  # ret
            return k
        else:
            raise AssertionError(f"unexpected operation {operation:#x}")


@functools.cache
def number_of(call: str) -> int:
    """The x86-64 number of a rule's call."""
    return int(call[1:]) if call.startswith("#") else seccomp.resolve_syscall(seccomp.Arch(), call)


def action(name: str) -> int:
    """A rule's action as a seccomp return value."""
    if name in ("allow", "kill"):
        return ALLOW if name == "allow" else KILL
    return ERRNO | getattr(errno, name)


def holds(test: ArgTest, arguments: list[int]) -> bool:
    """Whether one comparison is true."""
    value = arguments[test.index]
    if test.op == "masked_eq":
        return value & test.mask == test.value
    return (value == test.value) == (test.op == "eq")


def expected(spec: SeccompSpec, number: int, arguments: list[int]) -> int:
    """What the rules say: in each filter the matching rule, of both filters the strictest."""

    def verdict(rules: tuple[SyscallRule, ...], default: str) -> int:
        found = {
            action(rule.action)
            for rule in rules
            if number_of(rule.call) == number and all(holds(t, arguments) for t in rule.tests)
        }
        assert len(found) <= 1, f"call {number} {arguments}: rules contradict each other"
        return found.pop() if found else action(default)

    verdicts = [verdict(spec.main + filters.launch_rules(spec), spec.default)]
    verdicts += [verdict(spec.refuse, "allow")] if spec.refuse else []
    # The kernel takes the lowest value, KILL_PROCESS being negative. seccomp(2).
    return min(verdicts, key=lambda v: (v - (1 << 32)) if v & KILL else v)


def actual(programs: tuple[bytes, ...], number: int, arguments: list[int], arch: int) -> int:
    """What the loaded programs say together."""
    verdicts = [run_bpf(program, number, arguments, arch) for program in programs]
    return min(verdicts, key=lambda v: (v - (1 << 32)) if v & KILL else v)


def corners(spec: SeccompSpec, number: int, chance: random.Random) -> list[list[int]]:
    """Argument vectors on and beside every comparison of the call's rules."""
    vectors = [[0] * 6, [(1 << 64) - 1] * 6, [chance.getrandbits(64) for _ in range(6)]]
    for rule in spec.main + spec.refuse:
        if number_of(rule.call) == number:
            for test in rule.tests:
                for value in (test.value, test.value + 1, test.value ^ 1 << 32, ~test.mask):
                    for background in (0, (1 << 64) - 1):
                        vector = [background] * 6
                        vector[test.index] = value & ((1 << 64) - 1)
                        vectors.append(vector)
    return vectors


@pytest.mark.parametrize("policy", POLICIES)
def test_the_bpf_of_every_shipped_policy_agrees_with_its_rules(policy: str, tmp_path: Path) -> None:
    spec = shipped_plan(tmp_path, policy).seccomp
    programs = filters.compile_filters(spec)
    chance = random.Random(policy)
    cases = 0
    for number in (*range(-1, 600), X32_BIT - 1):
        for arguments in corners(spec, number, chance):
            found = actual(programs, number, arguments, X86_64)
            wanted = expected(spec, number, arguments)
            assert found == wanted, (number, arguments, hex(found), hex(wanted))
            cases += 1
    assert cases > 1800


def test_foreign_system_call_tables_are_killed() -> None:
    spec = SeccompSpec((SyscallRule("getpid", "allow"),))
    (program,) = filters.compile_filters(spec)
    getpid = number_of("getpid")
    assert run_bpf(program, getpid, [0] * 6) == ALLOW
    assert run_bpf(program, getpid, [0] * 6, I386) == KILL
    assert run_bpf(program, getpid | X32_BIT, [0] * 6) == KILL


def test_a_call_that_libseccomp_does_not_know_is_named_in_the_error() -> None:
    with pytest.raises(SandboxError, match="no_such_call"):
        filters.compile_filters(SeccompSpec((SyscallRule("no_such_call", "allow"),)))


def test_the_interpreter_itself_sees_a_wrong_filter() -> None:
    """The differential test can fail: a rule more in the BPF than in the rules is noticed."""
    narrow = SeccompSpec((SyscallRule("getpid", "allow"),))
    wide = SeccompSpec((SyscallRule("getpid", "allow"), SyscallRule("getuid", "allow")))
    number = number_of("getuid")
    found = actual(filters.compile_filters(wide), number, [0] * 6, X86_64)
    assert found != expected(narrow, number, [0] * 6)
