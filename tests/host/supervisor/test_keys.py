"""Keys come and go in a running system and are seen nowhere; strangers do not even get a word."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from house import House, poll

from supervisor.control import ControlError


def _last_bearer(house: House) -> str:
    return str(house.model_saw()[-1]["bearer_sha256"])


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def test_keys_take_effect_at_once_and_appear_nowhere(running: House, key: str) -> None:
    pids = {one["id"]: one["pid"] for one in running.ask("status")["workloads"]}
    running.send()
    assert _last_bearer(running) == _digest(key)
    other = f"sk-other-{secrets.token_urlsafe(24)}"
    try:
        running.add_key(other)
        running.send()
        assert _last_bearer(running) == _digest(other)
        assert running.ask("keys.list")["names"] == ["practice"]
        running.ask("keys.remove", {"name": "practice"})
        assert running.ask("keys.list")["names"] == []
        with pytest.raises(ControlError) as refused:
            running.send()
        assert refused.value.code == "credential_absent"
    finally:
        running.add_key(key)
    running.send()
    assert _last_bearer(running) == _digest(key)
    assert pids == {one["id"]: one["pid"] for one in running.ask("status")["workloads"]}
    for secret in (key, other):
        assert _places(running, secret) == []
    # Each of these places would have been found out.
    assert any(place.endswith("environ") for place in _places(running, "OPENAI_API_KEY"))
    assert any(place.endswith("cmdline") for place in _places(running, "executor"))
    assert "audit/supervisor.jsonl" in _places(running, "key-set")
    assert "reply to status" in _places(running, "workloads")


def _places(house: House, text: str) -> list[str]:
    """Environments, command lines, files of the state, control replies that hold `text`."""
    wanted = text.encode()
    found = [name for name, content in house.written() if wanted in content]
    for pid in house.family():
        for name in ("environ", "cmdline", "comm"):
            if wanted in Path(f"/proc/{pid}/{name}").read_bytes():
                found.append(f"/proc/{pid}/{name}")
    for verb in ("status", "keys.list"):
        if wanted in json.dumps(house.ask(verb)).encode():
            found.append(f"reply to {verb}")
    return found


def test_a_stranger_is_turned_away_before_anything_is_read(running: House) -> None:
    path = running.run / "control.sock"
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert _as_nobody(lambda: _connect(path)) == b"PermissionError"
    # Were the file open to all, the peer's uid would still decide, before its request.
    path.parent.chmod(0o711)
    path.chmod(0o666)
    try:
        refusal = json.loads(_as_nobody(lambda: _connect(path)))
    finally:
        path.chmod(0o600)
        path.parent.chmod(0o700)
    assert refusal["error"]["code"] == "not_allowed" and "65534" in refusal["error"]["message"]
    assert "result" in json.loads(_connect(path, b'{"verb": "status", "arguments": {}}\n'))


def _connect(path: Path, request: bytes = b"") -> bytes:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        try:
            client.connect(str(path))
        except PermissionError:
            return b"PermissionError"
        if request:  # a refusal may have closed the connection already
            client.sendall(request)
        return client.makefile("rb").readline()


def _as_nobody(job: Callable[[], bytes]) -> bytes:
    """What `job` returns in a child with another uid."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            os.write(writing, job())
        finally:
            os._exit(0)
    os.close(writing)
    try:
        with os.fdopen(reading, "rb") as answer:
            return answer.read()
    finally:
        os.waitpid(pid, 0)


def test_a_software_tpm_that_does_not_start_can_be_repaired(house: House, key: str) -> None:
    """Without a vault at the start: no keys, no tokens, said so; then all of it, without a stop."""
    broken = house.state / "w-service-swtpm/tpm2-00.permall"
    broken.parent.mkdir(parents=True)
    house.state.chmod(0o711)
    broken.write_bytes(b"not a TPM's state")
    house.open()
    broken = Path(f"/proc/{house.pid}/root{broken}")  # its directory is a disk that only it sees
    status = house.ask("status")
    gaps = {gap["guarantee"]: gap["why"] for gap in status["degraded"]}
    assert gaps["vault"] and gaps["workload service.swtpm"], gaps
    with pytest.raises(ControlError):
        house.token()
    body = b'{"model": "llm-v1", "messages": [{"role": "user", "content": "hello"}]}'
    status_, answer = house.model_call(body)
    assert (status_, answer["error"]["code"]) == (503, "vault_locked")
    house.wait_state("service.swtpm", "quarantined")
    broken.unlink()
    house.ask("restart", {"workload": "service.swtpm"})

    def works() -> bool:
        try:
            house.add_key(key)
            return bool(house.send()["reply"])
        except (ControlError, OSError):
            return False

    poll(works, 20, "keys, tokens and messages", pause=0.2)
    assert "vault" not in {gap["guarantee"] for gap in house.ask("status")["degraded"]}
