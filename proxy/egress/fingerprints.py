"""What is kept of a key so that it can be found in a text, and is too little to be worth stealing.

Of each written form: its length, three characters from its beginning, six from its middle, and a
keyed BLAKE2 hash (RFC 7693) of the whole, under a key of this process. The forms themselves exist
for a moment, in buffers that are overwritten.
"""

from __future__ import annotations

import base64
import ctypes
import hashlib
import os
from collections.abc import Iterator
from typing import NamedTuple

FRAGMENT, HEAD = 6, 3
_SHORTEST = 8
_EDGES_FROM = 32  # keys from this length on are also found when an upstream echoes only an end
_HASH_KEY = os.urandom(32)
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#x27;"}
_UNRESERVED = frozenset(b"-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")

_PLAIN = [bytes([byte]) for byte in range(256)]
_JSON = [rb"\"" if char == b'"' else rb"\\" if char == b"\\" else char for char in _PLAIN]
_PERCENT = [_PLAIN[n] if n in _UNRESERVED else b"%%%02X" % n for n in range(256)]
_HTML = [_ENTITIES.get(chr(n), "").encode() or _PLAIN[n] for n in range(256)]
_HEX, _HEX_UPPER = [b"%02x" % n for n in range(256)], [b"%02X" % n for n in range(256)]


class Print(NamedTuple):
    """The fingerprint of one form; `fragment` stands at `at` in it. Lengths in characters."""

    length: int
    head: str
    at: int
    fragment: str
    digest: bytes

    def fits(self, form: str) -> bool:
        """Whether `form` is the one whose fingerprint this is."""
        return len(form) == self.length and digest(form.encode("utf-8", "replace")) == self.digest


def digest(form: bytes | bytearray | memoryview) -> bytes:
    """The hash of a form; hashlib overwrites its own state."""
    return hashlib.blake2b(form, key=_HASH_KEY, digest_size=16).digest()


def fingerprints(key: memoryview) -> tuple[Print, ...]:
    """Those of every form of `key`, each once, the key itself first.

    None where it is so short that it would be found by chance everywhere; no provider's key is.
    """
    found: dict[Print, None] = {}
    if len(key) >= _SHORTEST:
        for form in _forms(key):
            found[_fingerprint(form)] = None
    return tuple(found)


def _fingerprint(form: bytearray | memoryview) -> Print:
    at = (len(form) - FRAGMENT) // 2
    head, fragment = (str(form[a:b], "latin-1") for a, b in ((0, HEAD), (at, at + FRAGMENT)))
    return Print(len(form), head, at, fragment, digest(form))


def _forms(key: memoryview) -> Iterator[bytearray | memoryview]:
    """Each is overwritten when the next one is asked for."""
    for table in (_PLAIN, _JSON, _PERCENT, _HTML, _HEX, _HEX_UPPER):
        form = bytearray().join([table[byte] for byte in key])  # allocated once, at its full size
        yield form
        if table is _PLAIN and len(form) >= _EDGES_FROM:
            # 16 at the front, since providers' fixed beginnings are up to 12 characters long.
            yield from (memoryview(form)[:16], memoryview(form)[-12:])
        form[:] = bytes(len(form))
    # The part of the base64 text that no neighbouring byte changes, at the three alignments.
    for shift, lost in ((0, 0), (1, 2), (2, 3)):
        whole = (shift + len(key)) * 8 // 6
        padded = bytearray().join((bytes(shift), key))
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            encoded = encode(padded)
            yield memoryview(encoded)[lost:whole]
            _wipe(encoded)
        padded[:] = bytes(len(padded))


def _wipe(fresh: bytes) -> None:
    """Overwrite a `bytes` object that nothing else refers to."""
    ctypes.memset(id(fresh) + bytes.__basicsize__ - 1, 0, len(fresh))
