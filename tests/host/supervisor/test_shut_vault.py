"""A vault that does not open: said with its code, and brought to life without a restart."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import struct
from pathlib import Path
from typing import Any

import pytest
from house import House, poll

from supervisor.control import ControlError

BODY = b'{"model": "llm-v1", "messages": [{"role": "user", "content": "hello"}]}'
NO_LOCKOUT_PASSWORD = (
    '\n[[waive]]\nguarantee = "pin-rate-limit"\nwhy = "a software TPM without lockout password"\n'
)


def refused(house: House) -> tuple[int, str]:
    """What the executor gets from the proxy: status and message, or 200."""
    status, answer = house.model_call(BODY)
    return status, str(answer.get("error", {}).get("message", ""))


def gap(house: House) -> dict[str, Any]:
    """What the status says of the vault."""
    found = {each["guarantee"]: each for each in house.ask("status")["degraded"]}
    return dict(found.get("vault", {}))


def fault(house: House, verb: str, values: dict[str, Any] | None = None, **secrets: str) -> str:
    with pytest.raises(ControlError) as error:
        house.vault(verb, values, **secrets)
    assert error.value.exit >= 10, "the exit code is the fault's own"
    return error.value.code


def new_code(house: House) -> str:
    """A recovery code, as the operator's terminal gets it."""
    reading, writing = os.pipe()
    try:
        house.ask("keys.recovery-code", {"fds": ["code"]}, writing)
        return os.read(reading, 200).decode().strip()
    finally:
        os.close(reading)
        os.close(writing)


def extend(house: House, pcr: int, digest: bytes) -> None:
    """TPM2_PCR_Extend on the software TPM, as another start of the machine would do it."""
    values = struct.pack("!IH", 1, 0x000B) + digest
    session = struct.pack("!IHBH", 0x40000009, 0, 0, 0)  # an empty password
    body = struct.pack("!II", pcr, len(session)) + session + values
    with socket.socket(socket.AF_UNIX) as tpm:
        tpm.settimeout(20)
        tpm.connect(str(house.run / "channel/service.unlock/service.swtpm.sock"))
        tpm.sendall(struct.pack("!HII", 0x8002, 10 + len(body), 0x182) + body)
        assert struct.unpack("!HII", tpm.recv(4096)[:10])[2] == 0


def start_proxy_again(house: House) -> None:
    house.ask("restart", {"workload": "service.egress"})
    house.wait_state("service.egress", "running")
    house.wait_record("supervisor", event="unlock", verdict="refused")


def test_another_boot_state_is_named_and_recovery_brings_it_back(house: House, key: str) -> None:
    house.write_host(lambda text: text + NO_LOCKOUT_PASSWORD)
    house.open()
    house.add_key(key)
    assert fault(house, "rebind", {"options": {"pcrs": "16"}}) == "RECOVERY_UNCONFIRMED"
    code = new_code(house)
    assert fault(house, "confirm-recovery", secret=code[:-1]) == "RECOVERY_CODE_TYPO"
    house.vault("confirm-recovery", secret=code)
    assert house.vault("rebind", {"options": {"pcrs": "16"}})["pcrs"] == [16]
    assert house.send()["reply"] and not gap(house)
    # A state that was approved beforehand opens it, and no other one does.
    update = os.urandom(32)
    coming = {"16": hashlib.sha256(bytes(32) + update).hexdigest()}
    options = {"options": {"predict": True, "note": "update"}}
    assert fault(house, "approve", options, prediction='{"7": "00"}') == "PREDICTION"
    house.vault("approve", options, prediction=json.dumps(coming))
    extend(house, 16, update)
    house.ask("restart", {"workload": "service.egress"})
    poll(lambda: refused(house)[0] == 200, 20, "the predicted state opens the vault")
    extend(house, 16, os.urandom(32))
    start_proxy_again(house)
    status, message = refused(house)
    assert status == 503 and "PCR_CHANGED" in message
    assert gap(house)["code"] == "PCR_CHANGED"
    assert "PCR 16" in gap(house)["why"] and "keys recover" in gap(house)["fix"]
    found = house.ask("keys.status")
    assert [row["pcr"] for row in found["pcrs"] if not row["approved"]] == [16]
    assert found["level"]["code"] == "T0" and not found["handed"]
    assert fault(house, "unlock") == "PCR_CHANGED"
    # The code opens it once, without the TPM; recovery seals it to what is there now.
    house.vault("unlock", {"options": {"accept-stale": True}}, recovery=code)
    assert refused(house)[0] == 200
    house.vault("recover", {"options": {"accept-stale": True}}, secret=code)
    assert not gap(house) and house.ask("keys.status")["handed"]
    assert house.send()["reply"]
    _with_a_pin(house)
    assert code not in house.log.read_text()
    for name in ("supervisor", "service.egress"):
        assert code not in str(house.audit(name))


