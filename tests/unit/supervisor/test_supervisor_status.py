"""What `status` says of the vault: what it is bound to, and why it did not open."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from supervisor.status import _degraded, _tpm

SHUT = {
    "problem": "locked: PCR_CHANGED: not an approved state",
    "detail": "PCR 11: 00 -> 01",
    "fix": "compare with the last update",
    "vault": {"pcrs": [7, 11]},
    "level": {"code": "T0", "does_not_stop": "root"},
}


def house(vault: dict[str, Any]) -> Any:
    return SimpleNamespace(guarantees=[], policy_errors=[], vault=vault, host_tpm_is_software=False)


def test_a_vault_that_stays_shut_is_named_with_the_pcr_and_the_next_step() -> None:
    (found,) = _degraded(house(SHUT), [])
    assert found == {
        "guarantee": "vault",
        "why": "locked: PCR_CHANGED: not an approved state (PCR 11: 00 -> 01)",
        "fix": "compare with the last update",
    }
    assert _degraded(house({"vault": {"pcrs": [7]}}), []) == []


def test_the_pcrs_of_the_vault_stand_beside_its_level() -> None:
    found = _tpm(house(SHUT))
    assert (found["mode"], found["level"], found["pcrs"]) == ("device", "T0", [7, 11])
    assert _tpm(house({"problem": "no TPM", "vault": None}))["pcrs"] == []
