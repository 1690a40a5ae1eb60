"""The vault file, format version 1: strict canonical JSON, parsed before it is authenticated.

Because of that order everything is bounded and typed here, and used for nothing but the TPM steps
until the tag over the whole header was checked. Fields of later releases (recovery recipients, PIN
slot, rollback counter) are in the format already and must be empty: a file that uses them is
refused with VAULT_VERSION instead of being misread.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
import re
from dataclasses import dataclass
from typing import Any, NoReturn

from .errors import Fault, VaultError

VERSION = 1
FILE_MAX = 64 * 1024
CIPHER = "chacha20-poly1305"
APPROVALS_MAX = 8


@dataclass(frozen=True, slots=True)
class Approval:
    """One boot state that K_pol signed: PCR values (in the order of Tpm.pcrs) and signature."""

    note: str
    gen: int
    pcr: tuple[bytes, ...]
    digest: bytes
    r: bytes
    s: bytes


@dataclass(frozen=True, slots=True)
class SealedTo:
    """The TPM half of the header: which TPM, the sealed object, the wrapped master key."""

    identity: str
    ek: str
    srk: int
    srk_name: bytes
    priv: bytes
    pub: bytes
    pol_pub: bytes
    pcrs: tuple[int, ...]
    wrap_nonce: bytes
    wrap: bytes
    approvals: tuple[Approval, ...]


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A public Ed25519 key of tokens; the gateway gets it from `status`."""

    kid: str
    x: str


@dataclass(frozen=True, slots=True)
class Header:
    """Everything but the keys. `gen` counts commits; `date` is the last one (UTC, seconds)."""

    id: str
    gen: int
    date: str
    level: str
    keys: tuple[SigningKey, ...]
    tpm: SealedTo

    def canonical(self) -> bytes:
        """The bytes that are authenticated with the data."""
        return _dump(_header_json(self))


@dataclass(frozen=True, slots=True)
class Document:
    """A whole vault file."""

    header: Header
    nonce: bytes
    data: bytes

    def to_bytes(self) -> bytes:
        """The file. Raises VAULT_FULL over 64 KiB."""
        raw = _dump(
            {
                "header": _header_json(self.header),
                "nonce": _encode(self.nonce),
                "data": _encode(self.data),
            }
        )
        if len(raw) > FILE_MAX:
            raise VaultError(Fault.VAULT_FULL, f"{len(raw)} bytes")
        return raw


def parse(raw: bytes) -> Document:
    """The document in `raw`. Raises TAMPERED (naming the field) or VAULT_VERSION."""
    if len(raw) > FILE_MAX:
        _refuse(f"more than {FILE_MAX} bytes")
    try:
        top = json.loads(raw)
        canonical = _dump(top)
    except (ValueError, RecursionError):
        _refuse("not JSON")
    # One comparison refuses duplicate keys, spaces, floats, other escapes and trailing bytes.
    if canonical != raw:
        _refuse("not canonical JSON")
    fields = _Fields(top, "", {"header", "nonce", "data"})
    return Document(
        header=_parse_header(fields.value("header")),
        nonce=fields.binary("nonce", 12, 12),
        data=fields.binary("data", 16, FILE_MAX),
    )


def renewed(header: Header, **changes: Any) -> Header:
    """`header` with some fields replaced."""
    return dataclasses.replace(header, **changes)


def rewrapped(tpm: SealedTo, nonce: bytes, wrap: bytes) -> SealedTo:
    """`tpm` with another wrapped master key."""
    return dataclasses.replace(tpm, wrap_nonce=nonce, wrap=wrap)


def _refuse(detail: str) -> NoReturn:
    raise VaultError(Fault.TAMPERED, detail)


