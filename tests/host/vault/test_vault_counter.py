"""The rollback counter: an older vault does not open, whoever holds the file or the TPM's bus."""

from __future__ import annotations

import base64
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from vault_scene import ROOT, Helper, Recorder, Swtpm, nv_define_command, nv_undefine_command

from supervisor.vault import counter
from supervisor.vault.errors import Fault

NV_INCREMENT = struct.pack("!I", 0x134)
NV_READ = struct.pack("!I", 0x14E)


def index_of(vault: Helper) -> int:
    return int(json.loads(vault.file.read_bytes())["header"]["tpm"]["nv"]["index"])


def test_older_file_is_refused_and_the_newest_opens(vault: Helper) -> None:
    old = vault.file.read_bytes()
    assert vault.set("practice", b"the value").code == 0
    new = vault.file.read_bytes()
    vault.file.write_bytes(old)
    refused = vault.run("list")
    assert refused.fault is Fault.ROLLBACK
    assert b"expects" in refused.stderr
    status = vault.ok("status").json
    assert (status["problem"], status["counter"]["state"]) == ("ROLLBACK", "rollback")
    vault.file.write_bytes(new)
    assert vault.ok("list").json["names"] == ["practice"]


@pytest.mark.parametrize("backend", ["raw", "esapi"])
def test_tpm_itself_refuses_the_older_file(vault: Helper, backend: str) -> None:
    """Without our own comparison: PolicyNV of the old approval does not hold any more."""
    old = vault.file.read_bytes()
    assert vault.driver("blind", str(vault.state), backend).stdout == b"opened\n"
    assert vault.set("practice", b"the value").code == 0
    vault.file.write_bytes(old)
    refused = vault.driver("blind", str(vault.state), backend)
    assert refused.stdout == b"ROLLBACK the TPM refused the file's approval\n", refused.stderr


@pytest.mark.parametrize("backend", ["raw", "esapi"])
def test_forged_approval_is_refused_by_the_tpm(vault: Helper, backend: str) -> None:
    """0x2db: VerifySignature, where our own check of the signature is left out."""
    refused = vault.driver("forge", str(vault.state), backend)
    assert refused.stdout == b"return code 0x2db\n", refused.stderr


def test_file_may_be_rolled_back_to_before_a_rotation_no_more(vault: Helper) -> None:
    old = vault.file.read_bytes()
    vault.ok("rotate")
    vault.file.write_bytes(old)
    assert vault.run("list").fault is Fault.NV_MISSING
    assert vault.give("recover", secret=vault.code).fault is Fault.RECOVERY_STALE
    assert vault.give("recover", "--accept-stale", secret=vault.code).code == 0
    assert vault.run("list").code == 0


def test_tpm_that_went_back_is_named(vault: Helper, tpm: Swtpm, tmp_path: Path) -> None:
    tpm.stop()
    shutil.copytree(tpm.directory / "state", tmp_path / "copy")
    tpm.start()
    for _ in range(2):
        assert vault.set("practice", b"the value").code == 0
    tpm.stop()
    shutil.rmtree(tpm.directory / "state")
    shutil.copytree(tmp_path / "copy", tpm.directory / "state")
    tpm.start()
    assert vault.run("list").fault is Fault.COUNTER_BEHIND
    assert vault.ok("status").json["counter"]["state"] == "behind"
    assert vault.give("recover", "--accept-stale", secret=vault.code).code == 0
    assert vault.ok("list").json["names"] == ["practice"]


def test_counter_that_is_gone_or_another_is_named(vault: Helper, tpm: Swtpm) -> None:
    """Anyone with the device and no owner password can undefine it, and put another there."""
    index = index_of(vault)
    tpm.command(nv_undefine_command(index))
    assert vault.run("list").fault is Fault.NV_MISSING
    tpm.command(nv_define_command(index))
    assert vault.run("list").fault is Fault.NV_TAMPERED
    tpm.command(nv_undefine_command(index))
    assert vault.give("recover", "--accept-stale", secret=vault.code).code == 0
    assert vault.ok("status").json["problem"] is None


def test_index_of_somebody_else_stays(vault: Helper, tpm: Swtpm) -> None:
    """The handle that a rotation wants is taken by something that is no counter of ours."""
    tpm.command(nv_define_command(index_of(vault) ^ 1))
    assert vault.run("rotate").fault is Fault.NV_TAMPERED
    assert vault.run("list").code == 0
    assert tpm.nv_indexes() == 2
    tpm.command(nv_undefine_command(index_of(vault) ^ 1))
    vault.ok("rotate")
    assert tpm.nv_indexes() == 1


def test_full_tpm_is_named(helper: Helper, tpm: Swtpm) -> None:
    helper.ok("init")  # makes the storage root key, which must not be what finds no room
    helper.file.unlink()
    taken: list[int] = []
    for size, kind in ((2048, 0), (8, 0), (8, 1)):  # a TPM keeps some room for counters
        index = 0x01800000 + len(taken)
        while tpm.ask(nv_define_command(index, size, kind=kind))[6:10] == bytes(4):
            taken.append(index)
            index += 1
    assert len(taken) > 16
    assert helper.run("init").fault is Fault.NV_FULL
    assert not helper.file.exists()
    for index in taken[-4:]:
        tpm.command(nv_undefine_command(index))
    helper.ok("init")


def test_owner_password_is_named_where_the_counter_needs_it(vault: Helper, tpm: Swtpm) -> None:
    from vault_scene import owner_auth_command

    tpm.command(owner_auth_command(b"", b"owner"))
    assert vault.run("list").code == 0
    assert vault.set("practice", b"the value").code == 0
    assert vault.run("rotate").fault is Fault.OWNER_AUTH_SET
    assert vault.ok("list").json["names"] == ["practice"]
    tpm.command(owner_auth_command(b"owner", b""))
    vault.ok("rotate")


