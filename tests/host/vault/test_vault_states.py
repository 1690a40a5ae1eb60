"""Boot states that are approved before they are booted, and a machine without a TPM."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
from vault_scene import Helper, Swtpm

from supervisor.vault.errors import Fault

EXTENDED = hashlib.sha256(bytes(32) + b"\x5a" * 32).hexdigest()  # PCR 7 after Swtpm.extend(7)
ALLOW = "--allow-key-file"


def predict(vault: Helper, value: str, note: str = "update") -> Fault | None:
    prediction = json.dumps({"7": value}).encode()
    return vault.give("approve", "--predict", "--note", note, prediction=prediction).fault


def test_predicted_state_opens_and_others_do_not(vault: Helper, tpm: Swtpm) -> None:
    assert predict(vault, EXTENDED) is None
    status = vault.ok("status").json
    assert [a["kind"] for a in status["approvals"]] == ["current", "predicted"]
    assert status["pcrs"][0]["expected"] == ["00" * 32, EXTENDED]
    tpm.extend(7)
    assert vault.run("list").code == 0
    assert vault.ok("status").json["approval"]["note"] == "update"
    tpm.restart()
    assert vault.run("list").code == 0  # the update did not come yet: still approved
    tpm.extend(7)
    tpm.extend(7)
    refused = vault.ok("status").json
    assert refused["problem"] == "PCR_CHANGED"
    assert refused["pcrs"][0]["approved"] is False


def test_state_left_behind_is_forgotten_by_the_next_commit(vault: Helper, tpm: Swtpm) -> None:
    """With the counter moved its old approval is of no use either."""
    assert predict(vault, EXTENDED) is None
    old = vault.file.read_bytes()
    tpm.extend(7)
    assert vault.set("practice", b"the value").code == 0
    assert len(vault.ok("status").json["approvals"]) == 1
    tpm.restart()
    assert vault.run("list").fault is Fault.PCR_CHANGED
    vault.file.write_bytes(old)
    assert vault.run("list").fault is Fault.ROLLBACK


def test_predictions_can_be_withdrawn(vault: Helper, tpm: Swtpm) -> None:
    assert predict(vault, EXTENDED) is None
    vault.ok("approve", "--note", "as it is")
    status = vault.ok("status").json
    assert [(a["kind"], a["note"]) for a in status["approvals"]] == [("current", "as it is")]
    tpm.extend(7)
    assert vault.run("list").fault is Fault.PCR_CHANGED


def test_predictions_outlive_commits_and_rotations(vault: Helper, tpm: Swtpm) -> None:
    assert predict(vault, EXTENDED) is None
    assert vault.set("practice", b"the value").code == 0
    vault.ok("rotate")
    tpm.extend(7)
    assert vault.run("list").code == 0


def test_senseless_predictions_are_refused(vault: Helper) -> None:
    before = vault.file.read_bytes()
    for value in ("", "00" * 32, "ff" * 32, "ab" * 31):
        assert predict(vault, value) is Fault.PREDICTION
    assert vault.give("approve", "--predict", prediction=b"{}").fault is Fault.PREDICTION
    assert vault.run("approve", "--predict").fault is Fault.USAGE
    assert vault.run("approve", "--note", "two\nlines").fault is Fault.USAGE
    assert vault.file.read_bytes() == before


def test_other_pcrs_are_bound_and_unbound(vault: Helper, tpm: Swtpm) -> None:
    bound = vault.ok("rebind", "--pcrs", "7,11").json
    assert (bound["pcrs"], bound["wanted_pcrs"]) == ([7, 11], [7, 11])
    tpm.extend(11)
    assert vault.run("list").fault is Fault.PCR_CHANGED
    tpm.restart()
    assert vault.run("rebind", "--pcrs", "17").fault is Fault.PCR_BANK_MISSING
    assert vault.ok("rebind", "--pcrs", "none").json["pcrs"] == []
    tpm.extend(7)
    assert vault.run("list").code == 0


@pytest.fixture
def bare(app: Path, tmp_path: Path) -> Helper:
    """A machine without a TPM."""
    state = tmp_path / "vault"
    state.mkdir()
    return Helper(app, state, Swtpm(tmp_path / "none"))


def test_key_file_must_be_allowed_by_name_every_time(bare: Helper) -> None:
    assert bare.run("init").fault is Fault.TPM_ABSENT
    made = bare.ok("init", ALLOW).json
    assert (made["key_file"], made["level"]["code"]) == (True, "T0")
    assert bare.give("set", "practice", ALLOW, secret=b"the value").code == 0
    assert bare.ok("list", ALLOW).json["names"] == ["practice"]
    assert bare.run("list").fault is Fault.KEY_FILE_REFUSED
    assert bare.set("other", b"the value").fault is Fault.KEY_FILE_REFUSED
    for options, problem in (((ALLOW,), None), ((), "KEY_FILE_REFUSED")):
        status = bare.ok("status", *options).json
        assert (status["problem"], status["waivers"]) == (problem, ["file-key"])
        assert status["level"]["code"] == "T0"
        assert "key file" in status["level"]["does_not_stop"]


def test_key_file_is_private_and_must_fit(bare: Helper) -> None:
    bare.ok("init", ALLOW)
    (key,) = bare.state.glob("vault.*.key")
    assert key.stat().st_mode & 0o777 == 0o600 and key.stat().st_size == 32
    good = key.read_bytes()
    for bad in (b"", good[:-1], good + b"x", bytes(32)):
        key.write_bytes(bad)
        assert bare.run("list", ALLOW).fault is Fault.KEY_FILE_MISSING
    key.write_bytes(good)
    key.chmod(0o640)
    assert bare.run("list", ALLOW).fault is Fault.KEY_FILE_MISSING
    key.chmod(0o600)
    assert bare.run("list", ALLOW).code == 0
    key.unlink()
    assert bare.run("list", ALLOW).fault is Fault.KEY_FILE_MISSING
    key.symlink_to("/dev/zero")
    assert bare.run("list", ALLOW).fault is Fault.KEY_FILE_MISSING


def test_key_file_has_recovery_but_neither_pin_nor_pcrs(bare: Helper) -> None:
    bare.ok("init", ALLOW)
    read, write = os.pipe()
    assert bare.run("recovery-code", ALLOW, code=write).code == 0
    os.close(write)
    with os.fdopen(read, "rb") as shown:
        code = shown.read()
    assert bare.give("confirm-recovery", ALLOW, secret=code).json["pcrs"] == []
    assert bare.give("pin-set", ALLOW, secret=b"123456").fault is Fault.PIN_ABSENT
    assert bare.run("rebind", "--pcrs", "7", ALLOW).fault is Fault.KEY_FILE_REFUSED
    (key,) = bare.state.glob("vault.*.key")
    key.unlink()
    assert bare.give("recover", ALLOW, secret=code).fault is Fault.RECOVERY_STALE
    assert bare.give("recover", ALLOW, "--accept-stale", secret=code).code == 0
    assert bare.run("list", ALLOW).code == 0
    assert len(list(bare.state.glob("vault.*.key"))) == 1


def test_key_file_moves_into_a_tpm_that_has_appeared(bare: Helper) -> None:
    bare.ok("init", ALLOW)
    assert bare.give("set", "practice", ALLOW, secret=b"the value").code == 0
    bare.tpm.start()
    try:
        moved = bare.ok("rotate", ALLOW).json
        assert (moved["key_file"], moved["generation"]) == (False, 3)
        assert [path.name for path in bare.state.iterdir()] == ["vault.json"]
        assert bare.ok("list").json["names"] == ["practice"]
        assert bare.ok("status").json["counter"]["state"] == "current"
    finally:
        bare.tpm.stop()
    assert bare.run("list", ALLOW).fault is Fault.TPM_ABSENT  # and never back by itself


def test_present_tpm_is_used_whatever_is_allowed(helper: Helper) -> None:
    assert helper.ok("init", ALLOW).json["key_file"] is False
    assert not list(helper.state.glob("vault.*.key"))
