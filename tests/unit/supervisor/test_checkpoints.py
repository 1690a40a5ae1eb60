"""Audit records that are changed, cut, taken out or put back do not pass for what was written."""

from __future__ import annotations

import asyncio
import base64
import os
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from proxy.audit import AuditLog
from supervisor.checkpoints import Checkpoints
from supervisor.cli.logs_verify import Verdict, verify
from supervisor.keys import VaultRefused
from supervisor.vault.errors import Fault


def text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


class Notary:
    """Signs as the unlock helper does, with a key of its own."""

    def __init__(self) -> None:
        self.key = Ed25519PrivateKey.generate()
        self.fault: Fault | None = None
        self.runs = 0

    @property
    def public(self) -> str:
        return text(self.key.public_key().public_bytes_raw())

    async def run(self, verb: str, *words: str, result: bool) -> dict[str, Any]:
        assert (verb, words[::2], result) == ("audit-sign", ("--count", "--digest"), True)
        self.runs += 1
        if self.fault:
            raise VaultRefused(self.fault)
        signed = b"anchorhold/audit/v1\0" + struct.pack("!Q", int(words[1]))
        import hashlib

        kid = hashlib.sha256(self.key.public_key().public_bytes_raw()).hexdigest()[:16]
        return {"kid": kid, "signature": text(self.key.sign(signed + bytes.fromhex(words[3])))}


