"""The vault as a whole: made, opened, changed. Composes the file, the TPM and the cryptography."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

from . import crypto, document, entries, levels, policy, store, tokens
from .document import Approval, Document, Header, SealedTo
from .errors import Fault, VaultError
from .tpm import PAYLOAD, SRK, Facts, StorageKey, Tpm, sealed_public

_WRAP_INFO = b"vault/kek"
_DATA_INFO = b"vault/data"


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


@dataclass(slots=True)
class Opened:
    """An authenticated vault: its document, its key-encryption key, its plaintext."""

    document: Document
    kek: bytearray
    plain: bytearray

    def entries(self) -> dict[str, memoryview]:
        """Names and values, as views into `plain`."""
        try:
            return entries.read(memoryview(self.plain))
        except ValueError:
            raise VaultError(Fault.TAMPERED, "the plaintext is malformed") from None

    def wipe(self) -> None:
        """Overwrite what is secret."""
        crypto.wipe(self.kek, self.plain)


def create(
    directory: int, tpm: Tpm, pcrs: Sequence[int], *, software_allowed: bool, secure_boot: bool
) -> Header:
    """Make a vault bound to the present values of `pcrs`, holding a fresh token signing key only.

    Raises VAULT_EXISTS, SOFTWARE_TPM, PCR_BANK_MISSING, OWNER_AUTH_SET and TPM errors.
    """
    if store.exists(directory):
        raise VaultError(Fault.VAULT_EXISTS)
    facts = tpm.facts()
    if facts.software and not software_allowed:
        raise VaultError(Fault.SOFTWARE_TPM)
    key = tpm.ensure_storage_key()
    pcrs = sorted(set(pcrs))
    values = tuple(tpm.read_pcrs(pcrs, key, software=facts.software))
    signer, point = policy.new_key()
    digest = policy.policy_pcr(pcrs, values)
    r, s = policy.approve(signer, digest)
    kek = crypto.random_key()
    payload = kek + signer.private_numbers().private_value.to_bytes(PAYLOAD - len(kek), "big")
    signing = crypto.random_key()
    plain = bytearray()
    try:
        priv, pub = tpm.seal(key, payload, policy.policy_authorize(point))
        header = Header(
            id=os.urandom(16).hex(),
            gen=0,  # the first commit makes it 1
            date=_now(),
            level=levels.level(software=facts.software, pcrs=pcrs, secure_boot=secure_boot).code,
            keys=(tokens.public_key(signing),),
            tpm=SealedTo(
                identity=facts.identity[:80],
                ek="unchecked",
                srk=SRK,
                srk_name=key.name,
                priv=priv,
                pub=pub,
                pol_pub=point,
                pcrs=tuple(pcrs),
                wrap_nonce=bytes(crypto.NONCE),
                wrap=bytes(crypto.KEY + crypto.TAG),
                approvals=(Approval("enrolment", 1, values, digest, r, s),),
            ),
        )
        check_sealed(header)
        values_of = {entries.SIGNING_KEY: memoryview(signing)}
        plain = bytearray(entries.size_of(values_of))
        entries.write(values_of, memoryview(plain))
        return _commit(directory, header, kek, plain)
    finally:
        crypto.wipe(kek, payload, signing, plain)


def change(directory: int, opened: Opened, values: dict[str, memoryview]) -> Header:
    """Commit `values` as the new contents. Raises VAULT_FULL, VAULT_UNWRITABLE."""
    if entries.size_of(values) > document.FILE_MAX:
        raise VaultError(Fault.VAULT_FULL)
    plain = bytearray(entries.size_of(values))
    try:
        entries.write(values, memoryview(plain))
        return _commit(directory, opened.document.header, opened.kek, plain)
    finally:
        crypto.wipe(plain)


def _commit(directory: int, header: Header, kek: bytearray, plain: bytearray) -> Header:
    """Encrypt under a fresh master key and replace the file; generation + 1."""
    vmk = crypto.random_key()
    wrapping = crypto.derive(kek, _WRAP_INFO)
    data_key = crypto.derive(vmk, _DATA_INFO)
    try:
        wrap_nonce, nonce = os.urandom(crypto.NONCE), os.urandom(crypto.NONCE)
        wrap = crypto.seal(wrapping, wrap_nonce, vmk, header.id.encode())
        header = document.renewed(
            header,
            gen=header.gen + 1,
            date=_now(),
            tpm=document.rewrapped(header.tpm, wrap_nonce, wrap),
        )
        data = crypto.seal(data_key, nonce, plain, header.canonical())
    finally:
        crypto.wipe(vmk, wrapping, data_key)
    store.commit(directory, Document(header, nonce, data).to_bytes())
    return header


def load(directory: int) -> Document:
    """The document, parsed and not yet authenticated. Raises VAULT_ABSENT, TAMPERED."""
    return document.parse(store.read(directory))


def open_vault(directory: int, tpm: Tpm) -> Opened:
    """Unseal, authenticate and decrypt the vault. The caller wipes the result.

    Raises the faults of `unseal_kek`; TAMPERED if the header or the data were changed.
    """
    doc = load(directory)
    kek = unseal_kek(doc.header, tpm)
    plain = bytearray(len(doc.data) - crypto.TAG)
    try:
        decrypt_into(doc, kek, plain)
    except BaseException:
        crypto.wipe(kek, plain)
        raise
    return Opened(doc, kek, plain)


def unseal_kek(header: Header, tpm: Tpm) -> bytearray:
    """The key-encryption key from the TPM.

    Raises TPM_CLEARED, TPM_CHANGED, PCR_CHANGED, PCR_UNSTABLE, PCR_BANK_MISSING, TAMPERED.
    """
    check_sealed(header)
    sealed = header.tpm
    key = tpm.storage_key(sealed.srk_name)
    approval = matching_approval(header, tpm, key, tpm.facts())
    payload = bytearray(PAYLOAD)
    try:
        tpm.unseal(key, (sealed.priv, sealed.pub), sealed.pol_pub, sealed.pcrs, approval, payload)
        return payload[: crypto.KEY]
    finally:
        crypto.wipe(payload)


def decrypt_into(doc: Document, kek: bytearray, out: bytearray) -> None:
    """Authenticate header and data and decrypt the data into `out`. Raises TAMPERED."""
    header = doc.header
    wrapping = crypto.derive(kek, _WRAP_INFO)
    vmk = bytearray(crypto.KEY)
    data_key = bytearray()
    try:
        crypto.open_into(wrapping, header.tpm.wrap_nonce, header.tpm.wrap, header.id.encode(), vmk)
        data_key = crypto.derive(vmk, _DATA_INFO)
        crypto.open_into(data_key, doc.nonce, doc.data, header.canonical(), out)
    except crypto.ForgedError:
        raise VaultError(Fault.TAMPERED, "header or data do not fit the key") from None
    finally:
        crypto.wipe(wrapping, vmk, data_key)


def check_sealed(header: Header) -> None:
    """What can be checked of the sealed object without the TPM. Raises TAMPERED.

    Nothing here is a secret check: it gives a clear error before the TPM's unspecific one.
    """
    sealed = header.tpm
    unique = sealed.pub[-32:]
    if sealed.pub != sealed_public(policy.policy_authorize(sealed.pol_pub), unique):
        raise VaultError(Fault.TAMPERED, "the sealed object is not bound to the policy key")
    if sealed.srk != SRK:
        raise VaultError(Fault.TAMPERED, "another storage root key handle")
    for approval in sealed.approvals:
        if approval.digest != policy.policy_pcr(sealed.pcrs, approval.pcr):
            raise VaultError(Fault.TAMPERED, "an approval does not fit its PCR values")
        if not policy.is_approved(sealed.pol_pub, approval.digest, approval.r, approval.s):
            raise VaultError(Fault.TAMPERED, "an approval has no valid signature")


def matching_approval(header: Header, tpm: Tpm, key: StorageKey, facts: Facts) -> Approval:
    """The approval for the present PCR values. Raises PCR_CHANGED, naming old and new values."""
    sealed = header.tpm
    found = tuple(tpm.read_pcrs(sealed.pcrs, key, software=facts.software))
    for approval in sealed.approvals:
        if approval.pcr == found:
            return approval
    changes = [
        f"PCR {pcr}: {old.hex()} -> {new.hex()}"
        for pcr, old, new in zip(sealed.pcrs, sealed.approvals[-1].pcr, found, strict=True)
        if old != new
    ]
    raise VaultError(Fault.PCR_CHANGED, ", ".join(changes))
