"""The TPM commands that the vault uses, as an interface with two implementations.

`raw.RawCommands` builds and checks the bytes itself; `esapi.EsapiCommands` goes through libtss2.
Both must do the same on the wire's far side: `tests/host/vault` runs each against the other.
Structures are passed marshalled as the specification has them (TPM 2.0 part 2), handles as what the
implementation likes.
"""

from __future__ import annotations

import hashlib
import struct
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

OWNER = 0x40000001
SHA256 = 0x000B
HMAC_SESSION, POLICY_SESSION = 0, 1
# TPMA_SESSION (part 2, 8.4); CONTINUESESSION is always set
DECRYPT, ENCRYPT, AUDIT = 0x20, 0x40, 0x80
UNSIGNED_LE = 9  # TPM_EO (part 2, 6.8)


class TpmError(Exception):
    """A TPM response code other than success."""

    def __init__(self, code: int) -> None:
        super().__init__(f"return code 0x{code:x}")
        self.code = code

    @property
    def kind(self) -> int:
        """The code without the number of the handle, session or parameter (part 2, 6.6.3)."""
        return self.code & 0xBF if self.code & 0x80 else self.code


@dataclass(frozen=True, slots=True)
class Entity:
    """Something in the TPM: the implementation's handle, its name, its public area."""

    handle: Any
    name: bytes
    public: bytes = b""


def sized(data: bytes | bytearray) -> bytes:
    """A TPM2B: the length and the data."""
    return struct.pack("!H", len(data)) + data


def name_of(public: bytes) -> bytes:
    """The name of a TPMT_PUBLIC or TPMS_NV_PUBLIC with SHA-256 names (part 1, 16)."""
    return struct.pack("!H", SHA256) + hashlib.sha256(public).digest()


class Commands(Protocol):
    """One connection to a TPM. Every method may raise TpmError or VaultError(TPM_FAULT)."""

    def properties(self, first: int, count: int) -> dict[int, int]:
        """TPM_PT values from `first` on, as far as this TPM knows them."""

    def persistent(self, handle: int) -> Entity:
        """A persistent key by ReadPublic. The name is computed here from the public area."""

    def create_persistent(self, template: bytes, handle: int) -> None:
        """CreatePrimary in the owner hierarchy from TPMT_PUBLIC, kept at `handle`."""

    def session(self, salt: Entity, kind: int, attributes: int) -> AbstractContextManager[Any]:
        """A session salted to `salt` with AES-128-CFB, flushed at the end."""

    def pcr_read(self, selection: bytes, session: Any) -> tuple[bytes, list[bytes]]:
        """PCR_Read: the selection returned and its digests."""

    def create(
        self, parent: Entity, template: bytes, payload: bytearray, auth: bytearray, session: Any
    ) -> tuple[bytes, bytes]:
        """Create a sealed object: (TPM2B_PRIVATE, TPM2B_PUBLIC)."""

    def load(self, parent: Entity, private: bytes, public: bytes) -> Entity:
        """Load an object from TPM2B_PRIVATE and TPM2B_PUBLIC."""

    def load_external(self, public: bytes) -> Entity:
        """Load a public key (TPMT_PUBLIC) in the owner hierarchy."""

    def flush(self, entity: Entity) -> None:
        """Flush a loaded object."""

    def verify(self, key: Entity, digest: bytes, signature: bytes) -> Any:
        """VerifySignature: the ticket."""

    def policy_pcr(self, session: Any, selection: bytes) -> None:
        """PolicyPCR over the present values."""

    def policy_nv(self, session: Any, index: Entity, operand: bytes) -> None:
        """PolicyNV: the index must hold at most `operand` (UNSIGNED_LE)."""

    def policy_auth_value(self, session: Any) -> None:
        """PolicyAuthValue."""

    def policy_digest(self, session: Any) -> bytes:
        """PolicyGetDigest."""

    def policy_authorize(
        self, session: Any, approved: bytes, ref: bytes, signer: bytes, ticket: Any
    ) -> None:
        """PolicyAuthorize."""

    def nonce(self, session: Any) -> bytes:
        """The nonce that the TPM gave last in `session`."""

    def policy_signed(self, session: Any, key: Entity, ref: bytes, signature: bytes) -> None:
        """PolicySigned over the session's nonce, without expiry."""

    def unseal(self, item: Entity, auth: bytearray, session: Any, out: bytearray) -> int:
        """Unseal into `out`; returns the size of the payload, which may be too large for `out`."""

    def nv(self, index: int) -> Entity:
        """An NV index by NV_ReadPublic. The name is computed here from the public area."""

    def nv_define(self, public: bytes) -> None:
        """NV_DefineSpace by the owner, from TPMS_NV_PUBLIC, without an authorisation value."""

    def nv_undefine(self, index: Entity) -> None:
        """NV_UndefineSpace by the owner."""

    def nv_increment(self, index: Entity, session: Any) -> None:
        """NV_Increment, authorised by the policy session."""

    def nv_read(self, index: Entity, session: Any) -> bytes:
        """NV_Read of 8 bytes."""

    def scrub(self) -> None:
        """Overwrite buffers of the implementation in which a secret may be left."""
