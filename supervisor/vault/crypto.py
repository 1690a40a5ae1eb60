"""The vault's symmetric cryptography, written so that plaintext lands only in buffers we can wipe.

The one-call ChaCha20Poly1305 of `cryptography` returns immutable copies of the plaintext and
leaves one more in freed memory. So RFC 8439 is composed from its two primitives here, with
`update_into` decrypting straight into the caller's buffer (the secret mapping, for `unlock`).
"""

from __future__ import annotations

import ctypes
import hmac
import os
import struct
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.poly1305 import Poly1305

KEY = 32
NONCE = 12
TAG = 16

Buffer = bytes | bytearray | memoryview


class ForgedError(Exception):
    """The tag does not fit: the ciphertext, its associated data or the key is another one."""


def wipe(*secrets: bytearray | bytes) -> None:
    """Overwrite secrets with zeros.

    `bytes` are wiped in place too: library calls return keys as `bytes`, and every one passed here
    is a fresh object that nothing else refers to. Never pass a literal or a short string.
    """
    for secret in secrets:
        if isinstance(secret, bytearray):
            secret[:] = bytes(len(secret))
        elif len(secret) > 1:  # CPython shares the empty and the one-byte objects
            ctypes.memset(id(secret) + bytes.__basicsize__ - 1, 0, len(secret))


def random_key() -> bytearray:
    """32 fresh random bytes from the kernel."""
    fresh = os.urandom(KEY)
    key = bytearray(fresh)
    wipe(fresh)
    return key


def derive(key: bytearray, info: bytes) -> bytearray:
    """HKDF-SHA256 (RFC 5869) without salt: 32 bytes of `key` for the use named by `info`."""
    extracted = hmac.digest(bytes(32), key, "sha256")
    expanded = hmac.digest(extracted, info + b"\x01", "sha256")
    derived = bytearray(expanded)
    wipe(extracted, expanded)
    return derived


def _start(key: bytearray, nonce: bytes) -> tuple[Any, bytearray]:
    """The key stream from block 1 on, and block 0 with the Poly1305 key (RFC 8439, 2.6)."""
    # cryptography refuses a bytearray key here; OpenSSL copies it, so this copy is wiped at once.
    frozen = bytes(key)
    stream: Any = Cipher(algorithms.ChaCha20(frozen, bytes(4) + nonce), mode=None).encryptor()
    block = bytearray(64)
    stream.update_into(bytes(64), block)
    wipe(frozen)
    return stream, block


def _tag(block: bytearray, aad: bytes, ciphertext: Buffer) -> Poly1305:
    one_time = bytes(block[:32])
    mac = Poly1305(one_time)
    wipe(one_time, block)
    for part in (aad, ciphertext):
        mac.update(bytes(part) + bytes(-len(part) % 16))
    mac.update(struct.pack("<QQ", len(aad), len(ciphertext)))
    return mac


def seal(key: bytearray, nonce: bytes, plaintext: Buffer, aad: bytes) -> bytes:
    """ChaCha20-Poly1305 (RFC 8439): ciphertext and tag. A nonce serves once per key."""
    stream, block = _start(key, nonce)
    ciphertext = bytearray(len(plaintext))
    stream.update_into(plaintext, ciphertext)
    return bytes(ciphertext) + _tag(block, aad, ciphertext).finalize()


def open_into(key: bytearray, nonce: bytes, sealed: bytes, aad: bytes, out: Buffer) -> int:
    """Check the tag, then decrypt into `out`; returns the length of the plaintext.

    Raises ForgedError before a byte is written.
    """
    if len(sealed) < TAG:
        raise ForgedError
    ciphertext, tag = sealed[:-TAG], sealed[-TAG:]
    stream, block = _start(key, nonce)
    try:
        _tag(block, aad, ciphertext).verify(tag)
    except InvalidSignature:
        raise ForgedError from None
    if ciphertext:
        stream.update_into(ciphertext, out)
    return len(ciphertext)
