"""Seccomp filters: from a policy's rules to the BPF bytes that the child loads.

Compiled once per policy by the supervisor with Debian's libseccomp bindings; the child only loads
bytes. Comparisons are EQ, NE and MASKED_EQ alone: libseccomp before 2.6.1 merges the ordering
comparisons wrongly (GHSA-4q85-33p6-j5g6). Sources: seccomp(2), seccomp_rule_add(3).
"""

from __future__ import annotations

import errno
import functools
import hashlib
import itertools
import os
from collections.abc import Iterable, Sequence
from typing import Any

from sandbox.errors import SandboxError
from sandbox.plan import ArgTest, SeccompSpec, SyscallRule

# What the launcher itself does between loading the filter and the workload's first instruction:
# say "ready", wait for "go", execveat() the open executable (flags AT_EMPTY_PATH, nothing else).
_LAUNCH = (
    SyscallRule("read", "allow", reason="launcher: waits for the release"),
    SyscallRule("write", "allow", reason="launcher: reports ready"),
    SyscallRule("exit_group", "allow", reason="launcher: gives up if the release never comes"),
    SyscallRule(
        "execveat",
        "allow",
        (ArgTest(4, "masked_eq", 0x1000, 0xFFFFFFFF),),
        "launcher: executes the file that was opened and checked before",
    ),
)


@functools.lru_cache(maxsize=64)
def compile_filters(spec: SeccompSpec) -> tuple[bytes, ...]:
    """The filters of `spec` as BPF programs, in the order in which they are to be loaded.

    The refusing filter comes first; the main one last, because it forbids seccomp(2) itself.
    Raises SandboxError `seccomp_rule` naming the rule that libseccomp refuses.
    """
    programs = []
    if spec.refuse:
        programs.append(_build("allow", spec.refuse))
    programs.append(_build(spec.default, spec.main + launch_rules(spec)))
    return tuple(programs)


def digests(programs: Iterable[bytes]) -> tuple[str, ...]:
    """sha256 of each program, in the order of loading: what the audit log says was loaded."""
    return tuple(hashlib.sha256(program).hexdigest() for program in programs)


def denying_filter(rules: tuple[SyscallRule, ...]) -> bytes:
    """A filter that only takes away: what none of `rules` matches passes."""
    return _build("allow", rules)


def launch_rules(spec: SeccompSpec) -> tuple[SyscallRule, ...]:
    """What the launcher needs and `spec` does not decide by itself."""
    free = {rule.call for rule in spec.main if rule.action == "allow" and not rule.tests}
    decided = {(rule.call, rule.tests) for rule in spec.main}
    return tuple(
        rule for rule in _LAUNCH if rule.call not in free and (rule.call, rule.tests) not in decided
    )


def call_number(call: str, architecture: str = "x86_64") -> int:
    """The number of a rule's call; negative for a name that `architecture` lacks."""
    import seccomp

    if call.startswith("#"):
        return int(call[1:])
    arch = seccomp.Arch(getattr(seccomp.Arch, architecture.upper()))
    return int(seccomp.resolve_syscall(arch, call))


def call_name(number: int) -> str | None:
    """The name of an x86-64 call; None where libseccomp knows none."""
    import seccomp

    try:
        name = seccomp.resolve_syscall(seccomp.Arch(seccomp.Arch.X86_64), number)
    except (ValueError, OverflowError):
        return None
    return bytes(name).decode()


def unsound(rules: Sequence[SyscallRule]) -> str | None:
    """What libseccomp would compile otherwise than `rules` say, in words; None if nothing.

    Two answers to the same call: an unconditional rule silently swallows every conditional one. And
    "not equal" beside a rule with two comparisons: "arg0 is not 0" with "arg0 is not 1 and arg1 is
    0" lets arg0 = 0, arg1 = 1 through (2.5.4; found by tests/unit/sandbox/test_seccomp.py).
    """
    by_call: dict[str, dict[str, list[SyscallRule]]] = {}
    for rule in rules:
        by_call.setdefault(rule.call, {}).setdefault(rule.action, []).append(rule)
    for call, by_action in by_call.items():
        tests = [rule.tests for alike in by_action.values() for rule in alike]
        if max(map(len, tests)) > 1 and any(test.op == "ne" for each in tests for test in each):
            return f"{call}: 'ne' cannot stand beside a rule with several comparisons"
        for one, other in itertools.combinations(by_action.values(), 2):
            for a, b in itertools.product(one, other):
                if _overlap(a.tests, b.tests):
                    names = " and ".join(r.reason.partition(":")[0] or r.action for r in (a, b))
                    return f"{names} answer the same call of {call} differently"
    return None


def _overlap(one: tuple[ArgTest, ...], other: tuple[ArgTest, ...]) -> bool:
    """Whether some arguments pass all tests of both."""
    for a, b in itertools.product(one, other):
        if a.index != b.index or "ne" in (a.op, b.op):
            if a.index == b.index and a.value == b.value and {a.op, b.op} == {"eq", "ne"}:
                return False
        elif (a.value ^ b.value) & _mask(a) & _mask(b):
            return False
    return True


def _mask(test: ArgTest) -> int:
    return test.mask if test.op == "masked_eq" else 0xFFFF_FFFF_FFFF_FFFF


def _build(default: str, rules: tuple[SyscallRule, ...]) -> bytes:
    # Imported here: the zygote loads this package and must not carry libseccomp.
    import seccomp

    if clash := unsound(rules):
        raise SandboxError("seccomp_rule", clash, "let the sets not overlap, or answer alike")
    default_action = _action(seccomp, default)
    program = seccomp.SyscallFilter(defaction=default_action)
    # int 0x80 and x32 numbers reach BADARCH: a second, unfiltered system call table otherwise.
    program.set_attr(seccomp.Attr.ACT_BADARCH, seccomp.KILL_PROCESS)
    # A binary tree: at load the kernel walks the program once per call number to fill its cache of
    # unconditional answers, so a linear list costs a launch half a millisecond.
    program.set_attr(seccomp.Attr.CTL_OPTIMIZE, 2)
    for rule in rules:
        call: int | str = int(rule.call[1:]) if rule.call.startswith("#") else rule.call
        tests = [_test(seccomp, test) for test in rule.tests]
        action = _action(seccomp, rule.action)
        if action == default_action:
            continue  # libseccomp refuses a rule that repeats the default
        try:
            program.add_rule_exactly(action, call, *tests)
        except (RuntimeError, OSError, ValueError) as error:
            raise SandboxError(
                "seccomp_rule",
                f"libseccomp refuses the rule {rule.call} {rule.action} {rule.tests}: {error}",
                "give calls that this libseccomp does not know by number, as #NNN",
            ) from error
    fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    with os.fdopen(fd, "r+b") as file:
        program.export_bpf(file)
        file.seek(0)
        return file.read()


def _action(seccomp: Any, action: str) -> int:
    if action == "allow":
        return int(seccomp.ALLOW)
    if action == "kill":
        return int(seccomp.KILL_PROCESS)
    try:
        return int(seccomp.ERRNO(getattr(errno, action)))
    except AttributeError:
        raise SandboxError("seccomp_rule", f"unknown action {action!r}") from None


def _test(seccomp: Any, test: ArgTest) -> Any:
    if test.op == "masked_eq":
        return seccomp.Arg(test.index, seccomp.MASKED_EQ, test.mask, test.value)
    operator = {"eq": seccomp.EQ, "ne": seccomp.NE}[test.op]
    return seccomp.Arg(test.index, operator, test.value)
