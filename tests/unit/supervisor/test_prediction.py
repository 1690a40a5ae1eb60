"""Predicted PCR values, against systemd's own calculation and a log made by the book."""

from __future__ import annotations

import hashlib
import json
import os
import random
import struct
import subprocess
from pathlib import Path

import pytest

from supervisor import prediction
from supervisor.prediction import Event, Rule, Unpredictable

STUB = Path("/usr/lib/systemd/boot/efi/linuxx64.efi.stub")
MEASURE = Path("/usr/lib/systemd/systemd-measure")
OBJCOPY = Path("/usr/bin/objcopy")
PHASES = ("enter-initrd", "leave-initrd", "sysinit", "ready")
TEXTS = {
    "osrel": b"ID=debian\n",
    "cmdline": b"root=/dev/vda1 quiet\0",
    "linux": b"MZ kernel" * 1000,
    "initrd": b"initrd" * 4097,
}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    if not (STUB.exists() and MEASURE.exists() and OBJCOPY.exists()):
        pytest.skip("systemd-boot-efi, systemd-measure or binutils is not installed")
    return unified(tmp_path, TEXTS)


def unified(folder: Path, texts: dict[str, bytes]) -> Path:
    """A unified kernel image, put together as ukify did it at first."""
    words, address = [], 0x20000
    for name, text in texts.items():
        (folder / name).write_bytes(text)
        words += ["--add-section", f".{name}={folder / name}"]
        words += ["--change-section-vma", f".{name}={address:#x}"]
        address += 0x100000
    made = folder / "linux.efi"
    subprocess.run([OBJCOPY, *words, STUB, made], check=True)
    return made


def measured(folder: Path, phase: str) -> str:
    """What systemd-measure says. It takes `MATCH:PHASE`, all phases up to the last of the list."""
    options = [f"--{name}={folder / name}" for name in TEXTS]
    done = subprocess.run(
        [MEASURE, "calculate", *options, "--bank=sha256", f"--phase={phase}", "--json=short"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return str(json.loads(done.stdout)["sha256"][0]["hash"])


def sections(path: Path) -> dict[str, bytes]:
    fd = os.open(path, os.O_RDONLY)
    try:
        return prediction.sections(fd)
    finally:
        os.close(fd)


def test_pcr_11_is_what_systemd_measure_calculates(image: Path, tmp_path: Path) -> None:
    found = sections(image)
    for count in range(1, len(PHASES) + 1):
        expected = measured(tmp_path, ":".join(PHASES[:count]))
        rule = prediction.explain([found], bytes.fromhex(expected))
        assert rule.phases == count
        assert prediction.image_value(found, rule).hex() == expected
    with pytest.raises(Unpredictable, match="explains"):
        prediction.explain([found], bytes(32))


def test_another_kernel_is_another_value_under_the_same_rule(image: Path, tmp_path: Path) -> None:
    rule = prediction.explain([sections(image)], bytes.fromhex(measured(tmp_path, PHASES[0])))
    newer = unified(tmp_path, TEXTS | {"linux": b"MZ another kernel"})
    value = prediction.image_value(sections(newer), rule)
    assert value.hex() == measured(tmp_path, PHASES[0])


def test_what_is_no_image_is_refused_with_a_sentence(image: Path, tmp_path: Path) -> None:
    whole = image.read_bytes()
    broken = tmp_path / "broken.efi"
    for size in (0, 10, 0x40, 0x100, 0x200, 0x400, len(whole) // 2):
        broken.write_bytes(whole[:size])
        with pytest.raises(Unpredictable):
            sections(broken)
    dice = random.Random(7)
    for _ in range(300):
        flipped = bytearray(whole[:0x1000])
        for _ in range(4):
            flipped[dice.randrange(len(flipped))] = dice.randrange(256)
        broken.write_bytes(flipped)
        with pytest.raises(Unpredictable):
            sections(broken)


# --- the firmware's log ---------------------------------------------------------------------------

GUID = bytes(range(16))


def variable(name: str, content: bytes) -> bytes:
    raw = name.encode("utf-16-le")
    return GUID + struct.pack("<QQ", len(name), len(content)) + raw + content


def log_of(*events: Event) -> bytes:
    spec = b"Spec ID Event03\0" + struct.pack("<IBBBBI", 0, 0, 2, 0, 2, 2)
    spec += struct.pack("<HHHH", 4, 20, 11, 32) + b"\0"
    log = struct.pack("<II20sI", 0, 3, bytes(20), len(spec)) + spec
    for event in events:
        log += struct.pack("<III", event.pcr, event.kind, 2)
        log += struct.pack("<H", 4) + bytes(20) + struct.pack("<H", 11) + event.digest
        log += struct.pack("<I", len(event.data)) + event.data
    return log


def measured_variable(name: str, content: bytes) -> Event:
    data = variable(name, content)
    return Event(7, 0x80000001, hashlib.sha256(data).digest(), data)


def chain(*digests: bytes) -> bytes:
    value = bytes(32)
    for digest in digests:
        value = hashlib.sha256(value + digest).digest()
    return value


def test_the_log_is_replayed_and_a_variable_exchanged() -> None:
    before, after = measured_variable("dbx", b"old"), measured_variable("dbx", b"newer")
    on = measured_variable("SecureBoot", b"\1")
    other = Event(4, 0x80000003, bytes(32), b"boot loader")
    separator = Event(7, 4, hashlib.sha256(bytes(4)).digest(), bytes(4))
    locality = Event(0, 3, bytes(32), b"StartupLocality\0\3")
    log = log_of(locality, on, before, other, separator)
    assert prediction.replayed(log, 7) == chain(on.digest, before.digest, separator.digest)
    assert prediction.replayed(log, 7, {"dbx": b"newer"}) == chain(
        on.digest, after.digest, separator.digest
    )
    assert prediction.replayed(log, 7, {"dbx": b"old"}) == prediction.replayed(log, 7)
    assert prediction.replayed(log, 4) == chain(other.digest)
    with pytest.raises(Unpredictable, match="no variable KEK"):
        prediction.replayed(log, 7, {"KEK": b"x"})


def test_a_damaged_log_is_refused_with_a_sentence() -> None:
    log = log_of(measured_variable("dbx", b"old"), measured_variable("db", b"x" * 100))
    ends = 0
    for size in range(len(log)):
        try:
            prediction.replayed(log[:size], 7, {})
            ends += 1
        except Unpredictable:
            pass
    assert ends == 2, "whole only between two events"
    dice = random.Random(3)
    for _ in range(2000):
        flipped = bytearray(log)
        flipped[dice.randrange(len(log))] = dice.randrange(256)
        try:
            prediction.replayed(bytes(flipped), 7, {"dbx": b"y"})
        except Unpredictable:
            continue


def test_a_rule_without_phases_is_the_image_alone() -> None:
    found = {".linux": bytes(32), ".text": b"not measured" + bytes(20)}
    rule = Rule((".linux",), 0)
    assert prediction.image_value(found, rule) == chain(
        hashlib.sha256(b".linux\0").digest(), bytes(32)
    )
