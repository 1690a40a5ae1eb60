"""`logs --verify`: whether the audit records are what they were when each checkpoint was signed.

The files are opened as root and read as nobody. Only records up to the last checkpoint are proven.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from supervisor.checkpoints import EVENT, Chain, digest_of, lines

SUPERVISOR = "supervisor"
_MARK = b'"event": "checkpoint"'
_KEY = re.compile("[A-Za-z0-9_-]{43}")


@dataclass
class Verdict:
    """What was found. `wrong` is tampering or loss; `unproven` is what nobody vouches for."""

    checkpoints: int = 0
    signed: int = 0
    lines: int = 0
    after: int = 0  # lines that no checkpoint covers yet
    wrong: list[str] = field(default_factory=list)
    unproven: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Nothing is wrong, and something was proven."""
        return not self.wrong and self.signed > 0


def verify(files: Mapping[str, int], keys: Iterable[str]) -> Verdict:
    """Compare every checkpoint with the files, by name, given as descriptors.

    `keys`: raw Ed25519 public keys in base64url. Raises OSError.
    """
    found = Verdict()
    marks = list(_checkpoints(files.get(SUPERVISOR)))
    known = {_kid(key): key for key in keys if _KEY.fullmatch(key)}
    for mark in marks:
        _signature(found, mark, known)
    wanted: dict[str, dict[int, list[tuple[str, str]]]] = {name: {} for name in files}
    began: dict[str, int] = {}  # the count at the checkpoint before
    for mark in marks:
        for name, head in mark["heads"].items():
            if head["count"] < began.get(name, 0):
                found.unproven.append(f"{name}: began anew before {mark['time']}; put away before?")
                wanted.get(name, {}).clear()
            began[name] = head["count"]
            if name in wanted:
                place = wanted[name].setdefault(head["count"], [])
                place.append((mark["time"], head["digest"]))
            elif head["count"]:
                found.wrong.append(f"{name}: the file of {head['count']} records is missing")
    for name, fd in files.items():
        _walk(found, name, fd, wanted[name])
    if not marks:
        found.unproven.append("there is no checkpoint")
    return found


def _walk(found: Verdict, name: str, fd: int, wanted: Mapping[int, list[tuple[str, str]]]) -> None:
    chain, last = Chain(), max(wanted, default=0)
    reached = {0: chain.digest.hex()}
    for line in lines(fd, 0):
        chain.add(line)
        if chain.count in wanted:
            reached[chain.count] = chain.digest.hex()
    for count, marks in sorted(wanted.items()):
        for time, digest in marks:
            if count not in reached:
                found.wrong.append(
                    f"{name}: {chain.count} records, but {count} at the checkpoint of {time}"
                )
            elif reached[count] != digest:
                found.wrong.append(f"{name}: changed, before or at record {count} ({time})")
    found.lines += chain.count
    found.after += max(0, chain.count - last)


def _signature(found: Verdict, mark: Mapping[str, Any], known: Mapping[str, str]) -> None:
    found.checkpoints += 1
    count, digest = digest_of(mark["heads"])
    kid = str(mark.get("kid"))
    if "signature" not in mark:
        found.unproven.append(f"checkpoint of {mark['time']}: not signed ({mark.get('reason')})")
    elif kid not in known:
        found.unproven.append(f"checkpoint of {mark['time']}: signed by {kid}, a key not given")
    elif _signed(known[kid], str(mark["signature"]), count, digest):
        found.signed += 1
    else:
        found.wrong.append(f"checkpoint of {mark['time']}: the signature does not fit")


def _signed(key: str, signature: str, count: int, digest: str) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    # As supervisor.vault.audit puts it together.
    signed = b"anchorhold/audit/v1\0" + struct.pack("!Q", count) + bytes.fromhex(digest)
    try:
        Ed25519PublicKey.from_public_bytes(_raw(key)).verify(_raw(signature), signed)
    except (InvalidSignature, ValueError):
        return False
    return True


def _raw(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _kid(key: str) -> str:
    """As in a token: the first 16 hex digits of the key's SHA-256."""
    return hashlib.sha256(_raw(key)).hexdigest()[:16]


def _checkpoints(fd: int | None) -> Iterable[dict[str, Any]]:
    """The checkpoint records, in order; what only looks like one is left out."""
    for line in lines(fd, 0) if fd is not None else ():
        if _MARK not in line:
            continue
        try:
            record = json.loads(line)
            heads = record["heads"]
            sound = record["event"] == EVENT and all(
                type(head["count"]) is int
                and head["count"] >= 0
                and re.fullmatch("[0-9a-f]{64}", head["digest"])
                for head in heads.values()
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
        if sound:
            yield {**record, "time": str(record.get("time"))}
