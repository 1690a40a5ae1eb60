"""Events and the reader against bytes that no kernel would send."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes import layout
from probes.events import (
    PATH_SIZE,
    RECORD_SIZE,
    WIRE_SIZE,
    Event,
    Flag,
    Kind,
    Verdict,
    decode,
    encode,
    from_wire,
    to_wire,
)
from probes.read import WORKLOADS_MAX, Reader, record
from probes.ring import CounterPage, Ring

PAGE, SIZE = 4096, 8192
EVENT = Event(10**9, 77, 4, 5, 110, 0, Kind.CALL, Verdict.ALERT, 0, "python3", "")


def test_an_event_survives_its_bytes() -> None:
    moved = EVENT._replace(kind=Kind.CGROUP, path="/a/b", flags=int(Flag.MOVED_OUT), number=-1)
    for event in (EVENT, moved):
        assert decode(encode(event)) == event
    assert len(encode(EVENT)) == RECORD_SIZE
    assert len(encode(moved)) == RECORD_SIZE + PATH_SIZE


def test_a_notice_has_the_numbers_and_no_text() -> None:
    data = to_wire(EVENT)
    assert len(data) == WIRE_SIZE == 28
    assert from_wire(data) == (77, Kind.CALL, Verdict.ALERT, 0, 110, 4, 10**9)
    assert b"python" not in data


@given(st.binary(max_size=256))
def test_no_bytes_break_the_decoders(data: bytes) -> None:
    for found in (decode(data), from_wire(data)):
        assert found is None or found.kind in set(Kind)


@given(st.binary(min_size=RECORD_SIZE, max_size=RECORD_SIZE))
def test_a_decoded_event_makes_a_record_of_one_ascii_line(data: bytes) -> None:
    known = bytes([data[32] % Kind.URING + 1, data[33] % 4])
    event = decode(data[:32] + known + data[34:36] + bytes(4) + data[40:])
    assert event
    text = json.dumps(record(event, "w", 0))
    assert text.isascii()
    assert "\n" not in text


def test_names_of_foreign_calls_are_not_taken_from_our_table() -> None:
    compat = EVENT._replace(number=20, flags=int(Flag.COMPAT))
    assert record(compat, "w", 0)["call"] == "i386#20"
    assert record(EVENT._replace(number=0x40000001, flags=2), "w", 0)["call"] == "x32#1"
    assert record(EVENT, "w", 0)["call"] == "getppid"


class FakeRing:
    """A file laid out as the kernel's ring (its data twice), with the kernel's side in our hand."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(2 * PAGE + 2 * SIZE))
        self.fd = os.open(path, os.O_RDWR)
        self.position = 0

    def put(self, data: bytes, length: int | None = None) -> None:
        whole = struct.pack("<II", len(data) if length is None else length, 0) + data
        whole += bytes(-len(whole) % 8)
        for offset, byte in enumerate(whole):
            at = (self.position + offset) % SIZE
            for copy in (0, SIZE):
                os.pwrite(self.fd, bytes([byte]), 2 * PAGE + copy + at)
        self.position += len(whole)
        os.pwrite(self.fd, struct.pack("<Q", self.position), PAGE)

    def consumed(self) -> int:
        return int(struct.unpack("<Q", os.pread(self.fd, 8, 0))[0])


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeRing]:
    fake = FakeRing(tmp_path / "ring")
    yield fake
    os.close(fake.fd)


def test_the_ring_wraps_and_gives_back_what_was_read(fake: FakeRing) -> None:
    ring = Ring(fake.fd, SIZE)
    for number in range(300):
        data = bytes([number % 256]) * 56
        fake.put(data)
        assert list(ring.read(10)) == [data]
        assert ring.fill == 0
    assert fake.consumed() == 300 * 64


def test_busy_ends_a_reading_and_discarded_is_stepped_over(fake: FakeRing) -> None:
    ring = Ring(fake.fd, SIZE)
    fake.put(b"a" * 8)
    fake.put(b"x" * 8, 8 | 1 << 30)
    fake.put(b"b" * 8)
    fake.put(b"c" * 8, 8 | 1 << 31)
    assert list(ring.read(10)) == [b"a" * 8, b"b" * 8]
    assert fake.consumed() == 48
    assert ring.fill == 16


