"""Groups of system calls to the two seccomp filters of a launch plan.

The main filter is an allow-list over ENOSYS. Argument rules live in the refusing filter alone,
because an allow rule without tests swallows every conditional rule on the same call. "Only these
values" is written there as its exact complement: disjoint masked comparisons that together cover
every other 32-bit value. Source: seccomp_rule_add(3); hardening rules on EQ, NE and MASKED_EQ.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sandbox.plan import ArgTest, SeccompSpec, SyscallRule
from supervisor.policy.groups import ArgumentSet, Baseline, Group, named_calls

_LOW = 0xFFFF_FFFF
# The launcher's own calls between loading the filter and the program: see sandbox/seccomp.py.
LAUNCH_CALLS = ("read", "write", "execveat", "exit_group")


def complement(values: Iterable[int], width: int = 32) -> list[tuple[int, int]]:
    """Disjoint (mask, value) pairs that match exactly the `width`-bit numbers not in `values`."""
    found: list[tuple[int, int]] = []

    def split(bit: int, mask: int, prefix: int, inside: list[int]) -> None:
        if not inside:
            found.append((mask, prefix))
        elif bit >= 0:
            one = 1 << bit
            split(bit - 1, mask | one, prefix, [v for v in inside if not v & one])
            split(bit - 1, mask | one, prefix | one, [v for v in inside if v & one])

    split(width - 1, 0, 0, sorted(set(values)))
    return found


def seccomp_spec(groups: Sequence[Group], baseline: Baseline, *, jit: bool = False) -> SeccompSpec:
    """The filters for the union of `groups` over `baseline`; with `jit`, written memory may become
    code. Raises ValueError if two groups test different arguments of one call: their union cannot
    be written soundly."""
    allowed = named_calls(groups)
    main: dict[str, SyscallRule] = {}
    for group in groups:
        for part in group.parts():
            reason = f"{group.name} {part.id}: {part.why}"
            for call in part.calls:
                main.setdefault(call, SyscallRule(call, "allow", reason=reason))
    for refused in baseline.sets:
        reason = f"baseline/{baseline.version} {refused.id}: {refused.why}"
        for call in refused.calls:
            if call not in main:
                main[call] = SyscallRule(call, refused.action, reason=reason)
    refuse = list(_only(groups))
    limited = allowed_values(groups)
    for never in baseline.never:
        if jit and never.unless_jit:
            continue
        reason = f"baseline/{baseline.version} {never.id}: {never.why}"
        for call in sorted(set(never.calls) & allowed):
            for value in never.values:
                if not never.bits and call in limited and value not in limited[call][1]:
                    continue  # outside the allowed values already; two answers must not overlap
                test = ArgTest(never.argument, "masked_eq", value, value if never.bits else _LOW)
                refuse.append(SyscallRule(call, never.action, (test,), reason))
    return SeccompSpec(tuple(main[call] for call in sorted(main)), tuple(_without_repeats(refuse)))


def allowed_values(groups: Sequence[Group]) -> dict[str, tuple[int, tuple[int, ...], ArgumentSet]]:
    """Calls allowed for some values of one argument only: (argument, values, where it is said)."""
    unconditional = {call for group in groups for part in group.allow for call in part.calls}
    found: dict[str, tuple[int, tuple[int, ...], ArgumentSet]] = {}
    for part in (part for group in groups for part in group.only):
        for call in part.calls:
            if call in unconditional:
                continue
            argument, values, first = found.get(call, (part.argument, (), part))
            if argument != part.argument:
                raise ValueError(f"{first.id} and {part.id} test different arguments of {call}")
            found[call] = (argument, tuple(sorted({*values, *part.values})), first)
    return found


def _only(groups: Sequence[Group]) -> Iterable[SyscallRule]:
    for call, (argument, values, part) in sorted(allowed_values(groups).items()):
        numbers = ", ".join(_names(groups, call, values))
        reason = f"{part.id}: only {numbers}: {part.why}"
        for mask, value in complement(values):
            test = ArgTest(argument, "masked_eq", value, mask)
            yield SyscallRule(call, part.action, (test,), reason)


def _names(groups: Sequence[Group], call: str, values: tuple[int, ...]) -> list[str]:
    parts = [part for group in groups for part in group.only if call in part.calls]
    return list(dict.fromkeys(name for part in parts for name in part.names))


def _without_repeats(rules: Sequence[SyscallRule]) -> Iterable[SyscallRule]:
    """The first rule for each test: libseccomp refuses the same comparison with two actions."""
    seen: dict[tuple[str, tuple[ArgTest, ...]], SyscallRule] = {}
    for rule in rules:
        key = (rule.call, rule.tests)
        if key in seen and rule.action == "kill":
            seen[key] = rule
        seen.setdefault(key, rule)
    return seen.values()


def verdict(spec: SeccompSpec, call: str, arguments: Sequence[int] = ()) -> str:
    """What the two filters answer: "allow", "kill" or an errno name. For explain and tests."""
    given = [*arguments, 0, 0, 0, 0, 0, 0][:6]
    main = _first(spec.main, call, given) or spec.default
    refuse = _first(spec.refuse, call, given) or "allow"
    if "kill" in (main, refuse):
        return "kill"
    return main if main != "allow" else refuse


def _first(rules: Sequence[SyscallRule], call: str, arguments: Sequence[int]) -> str | None:
    actions = [
        rule.action
        for rule in rules
        if rule.call == call and all(_holds(test, arguments) for test in rule.tests)
    ]
    return "kill" if "kill" in actions else next(iter(actions), None)


def _holds(test: ArgTest, arguments: Sequence[int]) -> bool:
    argument = arguments[test.index] & 0xFFFF_FFFF_FFFF_FFFF
    if test.op == "masked_eq":
        return argument & test.mask == test.value
    return (argument == test.value) == (test.op == "eq")
