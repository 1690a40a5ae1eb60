"""The vault file, format version 2: strict canonical JSON, parsed before it is authenticated.

Because of that order everything is bounded and typed here, and used for nothing but the TPM steps
until the tag over the whole header was checked. Version 1 (no counter, PIN or recovery) is read,
and written as version 2 by the next commit.
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from typing import Any

from .errors import Fault, VaultError
from .fields import Fields, encode, refuse
from .header import (
    VERSION,
    Approval,
    Header,
    KeyFile,
    Nv,
    Pin,
    Recipient,
    SealedTo,
    SigningKey,
    Trusted,
    Wrap,
)

FILE_MAX = 64 * 1024
CIPHER = "chacha20-poly1305"
APPROVALS_MAX = 8
RECIPIENTS_MAX = 8
TRUST_MAX = 16
NAME = "[a-z0-9][a-z0-9-]{0,62}"
_COUNT = 2**53


@dataclass(frozen=True, slots=True)
class Document:
    """A whole vault file. `authenticated` is the header as it stands in the file."""

    header: Header
    nonce: bytes
    data: bytes
    authenticated: bytes

    def to_bytes(self) -> bytes:
        """The file. Raises VAULT_FULL over 64 KiB."""
        raw = _dump(
            {
                "header": json.loads(self.authenticated),
                "nonce": encode(self.nonce),
                "data": encode(self.data),
            }
        )
        if len(raw) > FILE_MAX:
            raise VaultError(Fault.VAULT_FULL, f"{len(raw)} bytes")
        return raw


def parse(raw: bytes) -> Document:
    """The document in `raw`. Raises TAMPERED (naming the field) or VAULT_VERSION."""
    if len(raw) > FILE_MAX:
        refuse(f"more than {FILE_MAX} bytes")
    try:
        top = json.loads(raw)
        canonical = _dump(top)
    except (ValueError, RecursionError):
        refuse("not JSON")
    # One comparison refuses duplicate keys, spaces, floats, other escapes and trailing bytes.
    if canonical != raw:
        refuse("not canonical JSON")
    fields = Fields(top, "", {"header", "nonce", "data"})
    return Document(
        header=_parse_header(fields.value("header")),
        nonce=fields.binary("nonce", 12, 12),
        data=fields.binary("data", 16, FILE_MAX),
        authenticated=_dump(fields.value("header")),
    )


def canonical(header: Header) -> bytes:
    """The bytes of a header that are authenticated with the data."""
    return _dump(_header_json(header))


def renewed(header: Header, **changes: Any) -> Header:
    """`header` with some fields replaced."""
    return dataclasses.replace(header, **changes)


def _dump(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _wrap_json(wrap: Wrap) -> dict[str, str]:
    return {"n": encode(wrap.nonce), "ct": encode(wrap.ct)}


def _header_json(header: Header) -> dict[str, Any]:
    pin, file = header.pin, header.file
    return {
        "v": VERSION,
        "id": header.id,
        "gen": header.gen,
        "date": header.date,
        "cipher": CIPHER,
        "recovery_confirmed": header.recovery_confirmed,
        "pin": pin and {"salt": encode(pin.salt), "log_n": pin.log_n},
        "recovery": [
            {
                "kind": recipient.kind,
                "name": recipient.name,
                "pub": encode(recipient.pub),
                "epk": encode(recipient.epk),
                "ct": encode(recipient.ct),
            }
            for recipient in header.recovery
        ],
        "keys": [{"kid": key.kid, "x": key.x} for key in header.keys],
        "audit": [{"kid": key.kid, "x": key.x} for key in header.audit],
        "trust": [{"name": key.name, "x": key.x} for key in header.trust],
        "tpm": header.tpm and _tpm_json(header.tpm),
        "file": file and {"kid": file.kid, "wrap": _wrap_json(file.wrap)},
    }


def _tpm_json(tpm: SealedTo) -> dict[str, Any]:
    return {
        "identity": tpm.identity,
        "ek": tpm.ek,
        "srk": tpm.srk,
        "srk_name": encode(tpm.srk_name),
        "priv": encode(tpm.priv),
        "pub": encode(tpm.pub),
        "pol_pub": encode(tpm.pol_pub),
        "nv": tpm.nv and {"index": tpm.nv.index, "base": tpm.nv.base},
        "pcrs": list(tpm.pcrs),
        "wanted": list(tpm.wanted),
        "wrap": _wrap_json(tpm.wrap),
        "approvals": [
            {
                "note": approval.note,
                "kind": approval.kind,
                "gen": approval.gen,
                "pcr": [encode(value) for value in approval.pcr],
                "digest": encode(approval.digest),
                "r": encode(approval.r),
                "s": encode(approval.s),
            }
            for approval in tpm.approvals
        ],
    }


_HEADER_KEYS = {
    *("v", "id", "gen", "date", "cipher", "recovery_confirmed", "pin", "recovery"),
    *("keys", "audit", "trust", "tpm", "file"),
}
_HEADER_KEYS_1 = (_HEADER_KEYS | {"level"}) - {"audit", "trust", "file"}
_TPM_KEYS = {
    *("identity", "ek", "srk", "srk_name", "priv", "pub", "pol_pub", "nv", "pcrs", "wanted"),
    *("wrap", "approvals"),
}
_TPM_KEYS_1 = (_TPM_KEYS | {"nv_name"}) - {"wanted"}
_APPROVAL_KEYS = {"note", "kind", "gen", "pcr", "digest", "r", "s"}


def _parse_header(value: Any) -> Header:
    # The version comes first: a later format may have other keys.
    version = value.get("v") if isinstance(value, dict) else None
    if type(version) is int and version not in (1, VERSION):
        raise VaultError(Fault.VAULT_VERSION, f"version {version % 10**6}")
    if version == 1:
        return _parse_header_1(value)
    fields = Fields(value, "header.", _HEADER_KEYS)
    fields.integer("v", VERSION, VERSION)
    fields.text("cipher", re.escape(CIPHER))
    tpm, file = fields.value("tpm"), fields.value("file")
    if (tpm is None) is (file is None):
        refuse("header.tpm or header.file must be there, and not both")
    recovery = tuple(_parse_recipient(item) for item in fields.items("recovery", 0, RECIPIENTS_MAX))
    pin = fields.value("pin")
    return Header(
        id=fields.text("id", "[0-9a-f]{32}"),
        gen=fields.integer("gen", 1, _COUNT),
        date=fields.text("date", _DATE),
        recovery_confirmed=fields.flag("recovery_confirmed"),
        pin=None if pin is None else _parse_pin(pin),
        recovery=recovery,
        keys=tuple(_parse_signing_key(item, "keys") for item in fields.items("keys", 1, 4)),
        audit=tuple(_parse_signing_key(item, "audit") for item in fields.items("audit", 1, 4)),
        trust=tuple(_parse_trusted(item) for item in fields.items("trust", 0, TRUST_MAX)),
        tpm=None if tpm is None else _parse_tpm(tpm),
        file=None if file is None else _parse_file(file),
    )


_DATE = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"


def _parse_header_1(value: Any) -> Header:
    fields = Fields(value, "header.", _HEADER_KEYS_1)
    fields.text("cipher", re.escape(CIPHER))
    fields.text("level", "T[0-3]")
    for key, empty in (("recovery_confirmed", False), ("pin", None), ("recovery", [])):
        fields.unused(key, empty)
    return Header(
        id=fields.text("id", "[0-9a-f]{32}"),
        gen=fields.integer("gen", 1, _COUNT),
        date=fields.text("date", _DATE),
        recovery_confirmed=False,
        pin=None,
        recovery=(),
        keys=tuple(_parse_signing_key(item, "keys") for item in fields.items("keys", 1, 4)),
        audit=(),
        trust=(),
        tpm=_parse_tpm(fields.value("tpm"), version=1),
        file=None,
        v=1,
    )


def _parse_signing_key(value: Any, where: str) -> SigningKey:
    fields = Fields(value, f"header.{where}.", {"kid", "x"})
    return SigningKey(kid=fields.text("kid", "[0-9a-f]{16}"), x=fields.text("x", _PUBLIC))


_PUBLIC = "[A-Za-z0-9_-]{43}"


def _parse_trusted(value: Any) -> Trusted:
    fields = Fields(value, "header.trust.", {"name", "x"})
    return Trusted(name=fields.text("name", NAME), x=fields.text("x", _PUBLIC))


def _parse_pin(value: Any) -> Pin:
    fields = Fields(value, "header.pin.", {"salt", "log_n"})
    return Pin(salt=fields.binary("salt", 16, 16), log_n=fields.integer("log_n", 14, 16))


def _parse_recipient(value: Any) -> Recipient:
    fields = Fields(value, "header.recovery.", {"kind", "name", "pub", "epk", "ct"})
    return Recipient(
        kind=fields.text("kind", "code|host|backup"),
        name=fields.text("name", NAME),
        pub=fields.binary("pub", 32, 32),
        epk=fields.binary("epk", 32, 32),
        ct=fields.binary("ct", 48, 48),
    )


def _parse_wrap(value: Any, path: str) -> Wrap:
    fields = Fields(value, path, {"n", "ct"})
    return Wrap(nonce=fields.binary("n", 12, 12), ct=fields.binary("ct", 48, 48))


def _parse_file(value: Any) -> KeyFile:
    fields = Fields(value, "header.file.", {"kid", "wrap"})
    return KeyFile(
        kid=fields.text("kid", "[0-9a-f]{16}"),
        wrap=_parse_wrap(fields.value("wrap"), "header.file.wrap."),
    )


def _parse_nv(value: Any) -> Nv:
    fields = Fields(value, "header.tpm.nv.", {"index", "base"})
    return Nv(
        index=fields.integer("index", 0x01000000, 0x01FFFFFF),
        base=fields.integer("base", -_COUNT, _COUNT),
    )


def _parse_pcrs(fields: Fields, key: str, low: int) -> tuple[int, ...]:
    pcrs = fields.items(key, low, 24)
    if any(type(pcr) is not int or not 0 <= pcr <= 23 for pcr in pcrs) or pcrs != sorted(set(pcrs)):
        refuse(f"header.tpm.{key} is not an ascending list of PCRs")
    return tuple(pcrs)


def _parse_tpm(value: Any, version: int = VERSION) -> SealedTo:
    old = version == 1
    fields = Fields(value, "header.tpm.", _TPM_KEYS_1 if old else _TPM_KEYS)
    if old:
        fields.unused("nv", None)
        fields.unused("nv_name", None)
    pcrs = _parse_pcrs(fields, "pcrs", 1 if old else 0)
    return SealedTo(
        identity=fields.text("identity", "[ -~]{1,80}"),
        ek=fields.text("ek", "unchecked|verified|absent|unknown-ca"),
        srk=fields.integer("srk", 0x81000000, 0x817FFFFF),
        srk_name=fields.binary("srk_name", 34, 34),
        priv=fields.binary("priv", 3, 1024),
        pub=fields.binary("pub", 3, 256),
        pol_pub=fields.binary("pol_pub", 64, 64),
        nv=None if old else _parse_nv(fields.value("nv")),
        pcrs=pcrs,
        wanted=pcrs if old else _parse_pcrs(fields, "wanted", 0),
        wrap=_parse_wrap(fields.value("wrap"), "header.tpm.wrap."),
        approvals=tuple(
            _parse_approval(item, len(pcrs), old=old)
            for item in fields.items("approvals", 1, APPROVALS_MAX)
        ),
    )


def _parse_approval(value: Any, pcrs: int, *, old: bool) -> Approval:
    keys = _APPROVAL_KEYS - {"kind"} if old else _APPROVAL_KEYS
    fields = Fields(value, "header.tpm.approvals.", keys)
    values = fields.items("pcr", pcrs, pcrs)
    return Approval(
        note=fields.text("note", "[ -~]{1,80}"),
        kind="current" if old else fields.text("kind", "current|predicted"),
        gen=fields.integer("gen", 1, _COUNT),
        pcr=tuple(
            Fields({"value": item}, "header.tpm.approvals.pcr.", {"value"}).binary("value", 32, 32)
            for item in values
        ),
        digest=fields.binary("digest", 32, 32),
        r=fields.binary("r", 32, 32),
        s=fields.binary("s", 32, 32),
    )
