"""The plaintext of the vault, which is also what the egress proxy maps: names and values.

Layout: `!I` count, then per entry `!H` name length, name (UTF-8), `!H` value length, value.
Values are handed around as memoryviews into one buffer, so nothing is copied to read them.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

RESERVED = "."  # names beginning with it are Anchorhold's own and never handed over
SIGNING_KEY = ".signing"  # of the gateway's tokens
AUDIT_KEY = ".audit"  # of the audit log's checkpoints


def size_of(entries: Mapping[str, memoryview]) -> int:
    """How many bytes `write` needs."""
    return 4 + sum(4 + len(name.encode()) + len(value) for name, value in entries.items())


def write(entries: Mapping[str, memoryview], out: memoryview) -> int:
    """Write the layout into `out`, sorted by name; returns its length."""
    struct.pack_into("!I", out, 0, len(entries))
    at = 4
    for name, value in sorted(entries.items()):
        raw = name.encode()
        for part in (memoryview(raw), value):
            struct.pack_into("!H", out, at, len(part))
            out[at + 2 : at + 2 + len(part)] = part
            at += 2 + len(part)
    return at


def read(plain: memoryview) -> dict[str, memoryview]:
    """The entries of a layout, as views into it. Raises ValueError if it is malformed."""
    try:
        (count,) = struct.unpack_from("!I", plain, 0)
        at = 4
        entries: dict[str, memoryview] = {}
        for _ in range(count):
            parts = []
            for _ in range(2):
                (length,) = struct.unpack_from("!H", plain, at)
                part = plain[at + 2 : at + 2 + length]
                if len(part) != length:
                    raise ValueError("cut short")
                parts.append(part)
                at += 2 + length
            entries[str(parts[0], "utf-8")] = parts[1]
    except struct.error:
        raise ValueError("cut short") from None
    if len(entries) != count or at != len(plain):
        raise ValueError("a name twice, or bytes left over")
    return entries
