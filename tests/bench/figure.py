"""One figure of `make bench`: a ratio within one run, and the bound it must keep."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """`value` measured against `reference`, both in `unit`; without a reference the bound is on
    `value` itself. `bound` is the highest number allowed, None for a figure given for its interest.
    """

    what: str
    value: float
    unit: str
    reference: float | None = None
    against: str = ""
    bound: float | None = None

    @property
    def judged(self) -> float:
        """The number that the bound applies to: the ratio where there is a reference."""
        return self.value / self.reference if self.reference else self.value

    @property
    def verdict(self) -> str:
        """`kept`, `MISSED`, or `-` where there is no bound."""
        if self.bound is None:
            return "-"
        return "kept" if self.judged <= self.bound else "MISSED"

    def row(self) -> tuple[str, str, str, str, str, str]:
        """The figure as cells: what, value, against, ratio, bound, verdict."""
        ratio = f"{self.judged:.2f}x" if self.reference else ""
        against = f"{self.against} {self.reference:.4g} {self.unit}" if self.reference else ""
        bound = ""
        if self.bound is not None:
            bound = f"<= {self.bound:g}x" if self.reference else f"<= {self.bound:g} {self.unit}"
        return (self.what, f"{self.value:.4g} {self.unit}", against, ratio, bound, self.verdict)
