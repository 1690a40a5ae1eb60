"""The TPM commands through libtss2's ESAPI (tpm2-pytss): the other implementation. One thread."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

os.environ["TSS2_LOG"] = "all+none"  # before the import: libtss2 would log to stderr

from tpm2_pytss import types as tss  # type: ignore[import-untyped]
from tpm2_pytss._libtpm2_pytss import ffi  # type: ignore[import-untyped]
from tpm2_pytss.constants import (  # type: ignore[import-untyped]
    ESYS_TR,
    TPM2_ALG,
    TPM2_CAP,
    TPM2_EO,
    TPMA_SESSION,
)
from tpm2_pytss.ESAPI import ESAPI  # type: ignore[import-untyped]
from tpm2_pytss.TSS2_Exception import TSS2_Exception  # type: ignore[import-untyped]

from . import crypto
from .channel import Channel
from .commands import UNSIGNED_LE, Entity, TpmError, name_of, sized
from .errors import Fault, VaultError
from .tcti import IO_ERROR, ChannelTcti

_AGAIN = (0x922, 0x908, 0x90A)  # RETRY, YIELDED, TESTING: ESAPI has tried again already


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Exceptions of the library leave as TpmError (the TPM's own codes) or VaultError."""
    try:
        yield
    except TSS2_Exception as error:
        code = int(error.rc)
        if code & 0xFFFF in _AGAIN:
            raise VaultError(Fault.TPM_BUSY) from None
        if code >> 16 in (0, 8, 9, 11):  # the TPM itself, or a resource manager's copy of its codes
            raise TpmError(code & 0xFFFF) from None
        detail = "no answer" if code == IO_ERROR else f"return code 0x{code:x}"
        raise VaultError(Fault.TPM_FAULT, detail) from None


def _zero(cdata: Any) -> None:
    """Overwrite the structure that a cffi pointer points to."""
    view = ffi.buffer(cdata)
    view[:] = bytes(len(view))


def _public(area: bytes) -> Any:
    return tss.TPM2B_PUBLIC.unmarshal(sized(area))[0]


def _selection(raw: bytes) -> Any:
    return tss.TPML_PCR_SELECTION.unmarshal(raw)[0]


@contextlib.contextmanager
def esapi_commands(channel: Channel) -> Iterator[EsapiCommands]:
    """The commands over a channel that is open."""
    with _translated():
        esys = ESAPI(ChannelTcti(channel))
    try:
        yield EsapiCommands(esys)
    finally:
        esys.close()


