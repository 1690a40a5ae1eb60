"""PCR values that the next start will bring, computed from what lies on the disk now.

PCR 11: systemd's stub measures each section of a unified kernel image, then the phases of the start
are measured (systemd-stub(7), systemd-pcrphase.service(8)). Which sections, and in which order,
depends on the stub's version, so the present value is explained first: a rule that does not give
the value which the TPM holds now is not used for the next one.

PCR 7: the firmware's own log is replayed (TCG PC Client Platform Firmware Profile 1.06, chapter 10)
and must give the present value; then a Secure Boot variable is exchanged in it.

Not predicted: what an update of the firmware itself does, another signer of boot loader or kernel,
and how a firmware joins an appended dbx update with what it has: give the variable as it will be.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

SHA256 = 0x000B
_SIZE = {0x0004: 20, 0x000B: 32, 0x000C: 48, 0x000D: 64, 0x0012: 32}  # TPM_ALG_ID to digest size
_PHASES = ("enter-initrd", "leave-initrd", "sysinit", "ready")
# In the order of measurement; the first releases had no uname, then no sbat.
_SECTIONS = (
    (".linux", ".osrel", ".cmdline", ".initrd", ".splash", ".dtb", ".pcrpkey"),
    (".linux", ".osrel", ".cmdline", ".initrd", ".splash", ".dtb", ".uname", ".pcrpkey"),
    (".linux", ".osrel", ".cmdline", ".initrd", ".splash", ".dtb", ".uname", ".sbat", ".pcrpkey"),
    (".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb", ".uname", ".sbat",
     ".pcrpkey"),
)  # fmt: skip
_EV_NO_ACTION, _EV_VARIABLE = 0x03, 0x8000_0001
_LOG_MAX, _SECTION_MAX = 16 << 20, 96
_CHUNK = 1 << 20


class Unpredictable(Exception):
    """Why a value cannot be told beforehand, in a sentence."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What explains the present PCR 11: which sections count, and how many phases were passed."""

    sections: tuple[str, ...]
    phases: int


def extend(value: bytes, digest: bytes) -> bytes:
    """PCR_Extend of the SHA-256 bank."""
    return hashlib.sha256(value + digest).digest()


# --- PCR 11 ---------------------------------------------------------------------------------------


def sections(fd: int) -> dict[str, bytes]:
    """SHA-256 of each section of a PE file by its name. PE format: Microsoft's specification.

    Raises Unpredictable when it is no such file.
    """
    try:
        (start,) = struct.unpack("<I", _at(fd, 0x3C, 4))
        head = _at(fd, start, 24)
        if head[:4] != b"PE\0\0":
            raise Unpredictable("it is no PE file")
        count, optional = struct.unpack("<H12xH", head[6:22])
        if count > _SECTION_MAX:
            raise Unpredictable("it has too many sections")
        table = _at(fd, start + 24 + optional, 40 * count)
        found: dict[str, bytes] = {}
        for number in range(count):
            raw, size, _, raw_size, offset = struct.unpack_from("<8s4I", table, 40 * number)
            name = raw.rstrip(b"\0").decode("ascii")
            if name in found:
                raise Unpredictable(f"it has {name} twice")
            found[name] = _hash(fd, offset, size, raw_size)
    except (struct.error, UnicodeDecodeError):
        raise Unpredictable("its header is cut short") from None
    return found


def _at(fd: int, offset: int, size: int) -> bytes:
    data = os.pread(fd, size, offset)
    if len(data) != size:
        raise Unpredictable("it is cut short")
    return data


def _hash(fd: int, offset: int, size: int, present: int) -> bytes:
    """Of `size` bytes, of which the file holds `present` and the loader fills up with zeros."""
    digest, end = hashlib.sha256(), offset + min(size, present)
    while offset < end:
        part = _at(fd, offset, min(_CHUNK, end - offset))
        digest.update(part)
        offset += len(part)
    rest = size - min(size, present)
    if rest > _CHUNK * 64:
        raise Unpredictable("a section is longer than the file")
    digest.update(bytes(rest))
    return digest.digest()


