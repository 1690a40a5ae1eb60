"""The TPM steps: storage root key, salted sessions, PCRs, seal and unseal. ESAPI, one thread.

Every session that carries a secret, or a value we trust, is salted to the storage root key whose
name was compared first: the bus in between is not trusted, and an unsalted session's key follows
from what is seen on it. Every object and session is flushed in `finally`.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

os.environ["TSS2_LOG"] = "all+none"  # before the import: libtss2 would log to stderr

from tpm2_pytss import types as tss  # type: ignore[import-untyped]
from tpm2_pytss._libtpm2_pytss import ffi  # type: ignore[import-untyped]
from tpm2_pytss.constants import (  # type: ignore[import-untyped]
    ESYS_TR,
    TPM2_ALG,
    TPM2_CAP,
    TPM2_SE,
    TPMA_SESSION,
)
from tpm2_pytss.ESAPI import ESAPI  # type: ignore[import-untyped]
from tpm2_pytss.TSS2_Exception import TSS2_Exception  # type: ignore[import-untyped]

from . import policy
from .document import Approval
from .errors import Fault, VaultError
from .transport import open_tcti

SRK = 0x81000001
PAYLOAD = 64  # KEK (32) | private scalar of K_pol (32)
_RETRIES = 5
_SOFTWARE_VENDORS = ("SW", "xCG fTPM")  # libtpms (swtpm); the reference simulator

# ECC P-256 storage key with AES-128-CFB: the template of the TCG provisioning guidance.
# FIXEDTPM | FIXEDPARENT | SENSITIVEDATAORIGIN | USERWITHAUTH | NODA | RESTRICTED | DECRYPT
_SRK_TEMPLATE = struct.pack(
    "!HHIHHHHHHHHH",
    *(0x0023, 0x000B, 0x0003_0472, 0),
    *(0x0006, 128, 0x0043, 0x0010, 0x0003, 0x0010),
    *(0, 0),
)
_SEALED_ATTRIBUTES = 0x0000_0412  # FIXEDTPM | FIXEDPARENT | NODA: no auth value opens it

# Properties (TPM 2.0 part 2, 6.13); tpm2_pytss 1.2.0 names only some of them.
_MANUFACTURER = 0x105
_VENDOR_STRING = 0x106  # and the next three
_FIRMWARE_VERSION = 0x10B
_PERMANENT = 0x200

_HANDLE_UNKNOWN = 0x18B  # format-one HANDLE, handle 1
_OWNER_BAD_AUTH = 0x9A2
_INTEGRITY = 0x1DF  # format-one INTEGRITY, parameter 1
_POLICY_FAIL = 0x99D
_PCR_CHANGED = 0x128
_LOCKOUT = 0x921
_IO_ERROR = 0xA000A


@dataclass(frozen=True, slots=True)
class Facts:
    """What a TPM says of itself."""

    manufacturer: str
    vendor: str
    firmware: str
    software: bool
    owner_auth_set: bool

    @property
    def identity(self) -> str:
        """One printable line."""
        return f"{self.manufacturer} {self.vendor} {self.firmware}"


@dataclass(frozen=True, slots=True)
class StorageKey:
    """The storage root key: its ESYS handle and its name (algorithm and digest)."""

    handle: Any
    name: bytes


def _rc(error: TSS2_Exception) -> int:
    return int(error.rc)


@contextlib.contextmanager
def _named() -> Iterator[None]:
    """Errors of libtss2 leave as named errors."""
    try:
        yield
    except TSS2_Exception as error:
        code = _rc(error)
        if code == _LOCKOUT:
            raise VaultError(Fault.TPM_LOCKOUT) from None
        detail = "no answer" if code == _IO_ERROR else f"return code 0x{code:x}"
        raise VaultError(Fault.TPM_FAULT, detail) from None


@contextlib.contextmanager
def connected(where: str) -> Iterator[Tpm]:
    """The TPM at `where` (`device` or `socket:/PATH`). Raises TPM_ABSENT, TPM_DENIED, TPM_FAULT."""
    tcti, close = open_tcti(where)
    try:
        with _named(), ESAPI(tcti) as esys:
            yield Tpm(esys)
    finally:
        close()


def _printable(raw: bytes) -> str:
    return "".join(chr(byte) if 0x20 < byte < 0x7F else " " for byte in raw).strip() or "?"


def _zero(cdata: Any) -> None:
    """Overwrite the structure that a cffi pointer points to."""
    view = ffi.buffer(cdata)
    view[:] = bytes(len(view))


def sealed_public(auth_policy: bytes, unique: bytes) -> bytes:
    """TPM2B_PUBLIC of the sealed object: fixed but for policy and `unique` (empty in templates)."""
    area = struct.pack("!HHIH", 0x0008, 0x000B, _SEALED_ATTRIBUTES, len(auth_policy)) + auth_policy
    area += struct.pack("!HH", 0x0010, len(unique)) + unique
    return struct.pack("!H", len(area)) + area


def _public(area: bytes) -> Any:
    return tss.TPM2B_PUBLIC.unmarshal(struct.pack("!H", len(area)) + area)[0]


class Tpm:
    """One connection to a TPM. Made by `connected`."""

    def __init__(self, esys: Any) -> None:
        self._esys = esys

    def _property(self, which: int) -> int:
        _, data = self._esys.get_capability(
            capability=TPM2_CAP.TPM_PROPERTIES, prop=which, property_count=1
        )
        found = data.data.tpmProperties
        if len(found) != 1 or int(found[0].property) != which:
            raise VaultError(Fault.TPM_FAULT, f"property 0x{which:x} is missing")
        return int(found[0].value)

    def facts(self) -> Facts:
        """Manufacturer, firmware and whether it is software; the TPM's own words, not proven."""
        strings = [
            self._property(which).to_bytes(4, "big")
            for which in range(_VENDOR_STRING, _VENDOR_STRING + 4)
        ]
        vendor = " ".join(_printable(b"".join(strings)).split())
        version = self._property(_FIRMWARE_VERSION)
        return Facts(
            manufacturer=_printable(self._property(_MANUFACTURER).to_bytes(4, "big")),
            vendor=vendor,
            firmware=f"{version >> 16}.{version & 0xFFFF}",
            software=vendor.startswith(_SOFTWARE_VENDORS),
            owner_auth_set=bool(self._property(_PERMANENT) & 1),
        )

    def storage_key(self, pinned: bytes | None) -> StorageKey:
        """The storage root key, used as found, if its name is the pinned one (None: any).

        Raises TPM_CLEARED if there is none, TPM_CHANGED if it has another name.
        """
        try:
            handle = self._esys.tr_from_tpmpublic(handle=SRK)
        except TSS2_Exception as error:
            if _rc(error) & 0xFFF == _HANDLE_UNKNOWN:
                raise VaultError(Fault.TPM_CLEARED) from None
            raise
        # ESYS computes this name from the very public area that salts are encrypted to.
        name = bytes(self._esys.tr_get_name(handle=handle))
        if pinned is not None and name != pinned:
            raise VaultError(Fault.TPM_CHANGED)
        return StorageKey(handle, name)

    def ensure_storage_key(self) -> StorageKey:
        """The storage root key; made and kept at 0x81000001 if there is none.

        Raises OWNER_AUTH_SET.
        """
        try:
            return self.storage_key(None)
        except VaultError as error:
            if error.fault is not Fault.TPM_CLEARED:
                raise
        try:
            handle, *_ = self._esys.create_primary(
                in_sensitive=None, in_public=_public(_SRK_TEMPLATE), primary_handle=ESYS_TR.OWNER
            )
            try:
                self._esys.evict_control(
                    auth=ESYS_TR.OWNER, object_handle=handle, persistent_handle=SRK
                )
            finally:
                self._esys.flush_context(flush_handle=handle)
        except TSS2_Exception as error:
            if _rc(error) == _OWNER_BAD_AUTH:
                raise VaultError(Fault.OWNER_AUTH_SET) from None
            raise
        return self.storage_key(None)

    @contextlib.contextmanager
    def _session(self, key: StorageKey, kind: int, attributes: int) -> Iterator[Any]:
        """A session salted to `key`, with AES-128-CFB parameter encryption."""
        session = self._esys.start_auth_session(
            tpm_key=key.handle,
            bind=ESYS_TR.NONE,
            session_type=kind,
            symmetric=tss.TPMT_SYM_DEF(
                algorithm=TPM2_ALG.AES,
                keyBits=tss.TPMU_SYM_KEY_BITS(sym=128),
                mode=tss.TPMU_SYM_MODE(sym=TPM2_ALG.CFB),
            ),
            auth_hash=TPM2_ALG.SHA256,
        )
        try:
            self._esys.trsess_set_attributes(
                session=session, attributes=attributes | TPMA_SESSION.CONTINUESESSION
            )
            yield session
        finally:
            with contextlib.suppress(TSS2_Exception):
                self._esys.flush_context(flush_handle=session)

    def read_pcrs(self, pcrs: Sequence[int], key: StorageKey, *, software: bool) -> list[bytes]:
        """The SHA-256 values of `pcrs` (ascending), read in a session that the bus cannot forge.

        Raises PCR_BANK_MISSING: an absent bank answers with fewer digests, and a policy over it
        would hold whatever the PCRs contain. All FF is a PCR out of reach; all 00 was never
        measured, which is accepted from a software TPM only (no firmware measures into it).
        """
        wanted = policy.selection(pcrs)
        selection = tss.TPML_PCR_SELECTION.unmarshal(wanted)[0]
        values: list[bytes] = []
        remaining = list(pcrs)
        with self._session(key, TPM2_SE.HMAC, TPMA_SESSION.AUDIT) as session:
            while remaining:  # a TPM gives at most eight digests at a time
                selection = tss.TPML_PCR_SELECTION.unmarshal(policy.selection(remaining))[0]
                _, returned, digests = self._esys.pcr_read(
                    pcr_selection_in=selection, session1=session
                )
                found = [bytes(digest) for digest in digests]
                part, remaining = remaining[: len(found)], remaining[len(found) :]
                if not found or bytes(returned.marshal()) != policy.selection(part):
                    raise VaultError(Fault.PCR_BANK_MISSING)
                values += found
        for pcr, value in zip(pcrs, values, strict=True):
            if len(value) != 32 or value == b"\xff" * 32 or (value == bytes(32) and not software):
                raise VaultError(Fault.PCR_BANK_MISSING, f"PCR {pcr}")
        return values

    def seal(self, key: StorageKey, payload: bytearray, auth_policy: bytes) -> tuple[bytes, bytes]:
        """A sealed object of `payload` (64 bytes) that only `auth_policy` opens: (priv, pub)."""
        sensitive = tss.TPM2B_SENSITIVE_CREATE()
        data = sensitive._cdata.sensitive.data
        data.size = len(payload)
        ffi.memmove(data.buffer, payload, len(payload))
        template = tss.TPM2B_PUBLIC.unmarshal(sealed_public(auth_policy, b""))[0]
        both = TPMA_SESSION.DECRYPT | TPMA_SESSION.ENCRYPT
        try:
            with self._session(key, TPM2_SE.HMAC, both) as session:
                private, public, *_ = self._esys.create(
                    parent_handle=key.handle,
                    in_sensitive=sensitive,
                    in_public=template,
                    session1=session,
                )
        finally:
            _zero(sensitive._cdata)
        return bytes(private.marshal()), bytes(public.marshal())

    def unseal(
        self,
        key: StorageKey,
        sealed: tuple[bytes, bytes],
        pol_pub: bytes,
        pcrs: Sequence[int],
        approval: Approval,
        out: bytearray,
    ) -> None:
        """Open the sealed object (priv, pub) under an approval and put the payload into `out`.

        Raises TAMPERED, PCR_CHANGED, PCR_UNSTABLE.
        """
        private = tss.TPM2B_PRIVATE.unmarshal(sealed[0])[0]
        public = tss.TPM2B_PUBLIC.unmarshal(sealed[1])[0]
        try:
            handle = self._esys.load(parent_handle=key.handle, in_private=private, in_public=public)
        except TSS2_Exception as error:
            if error.fmt1 and _rc(error) & 0xBF == _INTEGRITY & 0xBF:
                raise VaultError(Fault.TAMPERED, "the sealed object is not this TPM's") from None
            raise
        try:
            for _ in range(_RETRIES):
                if self._try_unseal(key, handle, pol_pub, pcrs, approval, out):
                    return
        finally:
            self._esys.flush_context(flush_handle=handle)
        raise VaultError(Fault.PCR_UNSTABLE)

    def _try_unseal(
        self,
        key: StorageKey,
        handle: Any,
        pol_pub: bytes,
        pcrs: Sequence[int],
        approval: Approval,
        out: bytearray,
    ) -> bool:
        """One try in one policy session; False if a PCR was extended in between."""
        with self._session(key, TPM2_SE.POLICY, TPMA_SESSION.ENCRYPT) as session:
            self._esys.policy_pcr(
                policy_session=session,
                pcr_digest=b"",  # the TPM takes the current values
                pcrs=tss.TPML_PCR_SELECTION.unmarshal(policy.selection(pcrs))[0],
            )
            # Unseal says the same for every broken policy; only this comparison can name the PCRs.
            if bytes(self._esys.policy_get_digest(policy_session=session)) != approval.digest:
                raise VaultError(Fault.PCR_CHANGED, "changed while the vault was opened")
            ticket = self._verify(pol_pub, approval)
            self._esys.policy_authorize(
                policy_session=session,
                approved_policy=approval.digest,
                policy_ref=policy.REF,
                key_sign=policy.key_name(pol_pub),
                check_ticket=ticket,
            )
            try:
                secret = self._esys.unseal(item_handle=handle, session1=session)
            except TSS2_Exception as error:
                if _rc(error) == _PCR_CHANGED:
                    return False
                if _rc(error) == _POLICY_FAIL:
                    detail = "the sealed object has another policy"
                    raise VaultError(Fault.TAMPERED, detail) from None
                raise
            cdata = secret._cdata
            try:
                if cdata.size != len(out):
                    raise VaultError(Fault.TAMPERED, "the sealed payload has another size")
                ffi.memmove(out, cdata.buffer, len(out))
            finally:
                _zero(cdata)
        self._scrub()
        return True

    def _verify(self, pol_pub: bytes, approval: Approval) -> Any:
        """The TPM's ticket that K_pol signed this approval."""
        signature = tss.TPMT_SIGNATURE.unmarshal(
            struct.pack("!HHH", TPM2_ALG.ECDSA, TPM2_ALG.SHA256, 32)
            + approval.r
            + struct.pack("!H", 32)
            + approval.s
        )[0]
        signer = self._esys.load_external(
            in_public=_public(policy.public_area(pol_pub)), hierarchy=ESYS_TR.OWNER
        )
        try:
            return self._esys.verify_signature(
                key_handle=signer,
                digest=policy.approved_hash(approval.digest),
                signature=signature,
            )
        finally:
            self._esys.flush_context(flush_handle=signer)

    def _scrub(self) -> None:
        """Overwrite ESYS's command buffer, in which the unsealed payload was decrypted."""
        for _ in range(3):
            self._esys.get_random(bytes_requested=48)
        self._esys.get_capability(
            capability=TPM2_CAP.TPM_PROPERTIES, prop=_MANUFACTURER, property_count=64
        )
