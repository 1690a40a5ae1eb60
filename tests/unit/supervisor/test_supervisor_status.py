"""What `status` says of the vault: what it is bound to, and why it did not open."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from supervisor.custody import Custody
from supervisor.host import Tpm
from supervisor.status import _degraded, _tpm
from supervisor.vault.errors import Fault

LEVEL = {"code": "T0", "does_not_stop": "root"}
SHUT = {
    "problem": "PCR_CHANGED",
    "detail": "PCR 11: 00 -> 01",
    "vault": {"pcrs": [7, 11]},
    "level": LEVEL,
    "pcrs": [
        {"pcr": 7, "now": "00", "approved": True, "expected": ["00"]},
        {"pcr": 11, "now": "01", "approved": False, "expected": ["00"]},
    ],
}


@pytest.fixture
def house(tmp_path: Path) -> Any:
    """A supervisor, as far as its status needs one."""
    of = SimpleNamespace(
        guarantees=[], policy_errors=[], unsigned=None, host_tpm_is_software=False, egress=None,
        one_shot=None,
        host=SimpleNamespace(tpm=Tpm()), waived=frozenset(), state=tmp_path,
    )  # fmt: skip
    of.vault = Custody(of)  # type: ignore[arg-type]  # only what it uses
    return of


def test_a_vault_that_stays_shut_is_named_with_the_pcr_and_the_next_step(house: Any) -> None:
    assert _degraded(house, []) == []
    house.vault.found = SHUT
    (found,) = _degraded(house, [])
    fault = Fault.PCR_CHANGED
    assert found["guarantee"] == "vault" and found["code"] == "PCR_CHANGED"
    assert found["why"].startswith(f"PCR_CHANGED: {fault.sentence} (PCR 11: 00 -> 01). PCR 11 ")
    assert "unified kernel image" in found["why"] and "PCR 7" not in found["why"]
    assert found["fix"] == fault.fix
    house.vault.locked = {"code": "EGRESS_REFUSED", "why": "no answer", "fix": "see its log"}
    assert _degraded(house, [])[0]["why"] == "no answer", "what shut it counts"


def test_a_vault_with_a_pin_is_shut_until_it_was_typed(house: Any) -> None:
    house.vault.found = {"problem": "PIN_NEEDED", "detail": ""}
    assert _degraded(house, [])[0]["code"] == "PIN_NEEDED"
    house.egress = house.vault._has_keys = object()
    assert _degraded(house, []) == []
    house.egress = object()  # another one: it was started again
    assert _degraded(house, [])[0]["code"] == "PIN_NEEDED"


def test_the_pcrs_of_the_vault_stand_beside_its_level(house: Any) -> None:
    house.vault.found = SHUT
    found = _tpm(house)
    assert (found["mode"], found["level"], found["pcrs"]) == ("device", "T0", [7, 11])
    house.vault.found = {"problem": "no TPM", "vault": None}
    assert _tpm(house)["pcrs"] == []