def _dump(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _encode(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


class _Fields:
    """A JSON object with exactly the keys named; every getter checks type and bounds."""

    def __init__(self, value: Any, path: str, keys: set[str]) -> None:
        if not isinstance(value, dict):
            _refuse(f"{path or 'file'} is not an object")
        if odd := value.keys() ^ keys:
            _refuse(f"{path}{min(odd)[:40]!r} is missing or unknown")
        self._value: dict[str, Any] = value
        self._path = path

    def value(self, key: str) -> Any:
        return self._value[key]

    def integer(self, key: str, low: int, high: int) -> int:
        value = self._value[key]
        if type(value) is not int or not low <= value <= high:
            _refuse(f"{self._path}{key} is not a number from {low} to {high}")
        return value

    def text(self, key: str, pattern: str) -> str:
        value = self._value[key]
        if not isinstance(value, str) or not re.fullmatch(pattern, value, re.ASCII):
            _refuse(f"{self._path}{key} is malformed")
        return value

    def binary(self, key: str, low: int, high: int) -> bytes:
        value = self._value[key]
        if not isinstance(value, str):
            _refuse(f"{self._path}{key} is not text")
        try:
            raw = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            _refuse(f"{self._path}{key} is not base64")
        if _encode(raw) != value or not low <= len(raw) <= high:
            _refuse(f"{self._path}{key} is not {low} to {high} bytes")
        return raw

    def items(self, key: str, low: int, high: int) -> list[Any]:
        value = self._value[key]
        if not isinstance(value, list) or not low <= len(value) <= high:
            _refuse(f"{self._path}{key} is not a list of {low} to {high}")
        return value

    def unused(self, key: str, empty: Any) -> None:
        """A field of a later release."""
        value = self._value[key]
        if type(value) is not type(empty) or value != empty:
            raise VaultError(Fault.VAULT_VERSION, f"{self._path}{key} is in use")


def _header_json(header: Header) -> dict[str, Any]:
    tpm = header.tpm
    return {
        "v": VERSION,
        "id": header.id,
        "gen": header.gen,
        "date": header.date,
        "level": header.level,
        "cipher": CIPHER,
        "recovery_confirmed": False,
        "pin": None,
        "recovery": [],
        "keys": [{"kid": key.kid, "x": key.x} for key in header.keys],
        "tpm": {
            "identity": tpm.identity,
            "ek": tpm.ek,
            "srk": tpm.srk,
            "srk_name": _encode(tpm.srk_name),
            "priv": _encode(tpm.priv),
            "pub": _encode(tpm.pub),
            "pol_pub": _encode(tpm.pol_pub),
            "nv": None,
            "nv_name": None,
            "pcrs": list(tpm.pcrs),
            "wrap": {"n": _encode(tpm.wrap_nonce), "ct": _encode(tpm.wrap)},
            "approvals": [
                {
                    "note": approval.note,
                    "gen": approval.gen,
                    "pcr": [_encode(value) for value in approval.pcr],
                    "digest": _encode(approval.digest),
                    "r": _encode(approval.r),
                    "s": _encode(approval.s),
                }
                for approval in tpm.approvals
            ],
        },
    }


_HEADER_KEYS = {
    *("v", "id", "gen", "date", "level", "cipher", "recovery_confirmed", "pin", "recovery"),
    *("keys", "tpm"),
}
_TPM_KEYS = {
    *("identity", "ek", "srk", "srk_name", "priv", "pub", "pol_pub", "nv", "nv_name", "pcrs"),
    *("wrap", "approvals"),
}
_APPROVAL_KEYS = {"note", "gen", "pcr", "digest", "r", "s"}


def _parse_header(value: Any) -> Header:
    # The version comes first: a later format may have other keys.
    if isinstance(value, dict) and type(value.get("v")) is int and value["v"] != VERSION:
        raise VaultError(Fault.VAULT_VERSION, f"version {value['v'] % 10**6}")
    fields = _Fields(value, "header.", _HEADER_KEYS)
    fields.integer("v", VERSION, VERSION)
    fields.text("cipher", re.escape(CIPHER))
    fields.unused("recovery_confirmed", False)
    fields.unused("pin", None)
    fields.unused("recovery", [])
    return Header(
        id=fields.text("id", "[0-9a-f]{32}"),
        gen=fields.integer("gen", 1, 2**53),
        date=fields.text("date", r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"),
        level=fields.text("level", "T[0-3]"),
        keys=tuple(_parse_signing_key(item) for item in fields.items("keys", 1, 4)),
        tpm=_parse_tpm(fields.value("tpm")),
    )


def _parse_signing_key(value: Any) -> SigningKey:
    fields = _Fields(value, "header.keys.", {"kid", "x"})
    return SigningKey(
        kid=fields.text("kid", "[0-9a-f]{16}"), x=fields.text("x", "[A-Za-z0-9_-]{43}")
    )


def _parse_tpm(value: Any) -> SealedTo:
    fields = _Fields(value, "header.tpm.", _TPM_KEYS)
    fields.unused("nv", None)
    fields.unused("nv_name", None)
    pcrs = fields.items("pcrs", 1, 24)
    if any(type(pcr) is not int or not 0 <= pcr <= 23 for pcr in pcrs) or pcrs != sorted(set(pcrs)):
        _refuse("header.tpm.pcrs is not an ascending list of PCRs")
    wrap = _Fields(fields.value("wrap"), "header.tpm.wrap.", {"n", "ct"})
    return SealedTo(
        identity=fields.text("identity", "[ -~]{1,80}"),
        ek=fields.text("ek", "unchecked|verified|absent|unknown-ca"),
        srk=fields.integer("srk", 0x81000000, 0x817FFFFF),
        srk_name=fields.binary("srk_name", 34, 34),
        priv=fields.binary("priv", 3, 1024),
        pub=fields.binary("pub", 3, 256),
        pol_pub=fields.binary("pol_pub", 64, 64),
        pcrs=tuple(pcrs),
        wrap_nonce=wrap.binary("n", 12, 12),
        wrap=wrap.binary("ct", 48, 48),
        approvals=tuple(
            _parse_approval(item, len(pcrs)) for item in fields.items("approvals", 1, APPROVALS_MAX)
        ),
    )


def _parse_approval(value: Any, pcrs: int) -> Approval:
    fields = _Fields(value, "header.tpm.approvals.", _APPROVAL_KEYS)
    values = fields.items("pcr", pcrs, pcrs)
    return Approval(
        note=fields.text("note", "[ -~]{1,80}"),
        gen=fields.integer("gen", 1, 2**53),
        pcr=tuple(
            _Fields({"value": item}, "header.tpm.approvals.pcr.", {"value"}).binary("value", 32, 32)
            for item in values
        ),
        digest=fields.binary("digest", 32, 32),
        r=fields.binary("r", 32, 32),
        s=fields.binary("s", 32, 32),
    )
