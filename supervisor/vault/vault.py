"""The vault as a whole: made, opened, changed, recovered. Composes file, sealing and keys."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from . import approvals, crypto, document, entries, policy, recovery, sealing, store, tokens
from .commands import TpmError
from .counter import State
from .document import Document
from .errors import Fault, VaultError
from .header import VERSION, Header, KeyFile
from .sealing import Boot, Sealing
from .tpm import Tpm

_DATA_INFO = b"vault/data"


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


@dataclass(slots=True)
class Opened:
    """An authenticated vault: its header (with the approvals still wanted), sealing, plaintext.

    `sealing` is None where a recovery key opened it: such a vault can be read, and enrolled anew.
    """

    directory: int
    header: Header
    plain: bytearray
    sealing: Sealing | None
    pin: bytearray | None = None

    @property
    def tpm(self) -> Tpm | None:
        """The TPM that opened it."""
        return self.sealing.tpm if self.sealing else None

    def entries(self) -> dict[str, memoryview]:
        """Names and values, as views into `plain`."""
        try:
            return entries.read(memoryview(self.plain))
        except ValueError:
            raise VaultError(Fault.TAMPERED, "the plaintext is malformed") from None

    def wipe(self) -> None:
        """Overwrite what is secret."""
        crypto.wipe(self.plain, self.pin or b"")
        if self.sealing:
            self.sealing.wipe()


def load(directory: int) -> Document:
    """The document, parsed and not yet authenticated. Raises VAULT_ABSENT, TAMPERED."""
    return document.parse(store.read(directory))


def _decrypt(doc: Document, vmk: bytearray) -> bytearray:
    """Authenticate header and data and decrypt the data. Raises TAMPERED."""
    plain = bytearray(len(doc.data) - crypto.TAG)
    data_key = crypto.derive(vmk, _DATA_INFO)
    try:
        crypto.open_into(data_key, doc.nonce, doc.data, doc.authenticated, plain)
    except crypto.ForgedError:
        raise VaultError(Fault.TAMPERED, "header or data do not fit the key") from None
    finally:
        crypto.wipe(data_key)
    return plain


def _unwrapped(doc: Document, kept: Sealing) -> bytearray:
    vmk = kept.unwrap(doc.header)
    try:
        return _decrypt(doc, vmk)
    finally:
        crypto.wipe(vmk)


def open_by_file(directory: int, doc: Document, file: KeyFile) -> Opened:
    """Open a vault of level T0 with its key file. Raises KEY_FILE_MISSING, TAMPERED."""
    kept = sealing.open_file(directory, file)
    try:
        return Opened(directory, doc.header, _unwrapped(doc, kept), kept)
    except BaseException:
        kept.wipe()
        raise


def open_by_tpm(
    directory: int, doc: Document, tpm: Tpm, *, pinned: bytes | None, pin: bytearray | None
) -> Opened:
    """Unseal, authenticate and decrypt the vault; roll the counter forward where it is behind.

    Raises TPM_CLEARED, TPM_CHANGED, NV_MISSING, NV_TAMPERED, ROLLBACK, COUNTER_BEHIND, PCR_CHANGED,
    PCR_UNSTABLE, PCR_BANK_MISSING, PIN_NEEDED, PIN_WRONG, DA_LOCKOUT; TAMPERED if the header or the
    data were changed.
    """
    header = doc.header
    sealed = sealing.check_sealed(header)
    approvals.check(sealed)
    key = tpm.storage_key(sealed.srk_name, pinned)
    stand = sealing.standing(header, tpm, key)
    if stand:
        stand.check()
    values = tpm.read_pcrs(sealed.pcrs, key, software=tpm.facts().software)
    approval = approvals.matching(sealed, values)
    kept = sealing.unseal(header, tpm, key, approval, stand, pin)
    try:
        plain = _unwrapped(doc, kept)
        # Two who rolled forward at once would push the counter past the file.
        pending = stand is not None and stand.state is State.PENDING
        if stand and pending and store.lock_alone(directory) and stand.still():
            stand.counter.advance(policy.load_key(kept.scalar), stand.expected)
    except BaseException:
        kept.wipe()
        raise
    sealed = dataclasses.replace(sealed, approvals=approvals.wanted(sealed, approval))
    kept_pin = bytearray(pin) if pin else None
    return Opened(directory, dataclasses.replace(header, tpm=sealed), plain, kept, kept_pin)


def open_by_recovery(directory: int, doc: Document, key: X25519PrivateKey) -> Opened:
    """Open the vault without the TPM. Whether the file is the newest nothing here can tell.

    Raises RECOVERY_ABSENT, RECOVERY_CODE_WRONG, TAMPERED.
    """
    vmk = recovery.unwrap(doc.header.recovery, key, doc.header.id)
    try:
        return Opened(directory, doc.header, _decrypt(doc, vmk), None)
    finally:
        crypto.wipe(vmk)


def check_fresh(header: Header, tpm: Tpm | None, *, stale_accepted: bool) -> None:
    """Raises ROLLBACK if the counter says that the file is old, RECOVERY_STALE if nothing tells."""
    if stale_accepted:
        return
    try:
        if tpm is not None and header.tpm is not None:
            key = tpm.storage_key(header.tpm.srk_name)
            if stand := sealing.standing(header, tpm, key):
                stand.check()
                return
    except TpmError as error:
        raise VaultError(Fault.RECOVERY_STALE, str(error)) from None
    except VaultError as error:
        if error.fault is Fault.ROLLBACK:
            raise
        raise VaultError(Fault.RECOVERY_STALE, error.fault.name) from None
    raise VaultError(Fault.RECOVERY_STALE)


def commit(directory: int, header: Header, kept: Sealing, plain: bytearray) -> Header:
    """Encrypt under a fresh master key, replace the file, move the counter; generation + 1."""
    vmk = crypto.random_key()
    data_key = crypto.derive(vmk, _DATA_INFO)
    try:
        header = dataclasses.replace(header, v=VERSION, gen=header.gen + 1, date=_now())
        header = kept.signed(header, vmk)
        recipients = tuple(recovery.wrapped(r, vmk, header.id) for r in header.recovery)
        header = dataclasses.replace(header, recovery=recipients)
        authenticated = document.canonical(header)
        nonce = os.urandom(crypto.NONCE)
        data = crypto.seal(data_key, nonce, plain, authenticated)
    finally:
        crypto.wipe(vmk, data_key)
    raw = Document(header, nonce, data, authenticated).to_bytes()
    document.parse(raw)  # what could not be read again is not written
    store.commit(directory, raw)
    kept.committed(header)
    store.remove_keys(directory, header.file.kid if header.file else None)
    return header


@contextlib.contextmanager
def _enrolled(
    opened: Opened, header: Header, tpm: Tpm | None, boot: Boot | None, pin: bytearray | None
) -> Iterator[tuple[Sealing, Header]]:
    """A fresh sealing for one commit; what it left in the TPM is withdrawn if that fails early."""
    if tpm is None or boot is None:
        kept, made = sealing.enrol_file(opened.directory, header)
    else:
        kept, made = sealing.enrol(tpm, header, boot, pin)
    try:
        yield kept, made
    except VaultError as error:
        if error.fault in (Fault.VAULT_UNWRITABLE, Fault.VAULT_FULL) and tpm is not None:
            written = load(opened.directory).header if store.exists(opened.directory) else None
            sealing.withdraw(tpm, made, written)
        raise
    finally:
        kept.wipe()


def reenrol(
    opened: Opened,
    header: Header,
    *,
    tpm: Tpm | None,
    boot: Boot | None,
    pin: bytearray | None = None,
    values: dict[str, memoryview] | None = None,
) -> Header:
    """Commit with everything fresh: KEK, K_pol, sealed object, counter (or key file, without TPM).

    Raises VAULT_FULL, VAULT_UNWRITABLE and the faults of `sealing.enrol`.
    """
    with _enrolled(opened, header, tpm, boot, pin) as (kept, made):
        return _write(opened, made, kept, values)


def change(
    opened: Opened, header: Header | None = None, values: dict[str, memoryview] | None = None
) -> Header:
    """Commit another header, other contents, or both. Raises VAULT_FULL, VAULT_UNWRITABLE.

    A file of version 1 gets a rollback counter (and with it all else that is sealed) on this way.
    """
    header = header or opened.header
    kept = opened.sealing
    if kept is None:
        raise VaultError(Fault.INTERNAL, "a vault opened by a recovery key cannot be changed")
    if header.tpm and header.tpm.nv is None and kept.key:
        boot = Boot(kept.key, header.tpm.pcrs, header.tpm.wanted, header.tpm.approvals)
        return reenrol(opened, header, tpm=kept.tpm, boot=boot, values=values)
    return _write(opened, header, kept, values)


def _write(
    opened: Opened, header: Header, kept: Sealing, values: dict[str, memoryview] | None
) -> Header:
    values = opened.entries() if values is None else values
    audit = bytearray()
    plain = bytearray()
    try:
        if entries.AUDIT_KEY not in values:
            audit = crypto.random_key()
            values = {**values, entries.AUDIT_KEY: memoryview(audit)}
            header = dataclasses.replace(header, audit=(tokens.public_key(audit),))
        if entries.size_of(values) > document.FILE_MAX:
            raise VaultError(Fault.VAULT_FULL)
        plain = bytearray(entries.size_of(values))
        entries.write(values, memoryview(plain))
        return commit(opened.directory, header, kept, plain)
    finally:
        crypto.wipe(plain, audit)


def blank(directory: int) -> Opened:
    """A vault that was never written, holding a fresh token signing key only."""
    signing = crypto.random_key()
    values = {entries.SIGNING_KEY: memoryview(signing)}
    try:
        plain = bytearray(entries.size_of(values))
        entries.write(values, memoryview(plain))
        header = Header(
            id=os.urandom(16).hex(),
            gen=0,  # the first commit makes it 1
            date=_now(),
            recovery_confirmed=False,
            pin=None,
            recovery=(),
            keys=(tokens.public_key(signing),),
            audit=(),
            trust=(),
            tpm=None,
            file=None,
        )
        return Opened(directory, header, plain, None)
    finally:
        crypto.wipe(signing)
