"""The TPM commands in pure Python: bytes are built and checked here (TPM 2.0 part 3).

Whatever a TPM or the bus answers ends in an exception, never in memory that is not ours; libtss2
before 4.1.4 reads past its buffers on such answers (GHSA-7638-f8gq-c475).
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
from collections.abc import Iterator, Sequence
from typing import Any

from . import crypto
from .channel import HEADER, Channel
from .commands import OWNER, SHA256, UNSIGNED_LE, Entity, TpmError, name_of, sized
from .errors import Fault, VaultError
from .session import NONCE, Reader, Session, salt

_NULL_HANDLE = 0x40000007
_PASSWORD = struct.pack("!IHBH", 0x40000009, 0, 1, 0)  # an empty one
_AGAIN = (0x922, 0x908, 0x90A)  # RETRY, YIELDED, TESTING: the same command once more
_TRIES = 8

_EVICT_CONTROL, _NV_UNDEFINE, _NV_DEFINE, _CREATE_PRIMARY = 0x120, 0x122, 0x12A, 0x131
_NV_INCREMENT, _POLICY_NV, _NV_READ, _CREATE, _LOAD = 0x134, 0x149, 0x14E, 0x153, 0x157
_UNSEAL, _POLICY_SIGNED, _FLUSH, _LOAD_EXTERNAL, _NV_READ_PUBLIC = 0x15E, 0x160, 0x165, 0x167, 0x169
_POLICY_AUTHORIZE, _POLICY_AUTH_VALUE, _READ_PUBLIC, _START_SESSION = 0x16A, 0x16B, 0x173, 0x176
_VERIFY_SIGNATURE, _GET_CAPABILITY, _PCR_READ, _POLICY_PCR = 0x177, 0x17A, 0x17E, 0x17F
_POLICY_GET_DIGEST = 0x189
_TPM_PROPERTIES = 6


def _permanent(handle: int) -> Entity:
    """A hierarchy or a session: its name is its handle."""
    return Entity(handle, struct.pack("!I", handle))


class RawCommands:
    """See `commands.Commands`."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def _transmit(self, command: bytes) -> bytes:
        for attempt in range(_TRIES):
            try:
                self._channel.send(command)
                response = self._channel.receive()
            except (OSError, ValueError) as error:
                raise VaultError(Fault.TPM_FAULT, "no answer") from error
            code = int.from_bytes(response[6:HEADER], "big")
            if code not in _AGAIN:
                break
            time.sleep(0.01 * 2**attempt)
        if code in _AGAIN:
            raise VaultError(Fault.TPM_BUSY)
        if code:
            raise TpmError(code)
        return response

    def _call(
        self,
        code: int,
        entities: Sequence[Entity] = (),
        parameters: bytes | bytearray = b"",
        *,
        session: Session | None = None,
        auth: bytearray | bytes = b"",
        passwords: int = 0,
        makes_handle: bool = False,
    ) -> tuple[int, bytearray]:
        """One command: (handle made, response parameters). The HMAC of the answer was checked."""
        area = bytearray(parameters)
        authorised = session is not None or passwords > 0
        body = b"".join(struct.pack("!I", entity.handle) for entity in entities)
        if authorised:
            names = b"".join(entity.name for entity in entities)
            sessions = session.seal_command(code, names, area, auth) if session else b""
            sessions += _PASSWORD * passwords
            body += struct.pack("!I", len(sessions)) + sessions
        head = struct.pack(
            "!HII", 0x8002 if authorised else 0x8001, 10 + len(body) + len(area), code
        )
        response = self._transmit(head + body + area)
        try:
            reader = Reader(response[HEADER:])
            handle = reader.number(4) if makes_handle else 0
            if int.from_bytes(response[:2], "big") != (0x8002 if authorised else 0x8001):
                raise ValueError("an answer of another kind")
            if not authorised:
                return handle, bytearray(reader.rest())
            answer = bytearray(reader.take(reader.number(4)))
            if session:
                session.open_response(code, answer, reader.rest(), auth)
            return handle, answer
        except ValueError as error:
            raise VaultError(Fault.TPM_FAULT, str(error)) from error

    def _read(self, *args: Any, **options: Any) -> Reader:
        return _Answer(self._call(*args, **options)[1])

    def properties(self, first: int, count: int) -> dict[int, int]:
        answer = self._read(_GET_CAPABILITY, (), struct.pack("!III", _TPM_PROPERTIES, first, count))
        answer.take(5)
        return {answer.number(4): answer.number(4) for _ in range(min(answer.number(4), count))}

    def persistent(self, handle: int) -> Entity:
        public = self._read(_READ_PUBLIC, [Entity(handle, b"")]).sized()
        return Entity(handle, name_of(public), public)

    def create_persistent(self, template: bytes, handle: int) -> None:
        parameters = sized(sized(b"") + sized(b"")) + sized(template) + sized(b"") + bytes(4)
        owner = _permanent(OWNER)
        made, _ = self._call(_CREATE_PRIMARY, [owner], parameters, passwords=1, makes_handle=True)
        key = Entity(made, b"")
        try:
            self._call(_EVICT_CONTROL, [owner, key], struct.pack("!I", handle), passwords=1)
        finally:
            self.flush(key)

    @contextlib.contextmanager
    def session(self, salt_key: Entity, kind: int, attributes: int) -> Iterator[Session]:
        secret, encrypted = salt(salt_key.public)
        caller = os.urandom(NONCE)
        parameters = sized(caller) + sized(encrypted) + bytes([kind])
        parameters += struct.pack("!HHHH", 0x0006, 128, 0x0043, SHA256)
        try:
            handle, answer = self._call(
                _START_SESSION,
                [Entity(salt_key.handle, b""), _permanent(_NULL_HANDLE)],
                parameters,
                makes_handle=True,
            )
            opened = Session(handle, secret, caller, _Answer(answer).sized())
        finally:
            crypto.wipe(secret)
        opened.attributes |= attributes
        try:
            yield opened
        finally:
            opened.wipe()
            with contextlib.suppress(TpmError, VaultError):
                self.flush(_permanent(handle))

    def pcr_read(self, selection: bytes, session: Session) -> tuple[bytes, list[bytes]]:
        answer = self._read(_PCR_READ, (), selection, session=session)
        answer.take(4)
        returned = b""
        count = answer.number(4)
        for _ in range(min(count, 16)):
            bank = answer.take(3)
            returned += bank + answer.take(bank[2])
        digests = [answer.sized() for _ in range(min(answer.number(4), 8))]
        return struct.pack("!I", count) + returned, digests

    def create(
        self,
        parent: Entity,
        template: bytes,
        payload: bytearray,
        auth: bytearray,
        session: Session,
    ) -> tuple[bytes, bytes]:
        sensitive = bytearray(struct.pack("!HH", 4 + len(auth) + len(payload), len(auth)))
        sensitive += auth
        sensitive += struct.pack("!H", len(payload))
        sensitive += payload
        parameters = sensitive + sized(template) + sized(b"") + bytes(4)
        try:
            answer = self._read(_CREATE, [parent], parameters, session=session)
        finally:
            crypto.wipe(sensitive, parameters)
        return sized(answer.sized()), sized(answer.sized())

    def load(self, parent: Entity, private: bytes, public: bytes) -> Entity:
        handle, _ = self._call(_LOAD, [parent], private + public, passwords=1, makes_handle=True)
        return Entity(handle, name_of(public[2:]))

    def load_external(self, public: bytes) -> Entity:
        parameters = sized(b"") + sized(public) + struct.pack("!I", OWNER)
        handle, _ = self._call(_LOAD_EXTERNAL, (), parameters, makes_handle=True)
        return Entity(handle, name_of(public))

    def flush(self, entity: Entity) -> None:
        self._call(_FLUSH, (), struct.pack("!I", entity.handle))

    def verify(self, key: Entity, digest: bytes, signature: bytes) -> bytes:
        return bytes(self._call(_VERIFY_SIGNATURE, [key], sized(digest) + signature)[1])

    def policy_pcr(self, session: Session, selection: bytes) -> None:
        self._call(_POLICY_PCR, [_permanent(session.handle)], sized(b"") + selection)

    def policy_nv(self, session: Session, index: Entity, operand: bytes) -> None:
        parameters = sized(operand) + struct.pack("!HH", 0, UNSIGNED_LE)
        self._call(_POLICY_NV, [index, index, _permanent(session.handle)], parameters, passwords=1)

    def policy_auth_value(self, session: Session) -> None:
        self._call(_POLICY_AUTH_VALUE, [_permanent(session.handle)])

    def policy_digest(self, session: Session) -> bytes:
        return self._read(_POLICY_GET_DIGEST, [_permanent(session.handle)]).sized()

    def policy_authorize(
        self, session: Session, approved: bytes, ref: bytes, signer: bytes, ticket: bytes
    ) -> None:
        parameters = sized(approved) + sized(ref) + sized(signer) + ticket
        self._call(_POLICY_AUTHORIZE, [_permanent(session.handle)], parameters)

    def nonce(self, session: Session) -> bytes:
        return session.nonce_tpm

    def policy_signed(self, session: Session, key: Entity, ref: bytes, signature: bytes) -> None:
        parameters = sized(session.nonce_tpm) + sized(b"") + sized(ref) + bytes(4) + signature
        self._call(_POLICY_SIGNED, [key, _permanent(session.handle)], parameters)

    def unseal(self, item: Entity, auth: bytearray, session: Session, out: bytearray) -> int:
        _, answer = self._call(_UNSEAL, [item], session=session, auth=auth)
        try:
            size = int.from_bytes(answer[:2], "big")
            if size == len(out):
                out[:] = memoryview(answer)[2 : 2 + size]
            return size
        finally:
            crypto.wipe(answer)

    def nv(self, index: int) -> Entity:
        public = self._read(_NV_READ_PUBLIC, [Entity(index, b"")]).sized()
        return Entity(index, name_of(public), public)

    def nv_define(self, public: bytes) -> None:
        self._call(_NV_DEFINE, [_permanent(OWNER)], sized(b"") + sized(public), passwords=1)

    def nv_undefine(self, index: Entity) -> None:
        self._call(_NV_UNDEFINE, [_permanent(OWNER), index], passwords=1)

    def nv_increment(self, index: Entity, session: Session) -> None:
        self._call(_NV_INCREMENT, [index, index], session=session)

    def nv_read(self, index: Entity, session: Session) -> bytes:
        parameters = struct.pack("!HH", 8, 0)
        return self._read(_NV_READ, [index, index], parameters, session=session).sized()

    def scrub(self) -> None:
        """Nothing is left: every buffer that held the payload was wiped."""


class _Answer(Reader):
    """Reads response parameters. A structure that ends too early is TPM_FAULT."""

    def take(self, count: int) -> bytes:
        try:
            return super().take(count)
        except ValueError as error:
            raise VaultError(Fault.TPM_FAULT, str(error)) from error
