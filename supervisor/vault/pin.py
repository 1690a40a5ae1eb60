"""The PIN: stretched by scrypt (RFC 7914) into what the TPM asks for and what it never sees."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass

from . import crypto
from .errors import Fault, VaultError
from .header import Pin

LENGTH_MIN, LENGTH_MAX = 6, 64
_LOG_N = 15  # 32 MiB and about 0.1 s
_SALT = 16


@dataclass(slots=True)
class Stretched:
    """`auth` is the sealed object's authorisation value, `mixed` goes into the wrapping key.

    A TPM that is broken open gives the sealed payload, but not `mixed`.
    """

    auth: bytearray
    mixed: bytearray

    def wipe(self) -> None:
        """Overwrite both."""
        crypto.wipe(self.auth, self.mixed)


def fresh() -> Pin:
    """The parameters of a new PIN."""
    return Pin(salt=os.urandom(_SALT), log_n=_LOG_N)


def check(pin: bytearray) -> None:
    """Raises PIN_VALUE for what no PIN may be."""
    if not LENGTH_MIN <= len(pin) <= LENGTH_MAX or any(not 0x20 <= byte <= 0x7E for byte in pin):
        raise VaultError(Fault.PIN_VALUE)


def stretch(pin: bytearray, parameters: Pin) -> Stretched:
    """The two halves of a PIN."""
    both = hashlib.scrypt(
        pin, salt=parameters.salt, n=1 << parameters.log_n, r=8, p=1, maxmem=1 << 28, dklen=64
    )
    auth, mixed = bytearray(both[:32]), bytearray(both[32:])
    crypto.wipe(both)
    # A TPM strips trailing zeros of an authorisation value, and both sides must mean the same.
    auth[-1] |= 1
    return Stretched(auth, mixed)
