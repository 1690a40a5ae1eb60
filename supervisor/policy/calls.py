"""Groups of system calls to the two seccomp filters of a launch plan.

The main filter is an allow-list over ENOSYS. Argument rules live in the refusing filter alone,
because an allow rule without tests swallows every conditional rule on the same call. "Only these
values" is written there as its exact complement: disjoint masked comparisons that together cover
every other 32-bit value. Source: seccomp_rule_add(3); hardening rules on EQ, NE and MASKED_EQ.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sandbox.plan import ArgTest, SeccompSpec, SyscallRule
from sandbox.seccomp import unsound
from sandbox.seccomp.truth_table import outside
from supervisor.policy.groups import ArgumentSet, Baseline, Group, named_calls

_LOW = 0xFFFF_FFFF
# The launcher's own calls between loading the filter and the program: see sandbox/seccomp/.
LAUNCH_CALLS = ("read", "write", "execveat", "exit_group")


@dataclass(frozen=True, slots=True)
class Limit:
    """The allowed values of one 32-bit argument of a call; `origin` is the set that names them."""

    argument: int
    values: frozenset[int]
    names: tuple[str, ...]
    action: str
    origin: str
    why: str

    def rules(self, call: str) -> Iterable[SyscallRule]:
        """The refusals of every other value."""
        reason = f"{self.origin}: only {', '.join(self.names)}: {self.why}"
        for mask, value in outside((_LOW, value) for value in self.values):
            test = ArgTest(self.argument, "masked_eq", value, mask)
            yield SyscallRule(call, self.action, (test,), reason)


def seccomp_spec(groups: Sequence[Group], baseline: Baseline, *, jit: bool = False) -> SeccompSpec:
    """The filters for the union of `groups` over `baseline`; with `jit`, written memory may become
    code. Raises ValueError where the groups cannot be joined soundly: they test different arguments
    of one call, allow values that the baseline never does, or contradict each other."""
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
    limits = allowed_values(groups)
    refuse = [rule for call in sorted(limits) for rule in limits[call].rules(call)]
    for only in baseline.only:
        for call in sorted(set(only.calls) & allowed):
            refuse += _ceiling(only, call, limits.get(call), baseline.version)
    for never in baseline.never:
        if not (jit and never.unless_jit):
            for call in sorted(set(never.calls) & allowed):
                refuse += _never(never, call, limits.get(call), baseline.version)
    if clash := unsound(refuse):
        raise ValueError(clash)
    return SeccompSpec(tuple(main[call] for call in sorted(main)), tuple(dict.fromkeys(refuse)))


def allowed_values(groups: Sequence[Group]) -> dict[str, Limit]:
    """The calls that `groups` allow for some values of one argument only."""
    unconditional = {call for group in groups for part in group.allow for call in part.calls}
    found: dict[str, Limit] = {}
    for group in groups:
        for part in group.only:
            for call in set(part.calls) - unconditional:
                limit = _limit(part, f"{group.name} {part.id}")
                found[call] = _union(call, found[call], limit) if call in found else limit
    return found


def _limit(part: ArgumentSet, origin: str) -> Limit:
    return Limit(part.argument, frozenset(part.values), part.names, part.action, origin, part.why)


def _union(call: str, one: Limit, other: Limit) -> Limit:
    if one.argument != other.argument:
        raise ValueError(f"{one.origin} and {other.origin} test different arguments of {call}")
    names = tuple(dict.fromkeys(one.names + other.names))
    return Limit(one.argument, one.values | other.values, names, one.action, one.origin, one.why)


def _ceiling(
    only: ArgumentSet, call: str, limit: Limit | None, version: int
) -> Iterable[SyscallRule]:
    """What the baseline's "only" adds to a group's own limit on the same argument: nothing."""
    ceiling = _limit(only, f"baseline/{version} {only.id}")
    if limit is None or limit.argument != only.argument:
        return ceiling.rules(call)
    if beyond := limit.values - ceiling.values:
        values = ", ".join(f"{value:#x}" for value in sorted(beyond))
        raise ValueError(f"{limit.origin} allows {call} with {values}; {ceiling.origin} does not")
    return ()


def _never(
    never: ArgumentSet, call: str, limit: Limit | None, version: int
) -> Iterable[SyscallRule]:
    reason = f"baseline/{version} {never.id}: {never.why}"
    for value in never.values:
        limited = limit is not None and limit.argument == never.argument and not never.bits
        if limited and limit is not None and value not in limit.values:
            continue  # refused already, and two answers must not overlap
        test = ArgTest(never.argument, "masked_eq", value, value if never.bits else _LOW)
        yield SyscallRule(call, never.action, (test,), reason)