class EsapiCommands:
    """See `commands.Commands`."""

    def __init__(self, esys: Any) -> None:
        self._esys = esys

    def properties(self, first: int, count: int) -> dict[int, int]:
        with _translated():
            _, data = self._esys.get_capability(
                capability=TPM2_CAP.TPM_PROPERTIES, prop=first, property_count=count
            )
        return {int(found.property): int(found.value) for found in data.data.tpmProperties}

    def persistent(self, handle: int) -> Entity:
        with _translated():
            key = self._esys.tr_from_tpmpublic(handle=handle)
            # ESYS computes this name from the very public area that salts are encrypted to.
            return Entity(key, bytes(self._esys.tr_get_name(handle=key)))

    def create_persistent(self, template: bytes, handle: int) -> None:
        with _translated():
            key, *_ = self._esys.create_primary(
                in_sensitive=None, in_public=_public(template), primary_handle=ESYS_TR.OWNER
            )
            try:
                self._esys.evict_control(
                    auth=ESYS_TR.OWNER, object_handle=key, persistent_handle=handle
                )
            finally:
                self._esys.flush_context(flush_handle=key)

    @contextlib.contextmanager
    def session(self, salt_key: Entity, kind: int, attributes: int) -> Iterator[Any]:
        with _translated():
            session = self._esys.start_auth_session(
                tpm_key=salt_key.handle,
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
            with _translated():
                self._esys.trsess_set_attributes(
                    session=session, attributes=attributes | TPMA_SESSION.CONTINUESESSION
                )
            yield session
        finally:
            with contextlib.suppress(TSS2_Exception):
                self._esys.flush_context(flush_handle=session)

    def pcr_read(self, selection: bytes, session: Any) -> tuple[bytes, list[bytes]]:
        with _translated():
            _, returned, digests = self._esys.pcr_read(
                pcr_selection_in=_selection(selection), session1=session
            )
        return bytes(returned.marshal()), [bytes(digest) for digest in digests]

    def create(
        self, parent: Entity, template: bytes, payload: bytearray, auth: bytearray, session: Any
    ) -> tuple[bytes, bytes]:
        sensitive = tss.TPM2B_SENSITIVE_CREATE()
        inner = sensitive._cdata.sensitive
        for field, value in ((inner.userAuth, auth), (inner.data, payload)):
            field.size = len(value)
            ffi.memmove(field.buffer, value, len(value))
        try:
            with _translated():
                private, public, *_ = self._esys.create(
                    parent_handle=parent.handle,
                    in_sensitive=sensitive,
                    in_public=_public(template),
                    session1=session,
                )
        finally:
            _zero(sensitive._cdata)
        return bytes(private.marshal()), bytes(public.marshal())

    def load(self, parent: Entity, private: bytes, public: bytes) -> Entity:
        with _translated():
            handle = self._esys.load(
                parent_handle=parent.handle,
                in_private=tss.TPM2B_PRIVATE.unmarshal(private)[0],
                in_public=tss.TPM2B_PUBLIC.unmarshal(public)[0],
            )
            return Entity(handle, bytes(self._esys.tr_get_name(handle=handle)))

    def load_external(self, public: bytes) -> Entity:
        with _translated():
            handle = self._esys.load_external(in_public=_public(public), hierarchy=ESYS_TR.OWNER)
            return Entity(handle, bytes(self._esys.tr_get_name(handle=handle)))

    def flush(self, entity: Entity) -> None:
        with _translated():
            self._esys.flush_context(flush_handle=entity.handle)

    def verify(self, key: Entity, digest: bytes, signature: bytes) -> Any:
        with _translated():
            return self._esys.verify_signature(
                key_handle=key.handle,
                digest=digest,
                signature=tss.TPMT_SIGNATURE.unmarshal(signature)[0],
            )

    def policy_pcr(self, session: Any, selection: bytes) -> None:
        with _translated():
            self._esys.policy_pcr(
                policy_session=session, pcr_digest=b"", pcrs=_selection(selection)
            )

    def policy_nv(self, session: Any, index: Entity, operand: bytes) -> None:
        with _translated():
            self._esys.policy_nv(
                auth_handle=index.handle,
                nv_index=index.handle,
                policy_session=session,
                operand_b=operand,
                operation=TPM2_EO(UNSIGNED_LE),
            )

    def policy_auth_value(self, session: Any) -> None:
        with _translated():
            self._esys.policy_auth_value(policy_session=session)

    def policy_digest(self, session: Any) -> bytes:
        with _translated():
            return bytes(self._esys.policy_get_digest(policy_session=session))

    def policy_authorize(
        self, session: Any, approved: bytes, ref: bytes, signer: bytes, ticket: Any
    ) -> None:
        with _translated():
            self._esys.policy_authorize(
                policy_session=session,
                approved_policy=approved,
                policy_ref=ref,
                key_sign=signer,
                check_ticket=ticket,
            )

    def nonce(self, session: Any) -> bytes:
        with _translated():
            return bytes(self._esys.trsess_get_nonce_tpm(session=session))

    def policy_signed(self, session: Any, key: Entity, ref: bytes, signature: bytes) -> None:
        with _translated():
            self._esys.policy_signed(
                auth_object=key.handle,
                policy_session=session,
                nonce_tpm=self._esys.trsess_get_nonce_tpm(session=session),
                cp_hash_a=b"",
                policy_ref=ref,
                expiration=0,
                auth=tss.TPMT_SIGNATURE.unmarshal(signature)[0],
            )

    def unseal(self, item: Entity, auth: bytearray, session: Any, out: bytearray) -> int:
        frozen = bytes(auth)
        try:
            with _translated():
                if auth:
                    self._esys.tr_set_auth(esys_handle=item.handle, auth_value=frozen)
                secret = self._esys.unseal(item_handle=item.handle, session1=session)
        finally:
            crypto.wipe(frozen)
        cdata = secret._cdata
        try:
            if cdata.size == len(out):
                ffi.memmove(out, cdata.buffer, len(out))
            return int(cdata.size)
        finally:
            _zero(cdata)

    def nv(self, index: int) -> Entity:
        with _translated():
            handle = self._esys.tr_from_tpmpublic(handle=index)
            public = bytes(self._esys.nv_read_public(nv_index=handle)[0].nvPublic.marshal())
        return Entity(handle, name_of(public), public)

    def nv_define(self, public: bytes) -> None:
        with _translated():
            self._esys.nv_define_space(
                auth=b"", public_info=tss.TPM2B_NV_PUBLIC.unmarshal(sized(public))[0]
            )

    def nv_undefine(self, index: Entity) -> None:
        with _translated():
            self._esys.nv_undefine_space(nv_index=index.handle)

    def nv_increment(self, index: Entity, session: Any) -> None:
        with _translated():
            self._esys.nv_increment(nv_index=index.handle, session1=session)

    def nv_read(self, index: Entity, session: Any) -> bytes:
        with _translated():
            return bytes(self._esys.nv_read(nv_index=index.handle, size=8, session1=session))

    def scrub(self) -> None:
        """Overwrite ESYS's command buffer, in which the unsealed payload was decrypted."""
        with _translated():
            for _ in range(3):
                self._esys.get_random(bytes_requested=48)
            self._esys.get_capability(
                capability=TPM2_CAP.TPM_PROPERTIES, prop=0x105, property_count=64
            )
