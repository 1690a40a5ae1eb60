"""What only a signature vouches for: the policies at a start, and the audit records after it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from house import ROOT, House

from supervisor.control import ControlError

BEFORE_THE_VAULT = {"service.swtpm", "service.probe-reader"}


def command(house: House, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/usr/bin/python3", "-IS", ROOT / "supervisor", "--host-file", house.host_file, *words],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def key_pair(folder: Path) -> tuple[Path, str]:
    """A signer's private key as a file, and the public one as text."""
    private = folder / "team.pem"
    subprocess.run(
        ["/usr/bin/openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True
    )
    public = subprocess.run(
        ["/usr/bin/openssl", "pkey", "-in", private, "-pubout"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return private, public.stdout


def up(house: House) -> set[str]:
    return {id_ for id_, state in house.states().items() if state == "running"}


def test_nothing_runs_under_policies_that_nobody_signed(
    house: House, key: str, tmp_path: Path
) -> None:
    private, public = key_pair(tmp_path)
    house.write_host(lambda text: text + "\n[policy]\nsigned = true\n")
    house.open()
    assert up(house) == BEFORE_THE_VAULT
    (gap,) = (g for g in house.ask("status")["degraded"] if g["guarantee"] == "policies")
    assert "policies.sig" in gap["why"] + gap["fix"] and "policy sign" in gap["fix"]
    with pytest.raises(ControlError, match="unsigned"):
        house.ask("restart", {"workload": "executor.main"})
    house.vault("trust-add", {"name": "team"}, secret=public)
    signed = command(house, "policy", "sign", str(private))
    assert signed.returncode == 0, signed.stderr
    assert command(house, "policy", "digest").stdout.strip() in signed.stdout
    assert house.stop() == 0

    house.open()
    assert not up(house) ^ set(house.states())
    house.add_key(key)
    assert house.send()["reply"]
    record = next(r for r in house.audit("supervisor") if r.get("signer"))
    assert (record["event"], record["signer"]) == ("policies", "team")
    _records_are_vouched_for(house)

    # One byte in one file, and the signature is over something else.
    assert house.stop() == 0
    with (house.policies / "adapter-rest.toml").open("a") as file:
        file.write("#\n")
    house.open()
    assert up(house) == BEFORE_THE_VAULT
    (gap,) = (g for g in house.ask("status")["degraded"] if g["guarantee"] == "policies")
    assert "POLICIES_UNSIGNED" in gap["why"]
    _records_that_were_changed_are_found(house)


def _records_are_vouched_for(house: House) -> None:
    house.wait_record("supervisor", event="checkpoint", verdict="allowed")
    found = command(house, "logs", "--verify", "--json")
    assert found.returncode == 0, found.stdout + found.stderr
    told = json.loads(found.stdout)
    assert told["good"] and told["signed"] >= 1 and told["wrong"] == []


def _records_that_were_changed_are_found(house: House) -> None:
    """The last checkpoint of the run before covers what it wrote until its end."""
    last = [r for r in house.audit("supervisor") if r["event"] == "checkpoint"][-1]
    assert last["heads"]["service.egress"]["count"] > 0
    path = house.state / "audit/service.egress.jsonl"
    whole = path.read_bytes()
    assert b'"allowed"' in whole
    path.write_bytes(whole.replace(b'"allowed"', b'"refused"', 1))
    found = command(house, "logs", "--verify")
    assert found.returncode == 1 and "WRONG  service.egress: changed" in found.stdout
    path.write_bytes(whole)
    assert command(house, "logs", "--verify").returncode == 0
