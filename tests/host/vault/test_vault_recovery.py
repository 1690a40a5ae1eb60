"""Recovery recovers: from another TPM, a cleared one, a changed boot state, by code or by key."""

from __future__ import annotations

import base64
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from vault_scene import Helper, Swtpm, clear_command

from supervisor.vault.errors import Fault

LETTERS = b"cbdefghijklnrtuv"


def key_pair(directory: Path, algorithm: str) -> tuple[bytes, bytes]:
    """(private, public) in PEM, as the documentation says to make them."""
    private = directory / f"{algorithm}.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", algorithm, "-out", private], check=True)
    public = subprocess.run(
        ["openssl", "pkey", "-in", private, "-pubout"], check=True, capture_output=True
    ).stdout
    return private.read_bytes(), public


def test_code_is_shown_once_and_typed_back_before_pcrs_are_bound(fresh: Helper, tpm: Swtpm) -> None:
    header = fresh.ok("status").json["vault"]
    assert (header["pcrs"], header["wanted_pcrs"]) == ([], [7])
    assert header["recovery"] == {"code": False, "confirmed": False, "recipients": []}
    assert fresh.run("rebind").fault is Fault.RECOVERY_UNCONFIRMED
    assert fresh.give("confirm-recovery", secret=b"x" * 76).fault is Fault.RECOVERY_CODE_TYPO
    code = fresh.new_code()
    assert len(code) == 77 and set(code) <= set(LETTERS + b"-\n")
    assert fresh.run("rebind").fault is Fault.RECOVERY_UNCONFIRMED
    tpm.extend(7)
    assert fresh.run("list").code == 0  # nothing is bound yet
    confirmed = fresh.give("confirm-recovery", secret=code).json
    assert (confirmed["pcrs"], confirmed["recovery"]["confirmed"]) == ([7], True)
    tpm.extend(7)
    assert fresh.run("list").fault is Fault.PCR_CHANGED


def test_code_is_read_however_it_is_typed(vault: Helper) -> None:
    plain = vault.code.strip().replace(b"-", b"")
    for typed in (plain, plain.upper(), b" ".join([plain[:30], plain[30:]]) + b"\r\n"):
        assert vault.give("confirm-recovery", secret=typed).code == 0


def test_mistyped_and_other_codes_are_told_apart(vault: Helper, tmp_path: Path) -> None:
    code = vault.code
    at = next(i for i, byte in enumerate(code) if byte != LETTERS[0] and byte != ord("-"))
    typo = code[:at] + LETTERS[:1] + code[at + 1 :]
    other = Helper(vault.app, tmp_path / "other", vault.tpm)
    other.state.mkdir()
    other.ok("init")
    wrong = other.new_code()
    before = vault.file.read_bytes()
    with vault.server() as ask:
        for secret in (typo, code[:-3], code + b"c", b"", b"\x01" * 5000):
            assert ask("recover", secret=secret) is Fault.RECOVERY_CODE_TYPO
        assert ask("recover", secret=wrong) is Fault.RECOVERY_CODE_WRONG
        assert ask("confirm-recovery", secret=wrong) is Fault.RECOVERY_CODE_WRONG
    assert vault.file.read_bytes() == before
    assert vault.give("recover", secret=code).code == 0


def test_vault_without_a_code_says_so(fresh: Helper) -> None:
    code = fresh.new_code()
    fresh.file.unlink()
    fresh.ok("init")
    assert fresh.give("recover", secret=code).fault is Fault.RECOVERY_ABSENT


def test_new_code_replaces_the_older_one(vault: Helper) -> None:
    new = vault.new_code()
    assert vault.ok("status").json["vault"]["recovery"]["confirmed"] is False
    assert vault.give("recover", secret=vault.code).fault is Fault.RECOVERY_CODE_WRONG
    assert vault.give("recover", secret=new).code == 0


def test_code_that_nobody_could_read_is_no_success(vault: Helper) -> None:
    """The terminal is gone: the verb fails, and the vault says that nothing is confirmed."""
    read, write = os.pipe()
    os.close(read)
    assert vault.run("recovery-code", code=write).code != 0
    os.close(write)
    assert vault.ok("status").json["vault"]["recovery"]["confirmed"] is False
    assert vault.run("list").code == 0


@pytest.mark.parametrize("loss", ["other", "cleared"])
def test_another_or_a_cleared_tpm(
    vault: Helper, tpm: Swtpm, new_tpm: Callable[[], Swtpm], loss: str
) -> None:
    """No counter can tell there whether the file is the newest: generation and date are asked."""
    assert vault.set("practice", b"the value").code == 0
    if loss == "other":
        vault.where = new_tpm().where
        fault = Fault.TPM_CLEARED  # it has no storage root key at all
    else:
        tpm.command(clear_command())
        fault = Fault.TPM_CLEARED
    assert vault.run("list").fault is fault
    assert vault.give("recover", secret=vault.code).fault is Fault.RECOVERY_STALE
    status = vault.ok("status").json
    assert status["vault"]["generation"] == 4 and status["vault"]["date"]
    done = vault.give("recover", "--accept-stale", secret=vault.code).json
    assert (done["generation"], done["pcrs"], done["recovery"]["confirmed"]) == (5, [7], True)
    assert vault.ok("list").json["names"] == ["practice"]
    assert vault.set("other", b"the value").code == 0
    assert vault.ok("status").json["counter"]["state"] == "current"