class House:
    """A state directory with two audit files, and the supervisor as far as it matters here."""

    def __init__(self, folder: Path) -> None:
        self.audit = folder / "audit"
        self.audit.mkdir()
        self.notary = Notary()
        of = SimpleNamespace(state=folder, vault=SimpleNamespace(keys=self.notary), note=self.note)
        self.checkpoints = Checkpoints(cast(Any, of))
        self.put("service.egress", "one", "two", "three")
        self.put("supervisor", "start")

    def path(self, name: str) -> Path:
        return self.audit / f"{name}.jsonl"

    def note(self, event: str, workload: str, verdict: str, **more: object) -> None:
        self._write("supervisor", event=event, workload=workload, verdict=verdict, **more)

    def put(self, name: str, *events: str) -> None:
        for event in events:
            self._write(name, event=event, verdict="allowed")

    def _write(self, name: str, **record: object) -> None:
        fd = os.open(self.path(name), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            AuditLog(fd).write(hop=name, **record)
        finally:
            os.close(fd)

    def checkpoint(self) -> None:
        asyncio.run(self.checkpoints.write())

    def verify(self, *keys: str) -> Verdict:
        files = {p.stem: os.open(p, os.O_RDONLY) for p in sorted(self.audit.glob("*.jsonl"))}
        try:
            return verify(files, keys or (self.notary.public,))
        finally:
            for fd in files.values():
                os.close(fd)

    def edit(self, name: str, change: Callable[[list[bytes]], list[bytes]]) -> None:
        lines = self.path(name).read_bytes().splitlines(keepends=True)
        self.path(name).write_bytes(b"".join(change(lines)))


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def test_what_was_not_touched_is_good(house: House) -> None:
    house.checkpoint()
    house.put("service.egress", "four")
    house.checkpoint()
    house.put("service.egress", "five")
    found = house.verify()
    assert found.good and found.wrong == [] and found.unproven == []
    assert (found.checkpoints, found.signed, found.lines) == (2, 2, 8)
    assert found.after == 2, "the newest record, and the checkpoint's own"


def test_nothing_new_needs_no_checkpoint(house: House) -> None:
    for _ in range(3):
        house.checkpoint()
    assert house.notary.runs == 1
    house.put("supervisor", "exit")
    house.checkpoint()
    assert house.notary.runs == 2 and house.verify().good


def test_a_new_run_goes_on_where_the_last_one_ended(house: House, tmp_path: Path) -> None:
    house.checkpoint()
    of = SimpleNamespace(state=tmp_path, vault=SimpleNamespace(keys=house.notary), note=house.note)
    house.checkpoints = Checkpoints(cast(Any, of))
    house.put("service.egress", "four")
    house.checkpoint()
    found = house.verify()
    assert found.good and found.signed == 2


@pytest.mark.parametrize("name", ["service.egress", "supervisor"])
@pytest.mark.parametrize(
    "change",
    [
        lambda lines: lines[1:],
        lambda lines: [lines[0].replace(b"allowed", b"refused"), *lines[1:]],
        lambda lines: [lines[0], lines[0], *lines[1:]],
        lambda lines: [*lines[:1], b'{"event": "slipped in"}\n', *lines[1:]],
        lambda lines: lines[1::-1] + lines[2:],
        lambda lines: [lines[0][:-1] + b" \n", *lines[1:]],
    ],
    ids=["taken out", "changed", "twice", "slipped in", "other order", "a space"],
)
def test_every_change_before_a_checkpoint_is_found(
    house: House, name: str, change: Callable[[list[bytes]], list[bytes]]
) -> None:
    house.put("supervisor", "second")
    house.checkpoint()
    house.put("service.egress", "four")
    house.checkpoint()
    assert house.verify().good
    house.edit(name, change)
    found = house.verify()
    assert not found.good and any(text.startswith(name) for text in found.wrong)


def test_a_file_that_is_cut_or_gone_is_found(house: House) -> None:
    house.checkpoint()
    house.edit("service.egress", lambda lines: lines[:1])
    assert "3 at the checkpoint" in house.verify().wrong[0]
    house.path("service.egress").unlink()
    assert "missing" in house.verify().wrong[0]


def test_a_forged_checkpoint_is_found(house: House) -> None:
    house.checkpoint()
    house.edit("service.egress", lambda lines: lines[1:])
    good = house.notary.key
    house.notary.key = Ed25519PrivateKey.generate()
    house.edit("supervisor", lambda lines: lines[:1])
    house.checkpoints = Checkpoints(
        cast(Any, SimpleNamespace(
            state=house.audit.parent, vault=SimpleNamespace(keys=house.notary), note=house.note
        ))
    )  # fmt: skip
    house.checkpoint()
    forger, house.notary.key = house.notary.public, good
    found = house.verify()
    assert not found.good and "a key not given" in found.unproven[0]
    assert house.verify(forger).good, "it is the key that makes the difference"


def test_a_signature_over_something_else_is_found(house: House) -> None:
    house.checkpoint()
    house.put("service.egress", "four")
    house.checkpoint()

    def swap(lines: list[bytes]) -> list[bytes]:
        first, second = (line.split(b'"signature": ')[1] for line in lines[1:])
        return [
            lines[0],
            lines[1].replace(first, second),
            lines[2],
        ]

    house.edit("supervisor", swap)
    assert any("does not fit" in text for text in house.verify().wrong)


def test_a_vault_that_is_shut_leaves_it_unsigned_and_said(house: House) -> None:
    house.notary.fault = Fault.PCR_CHANGED
    house.checkpoint()
    found = house.verify()
    assert not found.good and found.wrong == []
    assert "not signed (PCR_CHANGED)" in found.unproven[0]
    house.notary.fault = None
    house.put("supervisor", "later")
    house.checkpoint()
    assert house.verify().good, "the later one vouches for all before it"


def test_a_file_that_was_put_away_begins_anew(house: House) -> None:
    house.checkpoint()
    house.path("service.egress").rename(house.audit / "service.egress.old")
    house.put("service.egress", "anew")
    house.checkpoint()
    found = house.verify()
    assert found.good and "began anew" in found.unproven[0]


def test_an_unfinished_line_waits_for_its_end(house: House) -> None:
    with house.path("service.egress").open("ab") as file:
        file.write(b'{"event": "ha')
    house.checkpoint()
    with house.path("service.egress").open("ab") as file:
        file.write(b'lf"}\n')
    assert house.verify().good
    house.checkpoint()
    assert house.verify().good and house.verify().lines == 7
