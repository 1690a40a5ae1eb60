"""How the master key is kept: sealed to a TPM together with K_pol, or (T0) under a key file.

`Sealing` is what a commit needs. Making one is an enrolment: fresh keys, a fresh sealed object and
a fresh rollback counter, which nothing refers to until a commit writes the file that names them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from . import approvals, crypto, pin, policy, store
from .commands import Entity
from .counter import Counter, State, discard, other, state
from .errors import Fault, VaultError
from .header import Approval, Header, KeyFile, Nv, Pin, SealedTo, Wrap
from .tpm import PAYLOAD, SRK, Tpm, sealed_policy, sealed_template

_WRAP_INFO = b"vault/kek"
_NO_WRAP = Wrap(bytes(crypto.NONCE), bytes(crypto.KEY + crypto.TAG))


@dataclass(slots=True)
class Sealing:
    """The key that wraps the master key; with a TPM also K_pol's private scalar and the counter."""

    wrapping: bytearray
    scalar: bytearray = field(default_factory=bytearray)
    tpm: Tpm | None = None
    key: Entity | None = None

    def wipe(self) -> None:
        """Overwrite what is secret."""
        crypto.wipe(self.wrapping, self.scalar)

    def signed(self, header: Header, vmk: bytearray) -> Header:
        """`header` with the master key wrapped and its approvals signed for its generation."""
        nonce = os.urandom(crypto.NONCE)
        wrap = Wrap(nonce, crypto.seal(self.wrapping, nonce, vmk, header.id.encode()))
        if header.file is not None:
            return dataclasses.replace(header, file=KeyFile(header.file.kid, wrap))
        if header.tpm is None:
            return header
        sealed = approvals.signed(header.tpm, policy.load_key(self.scalar), header.gen)
        return dataclasses.replace(header, tpm=dataclasses.replace(sealed, wrap=wrap))

    def unwrap(self, header: Header) -> bytearray:
        """The master key. Raises TAMPERED."""
        wrap = header.tpm.wrap if header.tpm else header.file.wrap if header.file else _NO_WRAP
        vmk = bytearray(crypto.KEY)
        try:
            crypto.open_into(self.wrapping, wrap.nonce, wrap.ct, header.id.encode(), vmk)
        except crypto.ForgedError:
            raise VaultError(Fault.TAMPERED, "header or data do not fit the key") from None
        return vmk

    def committed(self, header: Header) -> None:
        """The file is written: move the counter to it, and undefine a counter left over.

        Raises TPM_FAULT if the counter did not move; the file is valid all the same, and whoever
        opens it next moves the counter.
        """
        if header.tpm is None or header.tpm.nv is None or self.tpm is None or self.key is None:
            return
        nv = header.tpm.nv
        moving = Counter(self.tpm, self.key, nv.index, header.tpm.pol_pub)
        moving.advance(policy.load_key(self.scalar), header.gen + nv.base)
        # A leftover does no harm; with an owner password set later it stays until that is gone.
        try:
            discard(self.tpm, other(header.id, nv.index))
        except VaultError as error:
            if error.fault is not Fault.OWNER_AUTH_SET:
                raise


def _wrapping(kek: bytearray, stretched: pin.Stretched | None) -> bytearray:
    """The wrapping key: from the KEK, and from the PIN where there is one."""
    both = kek + stretched.mixed if stretched else bytearray(kek)
    try:
        return crypto.derive(both, _WRAP_INFO)
    finally:
        crypto.wipe(both)


@dataclass(frozen=True, slots=True)
class Boot:
    """What an enrolment is for: storage root key, bound and wanted PCRs, approvals unsigned."""

    key: Entity
    pcrs: tuple[int, ...]
    wanted: tuple[int, ...]
    approvals: tuple[Approval, ...]


def boot_now(tpm: Tpm, key: Entity, pcrs: Sequence[int], wanted: Sequence[int], note: str) -> Boot:
    """The state that is booted now. Raises PCR_BANK_MISSING."""
    pcrs = tuple(sorted(set(pcrs)))
    values = tpm.read_pcrs(pcrs, key, software=tpm.facts().software)
    now = approvals.unsigned(note, approvals.CURRENT, values)
    return Boot(key, pcrs, tuple(sorted(set(wanted))), (now,))


def enrol(
    tpm: Tpm, header: Header, boot: Boot, new_pin: bytearray | None
) -> tuple[Sealing, Header]:
    """Fresh KEK, K_pol, sealed object and counter: what the next commit of `header` writes.

    Raises NV_FULL, NV_TAMPERED, OWNER_AUTH_SET.
    """
    key = boot.key  # whose name was compared, and that is not asked for again
    signer, point = policy.new_key()
    kek = crypto.random_key()
    scalar = bytearray(signer.private_numbers().private_value.to_bytes(PAYLOAD - len(kek), "big"))
    payload = kek + scalar
    parameters = pin.fresh() if new_pin else None
    stretched = pin.stretch(new_pin, parameters) if new_pin and parameters else None
    try:
        priv, pub = tpm.seal(key, payload, point, stretched.auth if stretched else None)
        index = other(header.id, header.tpm.nv.index if header.tpm and header.tpm.nv else None)
        value = Counter(tpm, key, index, point).define(signer)
        sealed = SealedTo(
            identity=tpm.facts().identity[:80],
            ek=tpm.endorsement(),
            srk=SRK,
            srk_name=key.name,
            priv=priv,
            pub=pub,
            pol_pub=point,
            nv=Nv(index, value + 1 - (header.gen + 1)),
            pcrs=boot.pcrs,
            wanted=boot.wanted,
            wrap=_NO_WRAP,
            approvals=boot.approvals,
        )
        made = dataclasses.replace(header, tpm=sealed, file=None, pin=parameters)
        check_sealed(made)
        return Sealing(_wrapping(kek, stretched), scalar, tpm, key), made
    except BaseException:
        crypto.wipe(scalar)
        raise
    finally:
        crypto.wipe(kek, payload)
        if stretched:
            stretched.wipe()