def test_changed_boot_state_is_recovered_without_a_question(vault: Helper, tpm: Swtpm) -> None:
    """The counter proves that the file is the newest; PCR 7 is bound to what it is now."""
    tpm.extend(7)
    assert vault.run("list").fault is Fault.PCR_CHANGED
    assert vault.give("recover", secret=vault.code).code == 0
    assert vault.run("list").code == 0
    tpm.restart()
    assert vault.run("list").fault is Fault.PCR_CHANGED


def test_older_file_is_refused_by_the_code_too(vault: Helper) -> None:
    old = vault.file.read_bytes()
    assert vault.set("practice", b"the value").code == 0
    vault.file.write_bytes(old)
    assert vault.give("recover", secret=vault.code).fault is Fault.ROLLBACK
    assert vault.give("list", recovery=vault.code).fault is Fault.ROLLBACK
    assert vault.give("recover", "--accept-stale", secret=vault.code).code == 0


def test_reading_by_the_code_changes_nothing(vault: Helper, tpm: Swtpm) -> None:
    """While the TPM is away or in lockout, or its state is under suspicion."""
    assert vault.set("practice", b"the value").code == 0
    tpm.extend(7)
    before = vault.file.read_bytes()
    assert vault.give("list", recovery=vault.code).json["names"] == ["practice"]
    tpm.stop()
    assert vault.give("list", recovery=vault.code).fault is Fault.RECOVERY_STALE
    assert vault.give("list", "--accept-stale", recovery=vault.code).json["names"] == ["practice"]
    assert vault.file.read_bytes() == before


def test_recipients_open_it_with_their_own_key(vault: Helper, tmp_path: Path) -> None:
    private, public = key_pair(tmp_path, "X25519")
    wrong_kind = key_pair(tmp_path, "ed25519")
    add = ("recipient-add", "cellar", "--kind", "backup")
    assert vault.give("recover", secret=private).fault is Fault.RECOVERY_CODE_WRONG
    assert vault.give(*add, secret=wrong_kind[1]).fault is Fault.PUBLIC_KEY
    assert vault.give(*add, secret=b"nonsense").fault is Fault.PUBLIC_KEY
    assert vault.give(*add, secret=public).code == 0
    assert vault.give(*add, secret=public).fault is Fault.NAME_TAKEN
    recovery = vault.ok("status").json["vault"]["recovery"]
    assert recovery["recipients"] == [{"name": "cellar", "kind": "backup"}]
    assert vault.set("practice", b"the value").code == 0  # a later commit is for them too
    assert vault.give("list", recovery=private).json["names"] == ["practice"]
    assert vault.give("recover", secret=private).code == 0
    assert vault.give("recover", secret=wrong_kind[0]).fault is Fault.RECOVERY_CODE_TYPO
    assert vault.run("recipient-remove", "other").fault is Fault.NAME_UNKNOWN
    assert vault.run("recipient-remove", "code").fault is Fault.NAME_UNKNOWN
    vault.ok("recipient-remove", "cellar")
    assert vault.give("recover", secret=private).fault is Fault.RECOVERY_CODE_WRONG


def test_small_order_key_is_no_recipient(vault: Helper) -> None:
    """X25519 with it gives the same secret to everybody (RFC 7748, 6.1)."""
    der = bytes.fromhex("302a300506032b656e032100") + bytes(32)
    pem = b"-----BEGIN PUBLIC KEY-----\n%s\n-----END PUBLIC KEY-----\n" % base64.b64encode(der)
    added = vault.give("recipient-add", "evil", "--kind", "host", secret=pem)
    assert added.fault is Fault.PUBLIC_KEY
    assert vault.run("list").code == 0


def test_signers_of_policies_are_kept_and_authenticated(vault: Helper, tmp_path: Path) -> None:
    _, public = key_pair(tmp_path, "ed25519")
    assert vault.give("trust-add", "alice", secret=b"x").fault is Fault.PUBLIC_KEY
    assert vault.give("trust-add", "Alice", secret=public).fault is Fault.KEY_NAME
    assert vault.give("trust-add", "alice", secret=public).code == 0
    assert vault.give("trust-add", "alice", secret=public).fault is Fault.NAME_TAKEN
    (trusted,) = vault.ok("list").json["trust"]
    assert trusted["name"] == "alice" and len(trusted["x"]) == 43
    vault.ok("trust-remove", "alice")
    assert vault.run("trust-remove", "alice").fault is Fault.NAME_UNKNOWN
    assert vault.ok("list").json["trust"] == []
