"""Errors and levels: the vocabulary that the supervisor shares with the helper."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from supervisor.vault import levels
from supervisor.vault.errors import Fault, VaultError, fault_of
from supervisor.vault.helper import Descriptors, parser

ROOT = Path(__file__).resolve().parents[3]


def test_exit_codes_are_unique_and_come_back() -> None:
    codes = [fault.code for fault in Fault]
    assert len(set(codes)) == len(codes)
    assert all(1 <= code <= 125 for code in codes)
    assert all(fault_of(fault.code) is fault for fault in Fault)
    assert fault_of(0) is None
    assert fault_of(-9) is Fault.INTERNAL
    assert fault_of(99) is Fault.INTERNAL


def test_every_error_has_a_sentence_and_a_fix() -> None:
    for fault in Fault:
        assert fault.sentence and fault.fix
        assert str(VaultError(fault, "detail")).startswith(f"{fault.name}: {fault.sentence}")


def test_supervisor_may_import_errors_and_levels() -> None:
    """Root imports no TPM library and no cryptography with them."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import supervisor.vault.errors;"
        "import supervisor.vault.levels; print(*sys.modules)"
    )
    found = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program, str(ROOT)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert "supervisor.vault.errors" in found
    assert not {"cryptography", "tpm2_pytss", "_cffi_backend", "ctypes"} & set(found)


@pytest.mark.parametrize(
    "software, pcrs, secure_boot, code",
    [
        (True, [7], True, "T0"),
        (True, [], False, "T0"),
        (False, [7], False, "T1"),
        (False, [4], True, "T1"),
        (False, [7], True, "T2"),
    ],
)
def test_level_is_never_better_than_what_holds(
    software: bool, pcrs: list[int], secure_boot: bool, code: str
) -> None:
    found = levels.level(software=software, pcrs=pcrs, secure_boot=secure_boot)
    assert found.code == code
    assert "root" in found.does_not_stop
    if software:
        assert "a software TPM protects nothing against root" in found.does_not_stop


@pytest.mark.parametrize("missing", [None, "uki", "disk_encrypted", "secure_boot", "pcr"])
def test_measured_chain_needs_every_part(missing: str | None) -> None:
    facts = {"uki": True, "disk_encrypted": True, "secure_boot": True}
    if missing in facts:
        facts[missing] = False
    pcrs = [7, 11] if missing == "pcr" else [7, 11, 15]
    found = levels.level(software=False, pcrs=pcrs, **facts)
    expected = {None: "T3", "secure_boot": "T1"}.get(missing, "T2")
    assert found.code == expected
    assert (found.next is None) == (missing is None)
    assert len(found.reasons) == 5


def test_key_file_and_software_are_level_zero_whatever_else_holds() -> None:
    everything = {"pcrs": [7, 11, 15], "secure_boot": True, "uki": True, "disk_encrypted": True}
    for facts in ({"software": True}, {"software": False, "key_file": True}):
        found = levels.level(**facts, **everything)  # type: ignore[arg-type]
        assert found.code == "T0"
        assert found.next and found.reasons


def test_pcrs_are_parsed_strictly() -> None:
    assert parser().parse_args(["init", "--pcrs", "11,7,7"]).pcrs == [7, 11]
    assert parser().parse_args(["init"]).pcrs is None
    assert parser().parse_args(["init", "--pcrs", "none"]).pcrs == []
    for bad in ("", "24", "7,", "-1", "7 ,8", "x", "007", "\u0667"):
        with pytest.raises(VaultError) as caught:
            parser().parse_args(["init", "--pcrs", bad])
        assert caught.value.fault is Fault.USAGE


def test_descriptors_are_found_by_name() -> None:
    found = Descriptors({"LISTEN_FDS": "2", "LISTEN_FDNAMES": "secret:result"})
    assert (found.number("secret"), found.number("result")) == (3, 4)
    for environment in ({}, {"LISTEN_FDS": "0", "LISTEN_FDNAMES": ""}):
        with pytest.raises(VaultError) as caught:
            Descriptors(environment).number("secret")
        assert caught.value.fault is Fault.USAGE
    for environment in (
        {"LISTEN_FDS": "1"},
        {"LISTEN_FDNAMES": "secret"},
        {"LISTEN_FDS": "x", "LISTEN_FDNAMES": "secret"},
    ):
        with pytest.raises(VaultError):
            Descriptors(environment)