def withdraw(tpm: Tpm, made: Header, written: Header | None) -> None:
    """Undefine the counter of an enrolment whose file could not be written, if it was not."""
    counters = [header.tpm.pol_pub for header in (made, written) if header and header.tpm]
    if made.tpm and made.tpm.nv and len(set(counters)) == len(counters):
        discard(tpm, made.tpm.nv.index)


def enrol_file(directory: int, header: Header) -> tuple[Sealing, Header]:
    """A fresh key file: what the next commit of `header` names. Raises VAULT_UNWRITABLE."""
    kek = crypto.random_key()
    try:
        kid = hashlib.sha256(kek).hexdigest()[:16]
        store.write_key(directory, kid, kek)
        made = dataclasses.replace(header, tpm=None, file=KeyFile(kid, _NO_WRAP), pin=None)
        return Sealing(_wrapping(kek, None)), made
    finally:
        crypto.wipe(kek)


def open_file(directory: int, file: KeyFile) -> Sealing:
    """The sealing of a vault with a key file. Raises KEY_FILE_MISSING."""
    kek = bytearray(crypto.KEY)
    try:
        store.read_key(directory, file.kid, kek)
        if hashlib.sha256(kek).hexdigest()[:16] != file.kid:
            raise VaultError(Fault.KEY_FILE_MISSING, "another key")
        return Sealing(_wrapping(kek, None))
    finally:
        crypto.wipe(kek)


def check_sealed(header: Header) -> SealedTo:
    """What can be checked of the sealed object without the TPM. Raises TAMPERED.

    Nothing here is a secret check: it gives a clear error before the TPM's unspecific one.
    """
    sealed = header.tpm
    if sealed is None:
        raise VaultError(Fault.TAMPERED, "there is no sealed object")
    has_pin = header.pin is not None
    unique = sealed.pub[-32:]
    template = sealed_template(sealed_policy(sealed.pol_pub, pin=has_pin), unique, pin=has_pin)
    if sealed.pub[2:] != template or int.from_bytes(sealed.pub[:2], "big") != len(template):
        raise VaultError(Fault.TAMPERED, "the sealed object is not bound to the policy key")
    if sealed.srk != SRK:
        raise VaultError(Fault.TAMPERED, "another storage root key handle")
    return sealed


@dataclass(frozen=True, slots=True)
class Standing:
    """The counter of an open vault, its value, and how the file stands to it."""

    counter: Counter
    value: int
    expected: int

    @property
    def state(self) -> State:
        """The row of the table."""
        return state(self.expected, self.value)

    def still(self) -> bool:
        """Whether the counter is where it was."""
        return self.counter.read() == self.value

    def check(self) -> None:
        """Raises ROLLBACK, COUNTER_BEHIND."""
        if self.state in (State.ROLLBACK, State.BEHIND):
            fault = Fault.ROLLBACK if self.state is State.ROLLBACK else Fault.COUNTER_BEHIND
            raise VaultError(fault, f"the file expects {self.expected}, the TPM says {self.value}")


def standing(header: Header, tpm: Tpm, key: Entity) -> Standing | None:
    """How the file stands to its counter; None in version 1. Raises NV_MISSING, NV_TAMPERED."""
    sealed = header.tpm
    if sealed is None or sealed.nv is None:
        return None
    found = Counter(tpm, key, sealed.nv.index, sealed.pol_pub)
    return Standing(found, found.read(), header.gen + sealed.nv.base)


def unseal(
    header: Header,
    tpm: Tpm,
    key: Entity,
    approval: Approval,
    stand: Standing | None,
    typed_pin: bytearray | None,
) -> Sealing:
    """Open the sealed object. Raises the faults of `Tpm.unseal`, PIN_NEEDED."""
    sealed = check_sealed(header)
    stretched = _stretched(header.pin, typed_pin)
    bound = None
    if stand is not None and sealed.nv is not None:
        bound = (stand.counter.entity(), approval.gen + sealed.nv.base)
    payload = bytearray(PAYLOAD)
    try:
        auth = stretched.auth if stretched else None
        tpm.unseal(key, sealed, approval, bound, auth, payload)
        kek = payload[: crypto.KEY]
        try:
            return Sealing(_wrapping(kek, stretched), payload[crypto.KEY :], tpm, key)
        finally:
            crypto.wipe(kek)
    finally:
        crypto.wipe(payload)
        if stretched:
            stretched.wipe()


def _stretched(parameters: Pin | None, typed: bytearray | None) -> pin.Stretched | None:
    if parameters is None:
        return None
    if typed is None:
        raise VaultError(Fault.PIN_NEEDED)
    return pin.stretch(typed, parameters)
