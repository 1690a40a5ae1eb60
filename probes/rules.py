"""What the watch is told about one workload."""

from __future__ import annotations

from dataclasses import dataclass

from .layout import CALLS

ON_HIGH_RISK = ("record", "alert", "stop", "kill")
ON_UNSEEN = ("record", "alert")


@dataclass(frozen=True, slots=True)
class WatchRules:
    """Call numbers (x86-64) and the answers to calls outside them.

    A call in `allowed` is quiet, also when it is in `high_risk`: the policy said yes to it. A
    high-risk call outside `allowed` gets `on_high_risk`; `stop` and `kill` both send SIGSTOP from
    the kernel, the rest is the supervisor's. Any other call gets `on_unseen`. `denials` asks for
    reports of calls that failed with a watched errno. Raises ValueError for values outside these.
    """

    allowed: frozenset[int]
    high_risk: frozenset[int]
    on_high_risk: str
    on_unseen: str
    denials: bool

    def __post_init__(self) -> None:
        if self.on_high_risk not in ON_HIGH_RISK:
            raise ValueError(f"on_high_risk is {self.on_high_risk!r}, not one of {ON_HIGH_RISK}.")
        if self.on_unseen not in ON_UNSEEN:
            raise ValueError(f"on_unseen is {self.on_unseen!r}, not one of {ON_UNSEEN}.")
        for number in self.allowed | self.high_risk:
            if not 0 <= number < CALLS:
                raise ValueError(f"System call number {number} is outside 0..{CALLS - 1}.")
