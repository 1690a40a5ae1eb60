"""Expressions as a hyperscan database: compiled now, or read as set-up compiled it.

Compiling all rules takes more than a second. A database depends on nothing but its expressions and
the engine, and both are in the key that it is stored under, so that a stale one is never used. The
file lies among the wheels and is as trusted as these: reading one does not tell what it does.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import hyperscan
import msgspec

from .rules import RulesInvalid
from .views import ScanFailed

FILE = Path(sys.prefix) / "rules.db"

Hit = tuple[int, int]
Expression = tuple[int, str, int]  # number, expression, flags


class Database:
    """For one thread: a scratch space serves one scan at a time."""

    def __init__(self, expressions: list[Expression], stored: dict[str, bytes]) -> None:
        """`stored`: databases by key. Raises RulesInvalid."""
        self.key = _key(expressions)
        try:
            self._database = _read(stored.get(self.key)) or _compiled(expressions)
        except (hyperscan.error, UnicodeEncodeError) as error:
            raise RulesInvalid(f"The rules do not compile: {error}.") from None
        self._database.scratch = hyperscan.Scratch(self._database)

    def scan(self, data: bytes) -> list[Hit]:
        """Return (number, end in bytes) of every match. Raises ScanFailed."""
        hits: list[Hit] = []
        try:
            self._database.scan(data, match_event_handler=_collect, context=hits)
        except hyperscan.error as error:
            raise ScanFailed(f"hyperscan: {type(error).__name__}.") from None
        return hits

    def dump(self) -> bytes:
        """Return what `stored` may hold of it."""
        return bytes(hyperscan.dumpb(self._database))


def stored(file: Path = FILE) -> dict[str, bytes]:
    """Return the databases in `file`, by key; none where there is no file. Raises RulesInvalid."""
    try:
        return msgspec.msgpack.decode(file.read_bytes(), type=dict[str, bytes])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.DecodeError) as error:
        kind = type(error).__name__
        raise RulesInvalid(f"{file} is damaged ({kind}): install it anew, or remove it.") from None


def packed(databases: list[Database]) -> bytes:
    """Return the content of the file that `stored` reads."""
    return msgspec.msgpack.encode({each.key: each.dump() for each in databases})


def _key(expressions: list[Expression]) -> str:
    version = hyperscan.__version__  # type: ignore[attr-defined]  # absent from the stubs only
    told = msgspec.json.encode([version, expressions])
    return hashlib.sha256(told).hexdigest()


def _compiled(expressions: list[Expression]) -> hyperscan.Database:
    database = hyperscan.Database()
    ids, patterns, flags = zip(*expressions, strict=True)
    database.compile(
        expressions=[pattern.encode("ascii") for pattern in patterns],
        ids=list(ids),
        elements=len(ids),
        flags=list(flags),
    )
    return database


def _read(data: bytes | None) -> hyperscan.Database | None:
    """None where there is none, or one for processors that have what this one lacks."""
    if data is None:
        return None
    try:
        return hyperscan.loadb(data, hyperscan.HS_MODE_BLOCK)
    except hyperscan.error:
        return None


def _collect(number: int, _start: int, end: int, _flags: int, hits: Any) -> None:
    hits.append((number, end))