def image_value(found: Mapping[str, bytes], rule: Rule) -> bytes:
    """PCR 11 after a start from the image with these sections."""
    value = bytes(32)
    for name in rule.sections:
        if name in found:
            value = extend(value, hashlib.sha256(name.encode() + b"\0").digest())
            value = extend(value, found[name])
    for phase in _PHASES[: rule.phases]:
        value = extend(value, hashlib.sha256(phase.encode()).digest())
    return value


def explain(images: Sequence[Mapping[str, bytes]], now: bytes) -> Rule:
    """The rule that gives the present PCR 11 from one of `images`. Raises Unpredictable."""
    for found in images:
        for names in _SECTIONS:
            for phases in range(len(_PHASES) + 1):
                rule = Rule(names, phases)
                if image_value(found, rule) == now:
                    return rule
    raise Unpredictable("no unified kernel image on the disk explains the present PCR 11")


# --- PCR 7 ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Event:
    """One measurement of the firmware's log: its SHA-256 digest and its data."""

    pcr: int
    kind: int
    digest: bytes
    data: bytes


def events(log: bytes) -> Iterator[Event]:
    """The measurements in a binary_bios_measurements. Raises Unpredictable."""
    if len(log) > _LOG_MAX:
        raise Unpredictable("the firmware's log is too long")
    try:
        # The first event has the old format and says which digests the others carry.
        _, kind, _, size = struct.unpack_from("<II20sI", log, 0)
        at = 32 + size
        if kind != _EV_NO_ACTION or not log[32:at].startswith(b"Spec ID Event03\0"):
            raise Unpredictable("the firmware's log has no SHA-256 digests")
        if at > len(log):
            raise Unpredictable("the firmware's log is cut short")
        while at < len(log):
            pcr, kind, count = struct.unpack_from("<III", log, at)
            at += 12
            digest = b""
            for _ in range(count):
                (algorithm,) = struct.unpack_from("<H", log, at)
                length = _SIZE[algorithm]
                if algorithm == SHA256:
                    digest = log[at + 2 : at + 2 + length]
                at += 2 + length
            (size,) = struct.unpack_from("<I", log, at)
            data = log[at + 4 : at + 4 + size]
            at += 4 + size
            if at > len(log) or len(digest) != 32:
                raise Unpredictable("the firmware's log is cut short")
            if kind != _EV_NO_ACTION:
                yield Event(pcr, kind, digest, data)
    except (struct.error, KeyError):
        raise Unpredictable("the firmware's log cannot be read") from None


def replayed(log: bytes, pcr: int, variables: Mapping[str, bytes] | None = None) -> bytes:
    """The value of `pcr` after all events; with `variables` exchanged for new contents.

    Raises Unpredictable, also for a variable that the firmware does not measure there.
    """
    value, left = bytes(32), set(variables or {})
    for event in events(log):
        if event.pcr != pcr:
            continue
        digest = event.digest
        if variables and event.kind == _EV_VARIABLE:
            guid, name = _variable(event.data)
            if name in variables:
                left.discard(name)
                raw = name.encode("utf-16-le")
                body = struct.pack("<QQ", len(name), len(variables[name])) + raw + variables[name]
                digest = hashlib.sha256(guid + body).digest()
        value = extend(value, digest)
    if left:
        raise Unpredictable(f"the firmware measures no variable {', '.join(sorted(left))}")
    return value


def _variable(data: bytes) -> tuple[bytes, str]:
    """Owner and name of a UEFI_VARIABLE_DATA."""
    try:
        length, _ = struct.unpack_from("<QQ", data, 16)
        return data[:16], data[32 : 32 + 2 * length].decode("utf-16-le")
    except (struct.error, UnicodeDecodeError):
        raise Unpredictable("an event of the firmware's log cannot be read") from None
