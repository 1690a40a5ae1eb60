"""The rollback counter: an NV counter that only K_pol can move, one step per commit.

A file of generation g expects the value base + g. The file is written first and the counter moved
afterwards, so no crash locks anyone out; the file may be one step ahead (`PENDING`), and whoever
opens it next moves the counter. An older file put back is behind the counter, and the TPM itself
refuses its approvals.

A vault owns two NV handles, derived from its id. Re-enrolment makes the counter in the free one,
writes the file that names it, moves it, and undefines the other; what a crash leaves in the other
handle is recognised by its attributes and undefined by the next commit.
"""

from __future__ import annotations

import enum
import struct

from cryptography.hazmat.primitives.asymmetric import ec

from . import policy
from .commands import ENCRYPT, HMAC_SESSION, POLICY_SESSION, SHA256, Entity, TpmError, name_of
from .errors import Fault, VaultError
from .tpm import HANDLE_UNKNOWN, Tpm

FIRST, LAST = 0x01A00000, 0x01BFFFFF  # in the owner's range (TCG registry of reserved handles)
# TPMA_NV: POLICYWRITE | COUNTER | AUTHREAD | NO_DA; the TPM sets WRITTEN at the first increment
_ATTRIBUTES, _WRITTEN = 0x0204_0018, 0x2000_0000
_NV_SPACE, _NV_DEFINED = 0x14B, 0x14C


class State(enum.Enum):
    """How a file stands to the counter."""

    CURRENT = "current"
    PENDING = "pending"
    ROLLBACK = "rollback"
    BEHIND = "behind"


def state(expected: int, value: int) -> State:
    """The row of the table for a file that expects `expected` and a counter at `value`."""
    if expected == value:
        return State.CURRENT
    if expected == value + 1:
        return State.PENDING
    return State.ROLLBACK if expected < value else State.BEHIND


def handles(vault_id: str) -> tuple[int, int]:
    """The two NV handles of a vault."""
    first = FIRST + ((int(vault_id[:8], 16) << 1) & (LAST - FIRST))
    return first, first + 1


def other(vault_id: str, index: int | None) -> int:
    """The handle that is not `index`."""
    first, second = handles(vault_id)
    return second if index == first else first


def _public(index: int, point: bytes, *, written: bool) -> bytes:
    """TPMS_NV_PUBLIC of a counter that K_pol moves."""
    attributes = _ATTRIBUTES | (_WRITTEN if written else 0)
    bump = policy.policy_bump(point)
    head = struct.pack("!IHIH", index, SHA256, attributes, len(bump))
    return head + bump + struct.pack("!H", 8)


def name(index: int, point: bytes) -> bytes:
    """The TPM name of the counter after its first increment: it pins everything but the value."""
    return name_of(_public(index, point, written=True))


def _is_ours(public: bytes) -> bool:
    return (
        len(public) == 46
        and int.from_bytes(public[6:10], "big") & ~_WRITTEN == _ATTRIBUTES
        and public[-2:] == b"\0\x08"
    )


class Counter:
    """The counter at `index` that K_pol (its public point) moves."""

    def __init__(self, tpm: Tpm, key: Entity, index: int, point: bytes) -> None:
        self._tpm = tpm
        self._key = key
        self._index = index
        self._point = point

    def entity(self) -> Entity:
        """The index, if it is the one that was made. Raises NV_MISSING, NV_TAMPERED."""
        return self._found(written=True)

    def _found(self, *, written: bool) -> Entity:
        try:
            index = self._tpm.commands.nv(self._index)
        except TpmError as error:
            if error.kind == HANDLE_UNKNOWN:
                raise VaultError(Fault.NV_MISSING, f"index 0x{self._index:x}") from None
            raise
        if index.name != name_of(_public(self._index, self._point, written=written)):
            raise VaultError(Fault.NV_TAMPERED, f"index 0x{self._index:x}")
        return index

    def read(self) -> int:
        """The value, read in a session that the bus cannot forge.

        Raises NV_MISSING, NV_TAMPERED.
        """
        index = self.entity()
        with self._tpm.commands.session(self._key, HMAC_SESSION, ENCRYPT) as session:
            raw = self._tpm.commands.nv_read(index, session)
        if len(raw) != 8:
            raise VaultError(Fault.NV_TAMPERED, "the counter has another size")
        return int.from_bytes(raw, "big")

    def increment(self, signer: ec.EllipticCurvePrivateKey, *, first: bool = False) -> None:
        """Move the counter by one step (`first`: from nowhere to above every earlier counter)."""
        commands = self._tpm.commands
        index = self._found(written=not first)
        with commands.session(self._key, POLICY_SESSION, 0) as session:
            r, s = policy.sign(signer, policy.bump_hash(commands.nonce(session)))
            key = commands.load_external(policy.public_area(self._point))
            try:
                commands.policy_signed(session, key, policy.BUMP_REF, policy.signature(r, s))
            finally:
                commands.flush(key)
            commands.nv_increment(index, session)

    def advance(self, signer: ec.EllipticCurvePrivateKey, expected: int) -> None:
        """Increment to `expected` and read it back. Raises TPM_FAULT if it did not get there."""
        self.increment(signer)
        if (value := self.read()) != expected:
            raise VaultError(Fault.TPM_FAULT, f"the counter is at {value}, not {expected}")

    def define(self, signer: ec.EllipticCurvePrivateKey) -> int:
        """Make the counter, in place of a leftover of ours; its first value.

        Raises NV_FULL, OWNER_AUTH_SET, NV_TAMPERED (something else has the handle).
        """
        discard(self._tpm, self._index)
        try:
            with self._tpm.owner():
                self._tpm.commands.nv_define(_public(self._index, self._point, written=False))
        except TpmError as error:
            if error.code == _NV_SPACE:
                raise VaultError(Fault.NV_FULL) from None
            if error.code == _NV_DEFINED:
                detail = f"index 0x{self._index:x} belongs to something else"
                raise VaultError(Fault.NV_TAMPERED, detail) from None
            raise
        self.increment(signer, first=True)
        return self.read()


def discard(tpm: Tpm, index: int) -> None:
    """Undefine a counter of ours at `index`, if there is one; anything else stays."""
    try:
        found = tpm.commands.nv(index)
    except TpmError as error:
        if error.kind == HANDLE_UNKNOWN:
            return
        raise
    if _is_ours(found.public):
        with tpm.owner():
            tpm.commands.nv_undefine(found)
