"""Searches the memory of processes for a secret and the forms in which it may lie about."""

from __future__ import annotations

import base64
import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass, field

_CHUNK = 16 << 20


def forms(secret: str) -> dict[str, bytes]:
    """What to look for: the secret in clear and encoded. It should be long and random."""
    raw = secret.encode()
    found = {
        "clear": raw,
        "reversed": raw[::-1],
        "hex": raw.hex().encode(),
        "HEX": raw.hex().upper().encode(),
        "percent": "".join(f"%{byte:02X}" for byte in raw).encode(),
        "UTF-16": secret.encode("utf-16-le")[:-1],  # big endian has the same inside
        "UTF-32": secret.encode("utf-32-le")[:-3],
    }
    for shift, lost in ((0, 0), (1, 2), (2, 3)):
        whole = (shift + len(raw)) * 8 // 6
        for name, encode in (("base64", base64.b64encode), ("base64url", base64.urlsafe_b64encode)):
            found[f"{name} at {shift}"] = encode(bytes(shift) + raw)[lost:whole]
    return {name: form for name, form in found.items() if name in ("clear", "HEX") or form != raw}


@dataclass
class Searched:
    """What a search of one process saw: `hits` as "form in mapping" with their number."""

    bytes: int = 0
    hits: dict[str, int] = field(default_factory=dict)
    unreadable: set[str] = field(default_factory=set)  # mappings that the kernel shows to nobody


def search(pid: int, secrets: Iterable[str]) -> Searched:
    """Read all that can be read of a process. Raises OSError if that is nothing; see proc(5)."""
    wanted = {
        (number, name): form
        for number, secret in enumerate(secrets)
        for name, form in forms(secret).items()
    }
    overlap = max(map(len, wanted.values())) - 1
    found = Searched()
    with open(f"/proc/{pid}/maps") as maps:  # noqa: PTH123 - a list that only open(2) gives
        mappings = [line.split(maxsplit=5) for line in maps]
    memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    try:
        for span, _access, _, _, _, *name in mappings:
            where = name[0].strip() if name else "anonymous"
            start, end = (int(address, 16) for address in span.split("-"))
            if where == "[vsyscall]":  # the kernel's own page, beyond any offset of pread(2)
                continue
            before = b""
            while start < end:
                try:
                    part = os.pread(memory, min(_CHUNK, end - start), start)
                except OSError as error:
                    if error.errno not in (errno.EIO, errno.EFAULT):
                        raise
                    part = b""
                if not part:
                    found.unreadable.add(where)
                    break
                found.bytes += len(part)
                start += len(part)
                for (number, form), needle in wanted.items():
                    most = len(needle) - 1
                    if count := part.count(needle) + (before[-most:] + part[:most]).count(needle):
                        key = f"secret {number} {form} in {where}"
                        found.hits[key] = found.hits.get(key, 0) + count
                before = (before + part[-overlap:])[-overlap:]
    finally:
        os.close(memory)
    return found
