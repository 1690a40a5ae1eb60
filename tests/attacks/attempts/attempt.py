"""What one attempt is: the act of a program, and the answers that it may get."""

from __future__ import annotations

import errno
import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sandbox.plan import SeccompSpec
from sandbox.seccomp.truth_table import TruthTable

NONE = "nobody: allowed"  # of acts that must work, so that the rest is no broken sandbox


@dataclass(frozen=True)
class Attempt:
    """One line of the suite.

    `words`: the act of the section's program and its words; "{name}" stands for a place or number
    that differs inside and outside (see scene.py). `call` and `arguments` are the system call that
    decides, as the filter sees it. `beneath`: the answers, as a pattern, where the filter lets the
    call pass, and `layer` who gives them. `works`: what the same act answers without a sandbox;
    where success would harm the host it is the error of a malformed request, which shows that the
    kernel looked at it. `lacks`: answers outside that say that this host has no such feature.
    `control`: how the control runs (see control.py). `critical`: success would lead out of the
    sandbox. `foreign`: not a call of this architecture; the filter kills it whatever the policy.
    `controller`: of cgroup version 2, which keeps the bound; tried under the shipped policy alone,
    because the weakest has no limit. `comm`: what its process is called when it is refused, if not
    by its id.
    """

    entry: str
    promise: str
    call: str
    words: tuple[str, ...]
    arguments: tuple[int, ...] = ()
    beneath: str = "(?!)"
    layer: str = ""
    works: str = r"returned \d+.*"
    lacks: str = "(?!)"
    control: str = "plain"
    critical: bool = False
    foreign: bool = False
    controller: str = ""
    comm: str = ""
    id: str = ""

    def decided(self, spec: SeccompSpec) -> str:
        """What the filters of a plan answer to the deciding call: allow, kill or an errno."""
        if self.foreign:
            return "kill"
        return _table(spec).verdict(self.call, self.arguments)

    def expected(self, spec: SeccompSpec) -> str:
        """The pattern of the one right answer under these filters."""
        answer = self.decided(spec)
        if answer == "kill":
            return "SIGSYS"
        return self.beneath if answer == "allow" else rf"{answer}(: .*)?"

    def refused_by(self, spec: SeccompSpec) -> str:
        """The layer that the expected answer comes from."""
        return self.layer if self.decided(spec) == "allow" else "seccomp"


@functools.lru_cache(maxsize=8)
def _table(spec: SeccompSpec) -> TruthTable:
    return TruthTable(spec)


def numbered(attempts: Sequence[Attempt]) -> tuple[Attempt, ...]:
    """The attempts with ids such as "A09.03", which are also their processes' names in events."""
    counts: dict[str, int] = {}
    found = []
    for attempt in attempts:
        counts[attempt.entry] = counts.get(attempt.entry, 0) + 1
        found.append(replace(attempt, id=f"{attempt.entry}.{counts[attempt.entry]:02d}"))
    return tuple(found)


def is_errno(answer: str) -> str:
    """The errno's name at the start of a result line, "" if there is none."""
    word = answer.split(":")[0].strip()
    return word if word in errno.errorcode.values() else ""
