"""The audit log: whole lines, in order, on the disk when it says so."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import socket
import time
from pathlib import Path

import pytest

from proxy.audit import AuditLog, AuditUnwritable


def test_keys_come_in_the_order_of_the_contract(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    AuditLog(fd).write(
        status=200, verdict="allowed", rule={"file": "a"}, event="request", hop="gateway",
        request="00", workload="adapter.rest", reason=None, text="line\nbreak\u202e",
    )  # fmt: skip
    os.close(fd)
    (line,) = path.read_bytes().splitlines()
    assert line.isascii()
    record = json.loads(line)
    assert list(record) == [
        "time", "hop", "event", "request", "workload", "verdict", "rule", "status", "text"
    ]  # fmt: skip
    assert record["text"] == "line\nbreak\u202e"
    assert len(record["time"]) == len("2026-11-23T02:03:04.567890Z")
    assert record["time"].endswith("Z")


def test_settled_records_are_on_the_disk_and_one_call_serves_all_who_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "audit"
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    log = AuditLog(fd)
    synced: list[int] = []
    real = os.fdatasync

    def watched(descriptor: int) -> None:
        lines = path.read_bytes().count(b"\n")
        time.sleep(0.02)  # a slow disk: others come meanwhile
        real(descriptor)
        synced.append(lines)

    monkeypatch.setattr(os, "fdatasync", watched)

    async def one(number: int) -> None:
        log.write(event="request", number=number)
        await log.settled()
        assert synced
        assert synced[-1] > number  # its own line was there before the disk was asked

    async def scene() -> None:
        await asyncio.gather(*(one(number) for number in range(50)))

    asyncio.run(scene())
    assert len(synced) <= 3
    os.close(fd)


def test_a_disk_that_fails_is_an_error_for_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()

    def failing(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    async def scene() -> None:
        log = AuditLog(writing)
        log.write(event="request")
        await log.settled()  # a pipe has no disk
        monkeypatch.setattr(os, "fdatasync", failing)
        log.write(event="request")
        log.settle_soon()
        with pytest.raises(AuditUnwritable, match="Input/output"):
            await log.settled()

    asyncio.run(scene())
    os.close(reading)
    os.close(writing)


def test_a_full_disk_is_an_error() -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(AuditUnwritable, match="No space"):
        AuditLog(fd).write(event="request")
    os.close(fd)


def test_a_record_that_is_not_json_is_an_error_without_its_content(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "audit", os.O_WRONLY | os.O_CREAT)
    for value in (b"sensitive", float("nan"), object()):
        with pytest.raises(AuditUnwritable) as caught:
            AuditLog(fd).write(event="request", value=value)
        assert "sensitive" not in str(caught.value)
    assert (tmp_path / "audit").read_bytes() == b""
    os.close(fd)


def test_a_short_write_is_an_error_and_the_next_line_is_whole() -> None:
    left, right = socket.socketpair()  # takes a part of what does not fit
    left.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    left.setblocking(False)
    log = AuditLog(left.fileno())
    with pytest.raises(AuditUnwritable, match="part"):
        log.write(event="big", text="x" * 1_000_000)
    right.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while right.recv(65536):
            pass
    log.write(event="small")
    data = right.recv(65536)
    assert data.startswith(b"\n")
    assert json.loads(data)["event"] == "small"
    left.close()
    right.close()