def _with_a_pin(house: House) -> None:
    """Goes on in the same house: to open another costs ten seconds."""
    house.vault("pin-set", secret="2468-1357")
    assert refused(house)[0] == 200, "what has the keys keeps them"
    wanted = {"client": "test", "workload": "adapter.rest", "lifetime": 60, "fds": ["pin"]}
    with pytest.raises(ControlError, match="PIN_NEEDED"):
        house.token()
    before = len(house.audit("supervisor"))
    house.ask("restart", {"workload": "service.egress"})
    house.wait_state("service.egress", "running")
    status, message = refused(house)
    assert status == 503 and "PIN_NEEDED" in message
    assert gap(house)["code"] == "PIN_NEEDED"
    assert fault(house, "set", {"name": "practice"}, secret="not stored at all") == "PIN_NEEDED"
    assert fault(house, "unlock", pin="1111-1111") == "PIN_WRONG"
    house.vault("unlock", pin="2468-1357")
    reading, writing = os.pipe()
    os.write(writing, b"2468-1357")
    os.close(writing)
    assert house.ask("token.issue", wanted, reading)["token"]
    os.close(reading)
    assert refused(house)[0] == 200 and not gap(house)
    house.vault("pin-remove", pin="2468-1357")
    house.vault("unlock")
    assert "2468-1357" not in str(house.audit("supervisor")[before:])


@pytest.mark.parametrize("allowed", [False, True], ids=["refused", "waived"])
def test_without_a_tpm_a_key_file_needs_the_owners_word(
    house: House, key: str, allowed: bool
) -> None:
    if Path("/dev/tpmrm0").exists():
        pytest.skip("this machine has a TPM: a vault without one cannot be tried here")
    waiver = '\n[[waive]]\nguarantee = "file-key"\nwhy = "a machine without a TPM"\n'

    def without_tpm(text: str) -> str:
        text = text.replace('guarantee = "software-tpm"', 'guarantee = "disk:quota"')
        return text.replace('mode = "swtpm"', 'mode = "device"') + (waiver if allowed else "")

    house.write_host(without_tpm)
    house.open()
    assert "service.swtpm" not in house.states()
    if not allowed:
        assert fault(house, "set", {"name": "practice"}, secret=key) in (
            "TPM_ABSENT",
            "VAULT_ABSENT",
        )
        assert gap(house)["code"] == "TPM_ABSENT"
        status, message = refused(house)
        assert status == 503 and "TPM_ABSENT" in message
        return
    house.add_key(key)
    assert house.send()["reply"]
    found = house.ask("keys.status")
    assert found["level"]["code"] == "T0" and found["vault"]["key_file"]
    assert "file-key" in {each["guarantee"] for each in found["waived"]}
    degraded = {each["guarantee"]: each["why"] for each in house.ask("status")["degraded"]}
    assert "file-key" in degraded["hardware-tpm"]
