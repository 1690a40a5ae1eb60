"""The PIN: asked for, rate-limited by the TPM, never on the bus, and not to be got around."""

from __future__ import annotations

import hashlib
import json
from base64 import b64decode
from pathlib import Path

import pytest
from vault_scene import Helper, Recorder, Swtpm

from supervisor.vault.errors import Fault

PIN = b"correct horse"
ALLOW = "--allow-pin-reset"


@pytest.fixture
def guarded(vault: Helper) -> Helper:
    assert vault.set("practice", b"the value").code == 0
    assert vault.give("pin-set", ALLOW, secret=PIN).code == 0
    return vault


def test_pin_is_asked_for_until_it_is_removed(guarded: Helper) -> None:
    assert guarded.run("list").fault is Fault.PIN_NEEDED
    assert guarded.ok("status").json["problem"] == "PIN_NEEDED"
    assert "pin-rate-limit" in guarded.ok("status").json["waivers"]
    assert guarded.give("list", pin=b"123456").fault is Fault.PIN_WRONG
    assert guarded.give("list", pin=PIN + b"\n").json["names"] == ["practice"]
    assert guarded.give("set", "other", secret=b"the value", pin=PIN).code == 0
    assert guarded.give("rotate", pin=PIN).code == 0
    assert guarded.run("list").fault is Fault.PIN_NEEDED
    assert guarded.give("pin-set", ALLOW, secret=b"a new one", pin=PIN).code == 0
    assert guarded.give("list", pin=PIN).fault is Fault.PIN_WRONG
    assert guarded.give("pin-remove", pin=b"a new one").code == 0
    assert guarded.ok("list").json["names"] == ["other", "practice"]
    assert guarded.run("pin-remove").fault is Fault.PIN_ABSENT


@pytest.mark.parametrize(
    "pin", [b"", b"12345", b"x" * 65, b"caf\xc3\xa9 au lait", b"with\nnewline"]
)
def test_senseless_pins_are_refused(vault: Helper, pin: bytes) -> None:
    assert vault.give("pin-set", ALLOW, secret=pin).fault is Fault.PIN_VALUE
    assert vault.run("list").code == 0


def test_without_a_lockout_password_the_waiver_is_needed(vault: Helper) -> None:
    assert vault.give("pin-set", secret=PIN).fault is Fault.PIN_RATE_LIMIT
    assert vault.ok("status").json["tpm"]["lockout_auth_set"] is False
    assert vault.give("pin-set", ALLOW, secret=PIN).code == 0


@pytest.mark.parametrize("backend", ["raw", "esapi"])
def test_guesses_end_in_lockout_which_shuts_out_nobody_else(
    guarded: Helper, tmp_path: Path, backend: str
) -> None:
    """The right PIN is refused too; the recovery code and a vault without PIN still open."""
    other = Helper(guarded.app, tmp_path / "other", guarded.tpm)
    other.state.mkdir()
    other.ok("init")
    guarded.backend = backend
    left = []
    for guess in (b"guess 1", b"guess 2", b"guess 3"):
        refused = guarded.give("list", pin=guess)
        assert refused.fault is Fault.PIN_WRONG
        left.append(refused.stderr.decode().split(" tries left")[0].rsplit("(")[-1])
    assert left == ["2", "1", "0"]
    locked = guarded.give("list", pin=PIN)
    assert locked.fault is Fault.DA_LOCKOUT
    assert b"1000 seconds" in locked.stderr
    status = guarded.ok("status").json
    assert (status["problem"], status["tpm"]["in_lockout"]) == ("DA_LOCKOUT", True)
    assert other.run("list").code == 0
    assert guarded.give("list", recovery=guarded.code).json["names"] == ["practice"]


def test_object_from_before_the_pin_is_of_no_use(vault: Helper) -> None:
    """New policy key, new counter: an older header with new approvals does not get around it."""
    old = json.loads(vault.file.read_bytes())
    assert vault.give("pin-set", ALLOW, secret=PIN).code == 0
    new = json.loads(vault.file.read_bytes())
    assert old["header"]["tpm"]["pol_pub"] != new["header"]["tpm"]["pol_pub"]
    for part in (("priv", "pub"), ("priv", "pub", "pol_pub"), ("priv", "pub", "pol_pub", "nv")):
        mixed = json.loads(json.dumps(new))
        mixed["header"]["pin"] = None
        for name in part:
            mixed["header"]["tpm"][name] = old["header"]["tpm"][name]
        vault.file.write_bytes(json.dumps(mixed, sort_keys=True, separators=(",", ":")).encode())
        assert vault.run("list").fault in (Fault.TAMPERED, Fault.NV_MISSING, Fault.NV_TAMPERED)


@pytest.mark.parametrize("backend", ["raw", "esapi"])
def test_pin_is_not_on_the_bus(vault: Helper, recorder: Recorder, backend: str) -> None:
    """Neither it nor what the TPM compares; a plain run shows that the search would find it."""
    vault.where, vault.backend = recorder.where, backend
    assert vault.give("pin-set", ALLOW, secret=PIN).code == 0
    assert vault.give("list", pin=PIN).code == 0
    assert vault.give("list", pin=b"a wrong one").fault is Fault.PIN_WRONG
    seen = bytes(recorder.seen)
    header = json.loads(vault.file.read_bytes())["header"]
    salt = b64decode(header["pin"]["salt"])
    assert header["pin"]["log_n"] == 15
    both = hashlib.scrypt(PIN, salt=salt, n=1 << 15, r=8, p=1, maxmem=1 << 28, dklen=64)
    for secret in (PIN, both[:31], both[32:]):
        for begin in range(len(secret) - 7):
            assert secret[begin : begin + 8] not in seen
    recorder.seen.clear()
    assert vault.driver("plain-auth", both[:31].hex()).returncode == 0
    assert both[:31] in bytes(recorder.seen)


def test_power_cuts_cost_tries_only_where_a_pin_was_used(guarded: Helper, tpm: Swtpm) -> None:
    """A TPM that lost power after such a use counts it as a failure (part 1, 19.8.6)."""
    assert guarded.give("list", pin=PIN).code == 0
    tpm.restart()
    assert guarded.ok("status").json["tpm"]["tries_left"] == 2
    assert guarded.give("list", pin=PIN).code == 0
    assert guarded.give("pin-remove", pin=PIN).code == 0
    left = []
    for _ in range(3):
        tpm.restart()
        assert guarded.run("list").code == 0
        left.append(guarded.ok("status").json["tpm"]["tries_left"])
    assert len(set(left)) == 1


def test_pin_of_a_killed_helper_is_gone(guarded: Helper) -> None:
    """It is read from the descriptor and stands in no argument or environment."""
    running = guarded.begin("list", pin=PIN)
    places = [Path(f"/proc/{running.pid}/{name}").read_bytes() for name in ("cmdline", "environ")]
    outcome = running.wait()
    assert outcome.code == 0
    for place in (*places, outcome.stdout, outcome.stderr, outcome.result):
        assert PIN not in place
