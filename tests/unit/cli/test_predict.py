"""`keys approve --predict`: which states it foresees, and what it says it cannot."""

from __future__ import annotations

import hashlib
import os
import struct
from pathlib import Path

import pytest

from supervisor import prediction
from supervisor.cli import predict

ZERO = bytes(32)
NAMES = prediction._SECTIONS[0]


def pe(sections: dict[str, bytes]) -> bytes:
    """A PE file with these sections and nothing to run."""
    head = bytearray(0x40)
    head[:2], head[0x3C:0x40] = b"MZ", struct.pack("<I", 0x40)
    offset = 0x40 + 24 + 40 * len(sections)
    table, body = b"", b""
    for name, content in sections.items():
        place = (len(content), 0x1000, len(content), offset + len(body))
        table += struct.pack("<8s4I", name.encode(), *place) + bytes(16)
        body += content
    return (
        bytes(head)
        + b"PE\0\0"
        + struct.pack("<HH12xHH", 0x8664, len(sections), 0, 0)
        + table
        + body
    )


def value(sections: dict[str, bytes], phases: int) -> bytes:
    hashes = {name: hashlib.sha256(content).digest() for name, content in sections.items()}
    return prediction.image_value(hashes, prediction.Rule(NAMES, phases))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def opened(folder: Path, name: str, content: bytes) -> int:
    (folder / name).write_bytes(content)
    return os.open(folder / name, os.O_RDONLY)


OLD = {".linux": b"old kernel", ".cmdline": b"quiet", ".initrd": b"i" * 5000}
NEW = OLD | {".linux": b"new kernel"}


def test_every_image_is_a_state_under_the_rule_of_the_present_one(folder: Path) -> None:
    images = [
        (name, opened(folder, name, content))
        for name, content in (("old.efi", pe(OLD)), ("new.efi", pe(NEW)), ("torn.efi", b"MZ"))
    ]
    now = {7: b"\7" * 32, 11: value(OLD, 3)}
    lines = list(predict._lines(now, images, None, {}))
    seven = (b"\7" * 32).hex()
    assert lines == [
        "?torn.efi: it is cut short",
        f"next start: old.efi\t7={seven}\t11={value(OLD, 3).hex()}",
        f"next start: new.efi\t7={seven}\t11={value(NEW, 3).hex()}",
    ]
    assert predict._FOUND.fullmatch(lines[1]) and predict._UNKNOWN.fullmatch(lines[0])


def test_what_the_images_do_not_explain_is_not_predicted(folder: Path) -> None:
    images = [("new.efi", opened(folder, "new.efi", pe(NEW)))]
    (line,) = predict._lines({11: value(OLD, 3)}, images, None, {})
    assert line.startswith("?PCR 11: no unified kernel image")


def test_a_variable_is_exchanged_in_the_log(folder: Path) -> None:
    guid, name = bytes(16), "dbx".encode("utf-16-le")
    digests = {}
    for content in (b"old", b"newer"):
        data = guid + struct.pack("<QQ", 3, len(content)) + name + content
        digests[content] = data, hashlib.sha256(data).digest()
    data, digest = digests[b"old"]
    spec = b"Spec ID Event03\0" + bytes(8) + struct.pack("<IHHB", 1, 11, 32, 0)
    log = struct.pack("<II20sI", 0, 3, bytes(20), len(spec)) + spec
    log += struct.pack("<IIIH", 7, 0x80000001, 1, 11) + digest + struct.pack("<I", len(data)) + data
    now = {7: prediction.extend(ZERO, digest)}
    given = {"dbx": opened(folder, "dbx", b"newer")}
    (line,) = predict._lines(now, [], opened(folder, "log", log), given)
    coming = prediction.extend(ZERO, digests[b"newer"][1]).hex()
    assert line == f"next start with new dbx\t7={coming}"
    given = {"dbx": opened(folder, "dbx", b"newer")}
    (line,) = predict._lines({7: ZERO}, [], opened(folder, "log", log), given)
    assert line == "?PCR 7: the firmware's log does not explain the present value"
    (line,) = predict._lines(now, [], None, given)
    assert line == "?PCR 7: the firmware left no log of its measurements"
    (line,) = predict._lines({11: ZERO}, [], None, given)
    assert line == "?PCR 7: the vault is not bound to it"


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming nobody needs root")
def test_files_are_read_by_nobody(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = folder / "EFI"
    images.mkdir(mode=0o700)
    (images / "old.efi").write_bytes(pe(OLD))
    (images / "old.efi").chmod(0o600)
    monkeypatch.setattr(predict, "_IMAGES", (str(images),))
    monkeypatch.setattr(predict, "_LOG", folder / "absent")
    states, unknown = predict._by_nobody({11: value(OLD, 2)}, {})
    assert states == [("next start: old.efi", {"11": value(OLD, 2).hex()})] and unknown == []

    def tell(*_: object) -> list[str]:
        return [f"uid {os.geteuid()}\t11={'00' * 32}", "bad line\t11=zz", "\x1b[2J\t11=" + "0" * 64]

    monkeypatch.setattr(predict, "_lines", tell)
    states, unknown = predict._by_nobody({11: ZERO}, {})
    assert states == [("uid 65534", {"11": "00" * 32})], "and nothing of another form comes back"

    def fail(*_: object) -> list[str]:
        raise ValueError("a secret of the file")

    monkeypatch.setattr(predict, "_lines", fail)
    assert predict._by_nobody({11: ZERO}, {}) == (
        [], ["the program that reads images and log failed"]
    )  # fmt: skip
