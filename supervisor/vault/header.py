"""What the header of a vault file says, as immutable values. `document` reads and writes them."""

from __future__ import annotations

from dataclasses import dataclass

VERSION = 2


@dataclass(frozen=True, slots=True)
class Wrap:
    """The master key, sealed under a key that the file does not hold."""

    nonce: bytes
    ct: bytes


@dataclass(frozen=True, slots=True)
class Approval:
    """One boot state that K_pol signed: PCR values (in the order of SealedTo.pcrs), signature.

    `kind` is `current` for a state that was booted and `predicted` for one that is expected.
    """

    note: str
    kind: str
    gen: int
    pcr: tuple[bytes, ...]
    digest: bytes
    r: bytes
    s: bytes


@dataclass(frozen=True, slots=True)
class Nv:
    """The rollback counter: its handle; generation g expects the value `base` + g."""

    index: int
    base: int


@dataclass(frozen=True, slots=True)
class SealedTo:
    """The TPM half of the header: which TPM, the sealed object, the wrapped master key.

    `wanted` are the PCRs to bind to as soon as the recovery code is confirmed. `nv` is None in
    version 1 only.
    """

    identity: str
    ek: str
    srk: int
    srk_name: bytes
    priv: bytes
    pub: bytes
    pol_pub: bytes
    nv: Nv | None
    pcrs: tuple[int, ...]
    wanted: tuple[int, ...]
    wrap: Wrap
    approvals: tuple[Approval, ...]


@dataclass(frozen=True, slots=True)
class KeyFile:
    """The half of the header without a TPM: which key file opens it."""

    kid: str
    wrap: Wrap


@dataclass(frozen=True, slots=True)
class Pin:
    """How the PIN is stretched: scrypt with r = 8, p = 1."""

    salt: bytes
    log_n: int


@dataclass(frozen=True, slots=True)
class Recipient:
    """Someone who can open the file without the TPM: an X25519 key and the master key for it."""

    kind: str
    name: str
    pub: bytes
    epk: bytes
    ct: bytes


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A public Ed25519 key; that of tokens goes to the gateway by `status`."""

    kid: str
    x: str


@dataclass(frozen=True, slots=True)
class Trusted:
    """A public Ed25519 key of somebody who signs policies."""

    name: str
    x: str


@dataclass(frozen=True, slots=True)
class Header:
    """Everything but the keys. `gen` counts commits; `date` is the last one (UTC, seconds)."""

    id: str
    gen: int
    date: str
    recovery_confirmed: bool
    pin: Pin | None
    recovery: tuple[Recipient, ...]
    keys: tuple[SigningKey, ...]
    audit: tuple[SigningKey, ...]
    trust: tuple[Trusted, ...]
    tpm: SealedTo | None
    file: KeyFile | None
    v: int = VERSION
