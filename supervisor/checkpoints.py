"""Checkpoints of the audit records: what was written so far can be changed by nobody unseen.

Every file below `audit/` is a chain: digest(n) = SHA-256(digest(n - 1) + line n), from 32 zero
bytes on. At the start, every hour and at the end, a record `checkpoint` in the supervisor's own
file has the head of each chain, and a signature by the audit key, which is in the vault: over the
number of all lines and the SHA-256 of the heads. `anchorhold logs --verify` goes through all of it.

A line that came after the last checkpoint is not covered; and root, who may use the vault, can sign
what he likes while the machine runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from supervisor.keys import VaultRefused
from supervisor.lifecycle import StartError

if TYPE_CHECKING:
    from supervisor.supervise import Supervisor

EVENT = "checkpoint"
_INTERVAL = 3600.0  # seconds
_CHUNK, _LINE_MAX = 1 << 20, 1 << 20


@dataclass
class Chain:
    """The chain of one file up to `count` lines, which end at `offset`."""

    count: int = 0
    offset: int = 0
    digest: bytes = bytes(32)

    def add(self, line: bytes) -> None:
        """The next line, with its end."""
        self.digest = hashlib.sha256(self.digest + line).digest()
        self.count += 1
        self.offset += len(line)

    def head(self) -> dict[str, Any]:
        """As it stands in a checkpoint."""
        return {"count": self.count, "digest": self.digest.hex()}


def lines(fd: int, offset: int) -> Iterator[bytes]:
    """The whole lines of a file from `offset` on. An unfinished one at the end is left."""
    rest = b""
    while part := os.pread(fd, _CHUNK, offset + len(rest)):
        *whole, last = (rest + part).split(b"\n")
        for line in whole:
            offset += len(line) + 1
            yield line + b"\n"
        rest = last
        if len(rest) > _LINE_MAX:
            raise OSError(f"a line of more than {_LINE_MAX} bytes")


def digest_of(heads: Mapping[str, Mapping[str, Any]]) -> tuple[int, str]:
    """What is signed: the number of all lines, and the SHA-256 of the heads as canonical JSON."""
    text = json.dumps(heads, sort_keys=True, separators=(",", ":"))
    return sum(head["count"] for head in heads.values()), hashlib.sha256(text.encode()).hexdigest()


class Checkpoints:
    """Writes them for the supervisor `of`."""

    def __init__(self, of: Supervisor) -> None:
        self._of = of
        self._folder = of.state / "audit"
        self._chains: dict[str, tuple[int, Chain]] = {}  # by file: its inode and its chain
        self._turn = asyncio.Lock()
        self._covered = 0  # lines, with the last checkpoint's own

    async def keep(self) -> None:
        """One now, then one an hour, until cancelled."""
        while True:
            await self.write()
            await asyncio.sleep(_INTERVAL)

    async def write(self) -> None:
        """A checkpoint, unless nothing came since the last. What fails is noted, and not tried
        again before its time."""
        async with self._turn:
            try:
                heads = {name: chain.head() async for name, chain in self._grown()}
                count, digest = digest_of(heads)
                if count == self._covered:
                    return
                signed = await self._signed(count, digest)
            except OSError as error:
                self._of.note(EVENT, "audit", "failed", reason=str(error))
                return
            verdict = "allowed" if "signature" in signed else "failed"
            self._of.note(EVENT, "audit", verdict, heads=heads, **signed)
            self._covered = count + 1

    async def _signed(self, count: int, digest: str) -> dict[str, Any]:
        words = ("--count", str(count), "--digest", digest)
        try:
            found = await self._of.vault.keys.run("audit-sign", *words, result=True)
        except (VaultRefused, *StartError) as error:
            return {"reason": str(getattr(error, "code", error))}
        return {"kid": str(found.get("kid")), "signature": str(found.get("signature"))}

    async def _grown(self) -> Any:
        """Name and chain of every file, up to its last whole line."""
        for path in sorted(self._folder.glob("*.jsonl")):
            with contextlib.suppress(FileNotFoundError):
                fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    yield path.stem, await self._grow(path, fd)
                finally:
                    os.close(fd)

    async def _grow(self, path: Path, fd: int) -> Chain:
        found = os.fstat(fd)
        inode, chain = self._chains.get(path.stem, (0, Chain()))
        if inode != found.st_ino or found.st_size < chain.offset:
            chain = Chain()  # somebody put it away: what follows is another chain
        self._chains[path.stem] = found.st_ino, chain
        seen = chain.offset
        for line in lines(fd, chain.offset):
            chain.add(line)
            if chain.offset - seen > _CHUNK:
                seen = chain.offset
                await asyncio.sleep(0)  # a long file must not hold up everything else
        return chain
