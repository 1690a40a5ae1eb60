"""A request with a key of the vault in its head: there in the moment of sending and not before.

Until then a random text stands in for the key, so that no parser keeps a copy of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterable, Iterator

import h11

from proxy.egress.errors import Refusal, vault_locked
from proxy.egress.keys import KeyRing


def key_of(ring: KeyRing, name: str) -> memoryview:
    """A view of the key, to be used before anything else happens. Raises Refusal."""
    if ring.locked:
        raise vault_locked(ring.why_locked)
    if name not in ring:
        raise Refusal("credential_absent", f"The vault has no key {name}.")
    if not ring.sendable(name) or 0x20 in ring.value(name):
        raise Refusal("credential_absent", f"{name} cannot be sent.")
    return ring.value(name)


def stand_in() -> str:
    """A text that is in no request."""
    return os.urandom(16).hex()


@contextlib.contextmanager
def written(
    server: h11.Connection,
    writer: asyncio.StreamWriter,
    events: Iterable[h11.Event],
    mark: str,
    key: Callable[[], memoryview],
) -> Iterator[None]:
    """Write `events` with the key in place of `mark`, and at the end overwrite what held it.

    Leave when the answer has begun: then the head has been sent. Raises what `key` raises.
    """
    secret, start, length = bytearray(), 0, 0
    for event in events:
        data: bytes | bytearray = server.send(event) or b""
        before, found, after = data.partition(mark.encode("ascii"))
        if found:
            start, length = len(before), len(key())
            data = secret = bytearray().join((before, key(), after))  # allocated once
        writer.write(data)
    try:
        yield
    finally:
        secret[start : start + length] = bytes(length)