@pytest.mark.parametrize("backend", ["raw", "esapi"])
def test_dropped_increment_is_noticed_and_made_up_for(
    vault: Helper, recorder: Recorder, backend: str
) -> None:
    """An interposer answers NV_Increment itself; then the read back, replayed."""
    kept: list[bytes] = []
    vault.where, vault.backend = recorder.where, backend

    def keep(command: bytes, response: bytes) -> bytes:
        if command[6:10] == NV_INCREMENT:
            kept.append(response)
        return response

    recorder.change = keep
    assert vault.set("practice", b"the value").code == 0
    recorder.answer = lambda command: kept[0] if command[6:10] == NV_INCREMENT else None
    assert vault.set("other", b"the value").fault is Fault.TPM_FAULT
    recorder.answer = None
    vault.where = recorder.tpm.where
    assert vault.ok("status").json["counter"]["state"] == "pending"
    assert vault.ok("list").json["names"] == ["other", "practice"]
    assert vault.ok("status").json["counter"]["state"] == "current"


@pytest.mark.parametrize("backend", ["raw", "esapi"])
def test_replayed_reading_of_the_counter_is_refused(
    vault: Helper, recorder: Recorder, backend: str
) -> None:
    """The older file, and beside it the answer of the time when it was the newest."""
    old = vault.file.read_bytes()
    readings: list[bytes] = []
    vault.where, vault.backend = recorder.where, backend

    def keep(command: bytes, response: bytes) -> bytes:
        if command[6:10] == NV_READ:
            readings.append(response)
        return response

    recorder.change = keep
    assert vault.run("list").code == 0
    assert len(readings) == 1
    assert vault.set("practice", b"the value").code == 0
    vault.file.write_bytes(old)
    recorder.answer = lambda command: readings[0] if command[6:10] == NV_READ else None
    assert vault.run("list").fault is Fault.TPM_FAULT


def test_two_vaults_on_one_tpm_do_not_meet(vault: Helper, tmp_path: Path) -> None:
    other = Helper(vault.app, tmp_path / "other", vault.tpm)
    other.state.mkdir()
    other.ok("init")
    for helper in (vault, other, vault):
        assert helper.set("practice", b"the value").code == 0
    assert vault.run("list").code == other.run("list").code == 0
    assert {index_of(vault), index_of(vault) ^ 1}.isdisjoint({index_of(other)})


def test_vault_of_the_first_release_opens_and_is_upgraded(
    app: Path, tmp_path: Path, new_tpm: Callable[[], Swtpm]
) -> None:
    """Made by the released code with this very TPM state: format 1, no counter, PCR 7 bound."""
    tpm = new_tpm()
    tpm.stop()
    shutil.rmtree(tpm.directory / "state")
    (tpm.directory / "state").mkdir()
    here = Path(__file__).parent
    shutil.copy(here / "tpm_v1.permall", tpm.directory / "state" / "tpm2-00.permall")
    tpm.start()
    vault = Helper(app, tmp_path / "vault", tpm)
    vault.state.mkdir()
    shutil.copy(ROOT / "tests" / "unit" / "vault" / "vault_v1.json", vault.file)
    for backend in ("esapi", "raw"):
        vault.backend = backend
        assert vault.ok("list").json["names"] == ["practice"]
    before = vault.ok("status").json
    assert before["problem"] is None
    assert before["counter"]["state"] == "absent"
    assert "counter" in before["upgrade"]
    assert vault.run("audit-sign", "--count", "1", "--digest", "ab" * 32).fault is (
        Fault.AUDIT_KEY_ABSENT
    )
    assert vault.set("other", b"the value").code == 0
    after = vault.ok("status").json
    assert after["upgrade"] is None
    assert (after["vault"]["format"], after["vault"]["generation"]) == (2, 3)
    assert after["vault"]["keys"] == before["vault"]["keys"]
    assert (after["counter"]["state"], after["vault"]["pcrs"]) == ("current", [7])
    assert vault.ok("list").json["names"] == ["other", "practice"]
    tpm.extend(7)
    assert vault.run("list").fault is Fault.PCR_CHANGED


def test_sixteen_clients_at_once(vault: Helper) -> None:
    """Readers wait for each other at the TPM; a file one step ahead is rolled forward once."""
    with vault.server() as ask:
        step = 25
        while vault.ok("status").json["counter"]["state"] != "pending":
            assert ask("set", "practice", trouble=("kill", step), secret=b"the value")
            step += 1
    running = [vault.start("list") for _ in range(16)]
    outcomes = [helper.wait() for helper in running]
    assert [outcome.code for outcome in outcomes] == [0] * 16, [o.stderr for o in outcomes]
    assert vault.ok("status").json["counter"]["state"] == "current"


def test_handles_are_two_of_the_owners_range() -> None:
    for vault_id in ("00" * 16, "ff" * 16, "0123456789abcdef" * 2):
        first, second = counter.handles(vault_id)
        assert counter.FIRST <= first < second <= counter.LAST
        assert counter.other(vault_id, first) == second
        assert counter.other(vault_id, second) == counter.other(vault_id, None) == first


def test_header_names_the_counter(vault: Helper) -> None:
    """What the file says is what the TPM has, by name; a base that is moved is refused."""
    document = json.loads(vault.file.read_bytes())
    sealed = document["header"]["tpm"]
    name = counter.name(sealed["nv"]["index"], base64.b64decode(sealed["pol_pub"]))
    answer = vault.tpm.command(
        bytes.fromhex("80010000000e00000169") + struct.pack("!I", index_of(vault))
    )
    assert answer.endswith(name)
