"""The TPM steps: storage root key, PCRs, sealing and unsealing. One connection, one thread.

Every session that carries a secret, or a value we trust, is salted to the storage root key whose
name was compared first: the bus in between is not trusted, and an unsalted session's key follows
from what is seen on it. Every object and session is flushed in `finally`.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from . import policy
from .channel import open_channel
from .commands import (
    AUDIT,
    DECRYPT,
    ENCRYPT,
    HMAC_SESSION,
    POLICY_SESSION,
    Commands,
    Entity,
    TpmError,
)
from .errors import Fault, VaultError
from .header import Approval, SealedTo

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
# FIXEDTPM | FIXEDPARENT, no USERWITHAUTH: only the policy opens it. Without a PIN NODA too: it
# opens during a dictionary-attack lockout, which guesses of a PIN must not.
_SEALED_ATTRIBUTES, _NO_DA = 0x0000_0012, 0x0000_0400

# Properties (TPM 2.0 part 2, 6.13)
_MANUFACTURER = 0x105
_VENDOR_STRINGS = (0x106, 0x107, 0x108, 0x109)
_FIRMWARE_VERSION = 0x10B
_PERMANENT = 0x200
_LOCKOUT_COUNTER, _MAX_AUTH_FAIL, _LOCKOUT_INTERVAL = 0x20E, 0x20F, 0x210
_EK_CERTIFICATES = (0x01C00002, 0x01C0000A)  # NV indexes: RSA 2048, ECC P-256

HANDLE_UNKNOWN = 0x8B
_BAD_AUTH, _AUTH_FAIL, _INTEGRITY, _POLICY_FAIL = 0xA2, 0x8E, 0x9F, 0x9D
_POLICY, _PCR_CHANGED, _LOCKOUT = 0x126, 0x128, 0x921


@dataclass(frozen=True, slots=True)
class Facts:
    """What a TPM says of itself."""

    manufacturer: str
    vendor: str
    firmware: str
    software: bool
    owner_auth_set: bool
    lockout_auth_set: bool
    in_lockout: bool
    tries_left: int
    lockout_seconds: int

    @property
    def identity(self) -> str:
        """One printable line."""
        return f"{self.manufacturer} {self.vendor} {self.firmware}"


@contextlib.contextmanager
def connected(where: str, backend: str = "raw") -> Iterator[Tpm]:
    """The TPM at `where` (`device` or `socket:/PATH`) by `raw` or `esapi`.

    Raises TPM_ABSENT, TPM_DENIED, TPM_BUSY, TPM_FAULT. Return codes that nothing inside the context
    understood leave as DA_LOCKOUT or TPM_FAULT.
    """
    with open_channel(where) as channel, contextlib.ExitStack() as stack:
        # Imported by choice: libtss2 and cffi cost 15 MB and 0.2 s.
        if backend == "raw":
            from .raw import RawCommands

            commands: Commands = RawCommands(channel)
        else:
            from .esapi import esapi_commands

            commands = stack.enter_context(esapi_commands(channel))
        tpm = Tpm(commands)
        try:
            yield tpm
        except TpmError as error:
            if error.code == _LOCKOUT:
                raise tpm.lockout() from None
            raise VaultError(Fault.TPM_FAULT, f"return code 0x{error.code:x}") from None


def _printable(raw: bytes) -> str:
    return "".join(chr(byte) if 0x20 < byte < 0x7F else " " for byte in raw).strip() or "?"


def sealed_policy(point: bytes, *, pin: bool) -> bytes:
    """The policy digest of the sealed object for K_pol, with or without a PIN."""
    authorised = policy.policy_authorize(point)
    return policy.policy_auth_value(authorised) if pin else authorised


def sealed_template(auth_policy: bytes, unique: bytes, *, pin: bool) -> bytes:
    """TPMT_PUBLIC of the sealed object: fixed but for policy and `unique` (empty in templates)."""
    attributes = _SEALED_ATTRIBUTES | (0 if pin else _NO_DA)
    area = struct.pack("!HHIH", 0x0008, 0x000B, attributes, len(auth_policy)) + auth_policy
    return area + struct.pack("!HH", 0x0010, len(unique)) + unique


class Tpm:
    """One connection to a TPM. Made by `connected`."""

    def __init__(self, commands: Commands) -> None:
        self.commands = commands

    def _properties(self, first: int, last: int) -> dict[int, int]:
        found: dict[int, int] = {}
        while (at := max(found, default=first - 1) + 1) <= last:
            more = self.commands.properties(at, last + 1 - at)
            if not more or min(more) < at:  # a TPM leaves out what it does not know
                break
            found |= more
        return found

    def facts(self) -> Facts:
        """Manufacturer, firmware, lockout, whether it is software: its own words, not proven."""
        found = self._properties(_MANUFACTURER, _FIRMWARE_VERSION)
        found |= self._properties(_PERMANENT, _LOCKOUT_INTERVAL)
        try:
            words = [found[which].to_bytes(4, "big") for which in _VENDOR_STRINGS]
            vendor = " ".join(_printable(b"".join(words)).split())
            version, permanent = found[_FIRMWARE_VERSION], found[_PERMANENT]
            return Facts(
                manufacturer=_printable(found[_MANUFACTURER].to_bytes(4, "big")),
                vendor=vendor,
                firmware=f"{version >> 16}.{version & 0xFFFF}",
                software=vendor.startswith(_SOFTWARE_VENDORS),
                owner_auth_set=bool(permanent & 1),
                lockout_auth_set=bool(permanent & 4),
                in_lockout=bool(permanent & 0x200),
                tries_left=max(0, found[_MAX_AUTH_FAIL] - found[_LOCKOUT_COUNTER]),
                lockout_seconds=found[_LOCKOUT_INTERVAL],
            )
        except KeyError as error:
            detail = f"property 0x{error.args[0]:x} is missing"
            raise VaultError(Fault.TPM_FAULT, detail) from None

    def lockout(self) -> VaultError:
        """The error for a TPM in lockout, with the seconds after which one try comes back."""
        seconds = self.facts().lockout_seconds
        return VaultError(Fault.DA_LOCKOUT, f"one try comes back every {seconds} seconds")

    def endorsement(self) -> str:
        """`unknown-ca` if the TPM holds an endorsement certificate, else `absent`.

        No list of manufacturers' authorities is at hand, so none is ever called verified.
        """
        for index in _EK_CERTIFICATES:
            try:
                self.commands.nv(index)
            except TpmError as error:
                if error.kind != HANDLE_UNKNOWN:
                    raise
            else:
                return "unknown-ca"
        return "absent"

    def storage_key(self, *pins: bytes | None) -> Entity:
        """The storage root key, used as found, if its name is each of `pins` (None: any).

        Raises TPM_CLEARED if there is none, TPM_CHANGED if it has another name.
        """
        try:
            key = self.commands.persistent(SRK)
        except TpmError as error:
            if error.kind == HANDLE_UNKNOWN:
                raise VaultError(Fault.TPM_CLEARED) from None
            raise
        if any(pin is not None and key.name != pin for pin in pins):
            raise VaultError(Fault.TPM_CHANGED)
        return key

    def ensure_storage_key(self, pin: bytes | None) -> Entity:
        """The storage root key; made and kept at 0x81000001 if there is none.

        Raises OWNER_AUTH_SET, TPM_CHANGED.
        """
        try:
            return self.storage_key(pin)
        except VaultError as error:
            if error.fault is not Fault.TPM_CLEARED:
                raise
        with self.owner():
            self.commands.create_persistent(_SRK_TEMPLATE, SRK)
        return self.storage_key(pin)

    @contextlib.contextmanager
    def owner(self) -> Iterator[None]:
        """Commands of the owner hierarchy, used with its usual empty password.

        Raises OWNER_AUTH_SET.
        """
        try:
            yield
        except TpmError as error:
            if error.kind == _BAD_AUTH:
                raise VaultError(Fault.OWNER_AUTH_SET) from None
            raise

    def read_pcrs(self, pcrs: Sequence[int], key: Entity, *, software: bool) -> tuple[bytes, ...]:
        """The SHA-256 values of `pcrs` (ascending), read in a session that the bus cannot forge.

        Raises PCR_BANK_MISSING: an absent bank answers with fewer digests, and a policy over it
        would hold whatever the PCRs contain. All FF is a PCR out of reach; all 00 was never
        measured, which is accepted from a software TPM only (no firmware measures into it).
        """
        if not pcrs:
            return ()
        values: list[bytes] = []
        remaining = list(pcrs)
        with self.commands.session(key, HMAC_SESSION, AUDIT) as session:
            while remaining:  # a TPM gives at most eight digests at a time
                wanted = policy.selection(remaining)
                returned, found = self.commands.pcr_read(wanted, session)
                part, remaining = remaining[: len(found)], remaining[len(found) :]
                if not found or returned != policy.selection(part):
                    raise VaultError(Fault.PCR_BANK_MISSING)
                values += found
        for pcr, value in zip(pcrs, values, strict=True):
            if len(value) != 32 or value == b"\xff" * 32 or (value == bytes(32) and not software):
                raise VaultError(Fault.PCR_BANK_MISSING, f"PCR {pcr}")
        return tuple(values)

    def seal(
        self, key: Entity, payload: bytearray, point: bytes, auth: bytearray | None
    ) -> tuple[bytes, bytes]:
        """A sealed object of `payload` that only K_pol's approvals open: (priv, pub).

        With `auth` (from a PIN) they open it only together with that.
        """
        pin = auth is not None
        template = sealed_template(sealed_policy(point, pin=pin), b"", pin=pin)
        with self.commands.session(key, HMAC_SESSION, DECRYPT | ENCRYPT) as session:
            return self.commands.create(key, template, payload, auth or bytearray(), session)

    def unseal(
        self,
        key: Entity,
        sealed: SealedTo,
        approval: Approval,
        counter: tuple[Entity, int] | None,
        auth: bytearray | None,
        out: bytearray,
    ) -> None:
        """Open the sealed object under an approval and put the payload into `out`.

        `counter` is the rollback counter and the bound that the approval was signed for.
        Raises TAMPERED, PCR_CHANGED, PCR_UNSTABLE, ROLLBACK, PIN_WRONG, DA_LOCKOUT.
        """
        try:
            item = self.commands.load(key, sealed.priv, sealed.pub)
        except TpmError as error:
            if error.kind == _INTEGRITY:
                raise VaultError(Fault.TAMPERED, "the sealed object is not this TPM's") from None
            raise
        try:
            for _ in range(_RETRIES):
                if self._try_unseal(key, item, sealed, approval, counter, auth, out):
                    return
        finally:
            self.commands.flush(item)
        raise VaultError(Fault.PCR_UNSTABLE)

    def _try_unseal(
        self,
        key: Entity,
        item: Entity,
        sealed: SealedTo,
        approval: Approval,
        counter: tuple[Entity, int] | None,
        auth: bytearray | None,
        out: bytearray,
    ) -> bool:
        """One try in one policy session; False if a PCR was extended in between."""
        commands = self.commands
        with commands.session(key, POLICY_SESSION, ENCRYPT) as session:
            if sealed.pcrs:
                commands.policy_pcr(session, policy.selection(sealed.pcrs))
            if counter is not None:
                self._policy_counter(session, *counter)
            # Unseal says the same for every broken policy; only this comparison can name the PCRs.
            if commands.policy_digest(session) != approval.digest:
                raise VaultError(Fault.PCR_CHANGED, "changed while the vault was opened")
            ticket = self._verify(sealed.pol_pub, approval)
            signer = policy.key_name(sealed.pol_pub)
            commands.policy_authorize(session, approval.digest, policy.REF, signer, ticket)
            if auth is not None:
                commands.policy_auth_value(session)
            try:
                size = commands.unseal(item, auth or bytearray(), session, out)
            except TpmError as error:
                if error.code == _PCR_CHANGED:
                    return False
                raise self._refusal(error) from None
            if size != len(out):
                raise VaultError(Fault.TAMPERED, "the sealed payload has another size")
        commands.scrub()
        return True

    def _policy_counter(self, session: object, index: Entity, bound: int) -> None:
        try:
            self.commands.policy_nv(session, index, policy.operand(bound))
        except TpmError as error:
            if error.code == _POLICY:
                raise VaultError(Fault.ROLLBACK, "the TPM refused the file's approval") from None
            raise

    def _refusal(self, error: TpmError) -> Exception:
        if error.kind == _AUTH_FAIL:
            return VaultError(Fault.PIN_WRONG, f"{self.facts().tries_left} tries left")
        if error.code == _LOCKOUT:
            return self.lockout()
        if error.kind == _POLICY_FAIL:
            return VaultError(Fault.TAMPERED, "the sealed object has another policy")
        return error

    def _verify(self, point: bytes, approval: Approval) -> object:
        """The TPM's ticket that K_pol signed this approval."""
        signer = self.commands.load_external(policy.public_area(point))
        try:
            digest = policy.approved_hash(approval.digest)
            return self.commands.verify(signer, digest, policy.signature(approval.r, approval.s))
        finally:
            self.commands.flush(signer)
