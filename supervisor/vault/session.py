"""TPM sessions in pure Python: salting, HMAC and parameter encryption (TPM 2.0 part 1, 17-21).

The salt travels encrypted to a key whose name was compared first (ECDH P-256 or RSA-OAEP), so who
listens on the bus can neither read an encrypted parameter nor forge an answer.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

try:
    from cryptography.hazmat.decrepit.ciphers.modes import CFB
except ImportError:  # Debian 12's 38.0 has it where it always was
    from cryptography.hazmat.primitives.ciphers.modes import CFB

from . import crypto
from .commands import DECRYPT, ENCRYPT, SHA256, sized
from .errors import Fault, VaultError

NONCE = 32
_CONTINUE = 0x01
_RSA, _ECC, _NULL, _P256 = 0x0001, 0x0023, 0x0010, 0x0003


def kdfa(key: bytes | bytearray, label: bytes, first: bytes, second: bytes, bits: int) -> bytearray:
    """KDFa (part 1, 11.4.10.2): SP 800-108 in counter mode over HMAC-SHA256."""
    made = bytearray()
    counter = 0
    while len(made) * 8 < bits:
        counter += 1
        text = struct.pack("!I", counter) + label + b"\0" + first + second + struct.pack("!I", bits)
        made += hmac.digest(key, text, "sha256")
    return made[: bits // 8]


def kdfe(shared: bytes, label: bytes, first: bytes, second: bytes) -> bytearray:
    """KDFe (part 1, 11.4.10.3): SP 800-56A with SHA-256, 256 bits."""
    text = struct.pack("!I", 1) + shared + label + b"\0" + first + second
    return bytearray(hashlib.sha256(text).digest())


class Reader:
    """Reads a marshalled structure front to back. Raises ValueError where it ends too early."""

    def __init__(self, data: bytes | bytearray) -> None:
        self._data = bytes(data)
        self._at = 0

    def take(self, count: int) -> bytes:
        part = self._data[self._at : self._at + count]
        if len(part) != count:
            raise ValueError("a structure of the TPM is cut short")
        self._at += count
        return part

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def sized(self) -> bytes:
        return self.take(self.number(2))

    def rest(self) -> bytes:
        return self.take(len(self._data) - self._at)


def salt(public: bytes) -> tuple[bytearray, bytes]:
    """A fresh salt and its encrypted form for the storage key with this TPMT_PUBLIC.

    Raises TPM_FAULT for a key that is neither P-256 nor RSA with SHA-256 names.
    """
    try:
        reader = Reader(public)
        kind, name_algorithm = reader.number(2), reader.number(2)
        reader.take(4)
        reader.sized()
        if reader.number(2) != _NULL:
            reader.take(4)
        scheme = reader.number(2)
        if name_algorithm != SHA256 or scheme != _NULL:
            raise ValueError("of another form")
        if kind == _ECC:
            if (reader.number(2), reader.number(2)) != (_P256, _NULL):
                raise ValueError("of another curve")
            return _salt_ecc(reader.sized(), reader.sized())
        if kind == _RSA:
            reader.take(2)
            exponent = reader.number(4) or 65537
            return _salt_rsa(int.from_bytes(reader.sized(), "big"), exponent)
        raise ValueError("of another kind")
    except ValueError as error:
        raise VaultError(Fault.TPM_FAULT, "the storage root key cannot take a salt") from error


def _salt_ecc(x: bytes, y: bytes) -> tuple[bytearray, bytes]:
    key = ec.EllipticCurvePublicNumbers(
        int.from_bytes(x, "big"), int.from_bytes(y, "big"), ec.SECP256R1()
    ).public_key()
    ephemeral = ec.generate_private_key(ec.SECP256R1())
    numbers = ephemeral.public_key().public_numbers()
    own = [part.to_bytes(32, "big") for part in (numbers.x, numbers.y)]
    shared = ephemeral.exchange(ec.ECDH(), key)
    secret = kdfe(shared, b"SECRET", own[0], x)
    crypto.wipe(shared)
    return secret, sized(own[0]) + sized(own[1])


def _salt_rsa(modulus: int, exponent: int) -> tuple[bytearray, bytes]:
    key = rsa.RSAPublicNumbers(exponent, modulus).public_key()
    secret = crypto.random_key()
    frozen = bytes(secret)
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), b"SECRET\0")
    sealed = key.encrypt(frozen, oaep)
    crypto.wipe(frozen)
    return secret, sealed


class Session:
    """One session: its key, its two nonces, and what they make of a command and a response."""

    def __init__(self, handle: int, salted: bytearray, caller: bytes, tpm: bytes) -> None:
        self.handle = handle
        self.attributes = _CONTINUE
        self.nonce_tpm = tpm
        self._nonce_caller = caller
        self._key = kdfa(salted, b"ATH", tpm, caller, 256)

    def wipe(self) -> None:
        """Overwrite the key."""
        crypto.wipe(self._key)

    def seal_command(
        self, code: int, names: bytes, parameters: bytearray, auth: bytearray | bytes
    ) -> bytes:
        """Encrypt the first parameter in place where DECRYPT is set; returns TPMS_AUTH_COMMAND."""
        self._nonce_caller = os.urandom(NONCE)
        key = self._key + auth
        try:
            if self.attributes & DECRYPT:
                self._crypt(key, parameters, self._nonce_caller, self.nonce_tpm, encrypt=True)
            digest = hashlib.sha256(struct.pack("!I", code) + names + parameters).digest()
            nonces = self._nonce_caller, self.nonce_tpm
            mac = self._mac(key, digest, *nonces, self.attributes)
        finally:
            crypto.wipe(key)
        head = struct.pack("!I", self.handle) + sized(self._nonce_caller)
        return head + bytes([self.attributes]) + sized(mac)

    def open_response(
        self, code: int, parameters: bytearray, area: bytes, auth: bytearray | bytes
    ) -> None:
        """Check TPMS_AUTH_RESPONSE, then decrypt the first parameter in place.

        Raises TPM_FAULT if the answer was changed on its way.
        """
        reader = Reader(area)
        nonce, attributes, mac = reader.sized(), reader.number(1), reader.sized()
        key = self._key + auth
        try:
            digest = hashlib.sha256(struct.pack("!II", 0, code) + parameters).digest()
            # The TPM's own attributes: it adds AUDITEXCLUSIVE to what was asked for.
            expected = self._mac(key, digest, nonce, self._nonce_caller, attributes)
            if not hmac.compare_digest(mac, expected):
                raise VaultError(Fault.TPM_FAULT, "the answer was changed on its way")
            self.nonce_tpm = nonce
            if self.attributes & ENCRYPT:
                self._crypt(key, parameters, nonce, self._nonce_caller, encrypt=False)
        finally:
            crypto.wipe(key)

    @staticmethod
    def _mac(key: bytearray, digest: bytes, newer: bytes, older: bytes, attributes: int) -> bytes:
        return hmac.digest(key, digest + newer + older + bytes([attributes]), "sha256")

    @staticmethod
    def _crypt(
        key: bytearray, parameters: bytearray, newer: bytes, older: bytes, *, encrypt: bool
    ) -> None:
        """AES-128-CFB over the first TPM2B, in place (part 1, 21.3)."""
        size = int.from_bytes(parameters[:2], "big")
        if 2 + size > len(parameters):
            raise ValueError("the first parameter is cut short")
        made = kdfa(key, b"CFB", newer, older, 256)
        frozen = bytes(made[:16])
        cipher: Any = Cipher(algorithms.AES(frozen), CFB(bytes(made[16:])))
        stream = cipher.encryptor() if encrypt else cipher.decryptor()
        out = bytearray(size + 15)
        try:
            stream.update_into(memoryview(parameters)[2 : 2 + size], out)
            parameters[2 : 2 + size] = memoryview(out)[:size]
        finally:
            crypto.wipe(made, frozen, out)
