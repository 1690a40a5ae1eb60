"""What the status names as DEGRADED of the vault."""

from __future__ import annotations

from supervisor.custody import Custody


def test_a_pin_that_may_be_guessed_without_end_is_degraded() -> None:
    custody = Custody.__new__(Custody)  # the supervisor around it has no part in this
    custody.found = {"waivers": ["software-tpm"]}
    assert custody.waived() == [], "the control"
    custody.found = {"waivers": ["software-tpm", "pin-rate-limit"]}
    (gap,) = custody.waived()
    assert gap["guarantee"] == "pin-rate-limit" and "waived as" in gap["why"] and gap["fix"]
    custody.found = {}
    assert custody.waived() == []