def test_a_length_the_ring_cannot_hold_is_skipped(fake: FakeRing) -> None:
    ring = Ring(fake.fd, SIZE)
    fake.put(b"a" * 8, 0x3FFFFFFF)
    assert list(ring.read(10)) == []
    fake.put(b"b" * 8)
    assert list(ring.read(10)) == [b"b" * 8]


@pytest.fixture
def parts(fake: FakeRing, tmp_path: Path) -> Iterator[tuple[Reader, FakeRing, socket.socket, Path]]:
    counters = tmp_path / "counters"
    counters.write_bytes(bytes(layout.SLOTS * layout.COUNTERS.size))
    page = os.open(counters, os.O_RDWR)
    audit = os.open(tmp_path / "audit", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.setblocking(False)
    ring = Ring(fake.fd, SIZE)
    reader = Reader(ring, CounterPage(page, layout.SLOTS, layout.COUNTERS), audit, theirs.fileno())
    yield reader, fake, ours, tmp_path
    for fd in (page, audit):
        os.close(fd)
    ours.close()
    theirs.close()


def test_garbage_in_the_ring_is_counted_and_the_rest_comes_through(
    parts: tuple[Reader, FakeRing, socket.socket, Path],
) -> None:
    reader, fake, ours, path = parts
    for data in (b"", b"\xff" * 56, b"\0" * 56, os.urandom(100), encode(EVENT)):
        fake.put(data)
    reader.drain()
    assert reader.garbage == 4
    assert from_wire(ours.recv(100))
    (line,) = (path / "audit").read_text().splitlines()
    assert json.loads(line)["call"] == "getppid"


def test_a_supervisor_that_does_not_listen_costs_events_and_no_standstill(
    parts: tuple[Reader, FakeRing, socket.socket, Path],
) -> None:
    reader, fake, _, path = parts
    for _ in range(2000):
        fake.put(encode(EVENT))
        reader.drain()
    assert reader.undelivered > 0
    lines = (path / "audit").read_text().splitlines()
    assert len(lines) == 2000
    reader.tell_counters()
    last = json.loads((path / "audit").read_text().splitlines()[-1])
    assert (last["event"], last["undelivered"]) == ("reader", reader.undelivered)


def test_registrations_name_the_records_until_forgotten(
    parts: tuple[Reader, FakeRing, socket.socket, Path],
) -> None:
    reader, fake, ours, path = parts
    for message in ({"op": "workload", "cgroup": 77, "id": "a.b"}, {"op": "forget", "cgroup": 77}):
        ours.send(json.dumps(message).encode())
        assert reader.hear()
        fake.put(encode(EVENT))
        reader.drain()
    names = [json.loads(line)["workload"] for line in (path / "audit").read_text().splitlines()]
    assert names == ["a.b", ""]
    ours.close()
    assert not reader.hear()


def test_names_are_bounded_and_the_oldest_goes_first(
    parts: tuple[Reader, FakeRing, socket.socket, Path],
) -> None:
    reader, fake, ours, path = parts
    for cgroup in (77, *range(1000, 1000 + WORKLOADS_MAX)):
        ours.send(json.dumps({"op": "workload", "cgroup": cgroup, "id": f"w{cgroup}"}).encode())
        assert reader.hear()
    assert reader.garbage == 0
    for cgroup in (77, 999 + WORKLOADS_MAX):
        fake.put(encode(EVENT._replace(cgroup=cgroup)))
    reader.drain()
    names = [json.loads(line)["workload"] for line in (path / "audit").read_text().splitlines()]
    assert names == ["", f"w{999 + WORKLOADS_MAX}"]


def test_growing_counters_are_told_once(
    parts: tuple[Reader, FakeRing, socket.socket, Path],
) -> None:
    reader, _, ours, path = parts
    (path / "counters").open("r+b").write(layout.COUNTERS.pack(77, 10, 4, 3))
    reader.tell_counters()
    reader.tell_counters()
    (line,) = (path / "audit").read_text().splitlines()
    told = json.loads(line)
    assert (told["seen"], told["suppressed"], told["lost"]) == (10, 4, 3)
    assert told["verdict"] == "failed"
    notice = from_wire(ours.recv(100))
    assert notice
    assert (notice.cgroup, notice.kind, notice.number) == (77, Kind.LOSS, 3)
