"""The TPM policies of the sealed object and of the rollback counter, computed in software.

The object is bound for life to PolicyAuthorize(K_pol, REF): it opens in any boot state that K_pol
signed. K_pol's private half is sealed inside the object itself, so only who can open the vault can
approve a new state. One approval is the signature over PolicyPCR of one set of PCR values, then
PolicyNV: the counter is not past the file's generation. With a PIN, PolicyAuthValue follows
PolicyAuthorize, so that no approval can drop it.
Formulas: TPM 2.0 library specification part 3, 23.3 (PolicySigned), 23.7 (PolicyPCR), 23.9
(PolicyNV), 23.16 (PolicyAuthorize), 23.17 (PolicyAuthValue).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import (
    Prehashed,
    decode_dss_signature,
    encode_dss_signature,
)

REF = b"vault/pcr/v1"
BUMP_REF = b"vault/bump/v1"
_CC_POLICY_NV = 0x00000149
_CC_POLICY_SIGNED = 0x00000160
_CC_POLICY_AUTHORIZE = 0x0000016A
_CC_POLICY_AUTH_VALUE = 0x0000016B
_CC_POLICY_PCR = 0x0000017F
_SHA256 = 0x000B
_UNSIGNED_LE = 0x0009


def _sha256(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def selection(pcrs: Sequence[int]) -> bytes:
    """TPML_PCR_SELECTION, marshalled: the SHA-256 bank and the PCRs named (0 to 23)."""
    bits = sum(1 << pcr for pcr in pcrs)
    return struct.pack("!IHB", 1, _SHA256, 3) + bits.to_bytes(3, "little")


def pcr_digest(values: Sequence[bytes]) -> bytes:
    """The digest over PCR values in ascending order of their index."""
    return _sha256(*values)


def policy_pcr(pcrs: Sequence[int], values: Sequence[bytes]) -> bytes:
    """The policy digest after PolicyPCR in a fresh session."""
    code = struct.pack("!I", _CC_POLICY_PCR)
    return _sha256(bytes(32), code, selection(pcrs), pcr_digest(values))


def operand(bound: int) -> bytes:
    """What PolicyNV compares the counter with: 8 bytes, big endian."""
    return struct.pack("!Q", bound)


def policy_nv(before: bytes, name: bytes, bound: int) -> bytes:
    """The policy digest `before`, extended by PolicyNV: the index `name` holds at most `bound`."""
    arguments = _sha256(operand(bound), struct.pack("!HH", 0, _UNSIGNED_LE))
    return _sha256(before, struct.pack("!I", _CC_POLICY_NV), arguments, name)


def boot_state(
    pcrs: Sequence[int], values: Sequence[bytes], name: bytes | None, bound: int
) -> bytes:
    """The policy digest of one approval: PCR values (if any), then the counter (if there is one).

    Raises ValueError where neither is there: such a policy would hold anywhere.
    """
    if not pcrs and name is None:
        raise ValueError("a policy of nothing")
    digest = policy_pcr(pcrs, values) if pcrs else bytes(32)
    return digest if name is None else policy_nv(digest, name, bound)


def public_area(point: bytes) -> bytes:
    """TPMT_PUBLIC of K_pol from its point X|Y: P-256, may only sign, with ECDSA and SHA-256."""
    attributes = 0x0004_0040  # SIGN_ENCRYPT | USERWITHAUTH
    head = struct.pack("!HHIH", 0x0023, _SHA256, attributes, 0)
    scheme = struct.pack("!HHHHH", 0x0010, 0x0018, _SHA256, 0x0003, 0x0010)
    x, y = point[:32], point[32:]
    return head + scheme + struct.pack("!H", 32) + x + struct.pack("!H", 32) + y


def key_name(point: bytes) -> bytes:
    """The TPM name of K_pol: algorithm and digest of its public area."""
    return struct.pack("!H", _SHA256) + _sha256(public_area(point))


def policy_authorize(point: bytes) -> bytes:
    """The policy digest after PolicyAuthorize(K_pol, REF): what the object is bound to."""
    code = struct.pack("!I", _CC_POLICY_AUTHORIZE)
    return _sha256(_sha256(bytes(32), code, key_name(point)), REF)


def policy_auth_value(before: bytes) -> bytes:
    """The policy digest `before`, extended by PolicyAuthValue."""
    return _sha256(before, struct.pack("!I", _CC_POLICY_AUTH_VALUE))


def policy_bump(point: bytes) -> bytes:
    """The policy digest after PolicySigned(K_pol, BUMP_REF): what lets the counter move."""
    code = struct.pack("!I", _CC_POLICY_SIGNED)
    return _sha256(_sha256(bytes(32), code, key_name(point)), BUMP_REF)


def bump_hash(nonce: bytes) -> bytes:
    """What K_pol signs in a session with that TPM nonce: no expiry, no command hash."""
    return _sha256(nonce, bytes(4), BUMP_REF)


def approved_hash(digest: bytes) -> bytes:
    """What K_pol signs to approve the policy `digest`."""
    return _sha256(digest, REF)


def new_key() -> tuple[ec.EllipticCurvePrivateKey, bytes]:
    """A fresh K_pol and its point X|Y."""
    key = ec.generate_private_key(ec.SECP256R1())
    numbers = key.public_key().public_numbers()
    return key, numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")


def load_key(scalar: bytearray) -> ec.EllipticCurvePrivateKey:
    """K_pol from its private scalar."""
    return ec.derive_private_key(int.from_bytes(scalar, "big"), ec.SECP256R1())


def sign(key: ec.EllipticCurvePrivateKey, digest: bytes) -> tuple[bytes, bytes]:
    """K_pol's ECDSA signature (r, s), 32 bytes each, of a SHA-256 digest."""
    r, s = decode_dss_signature(key.sign(digest, ec.ECDSA(Prehashed(hashes.SHA256()))))
    return r.to_bytes(32, "big"), s.to_bytes(32, "big")


def approve(key: ec.EllipticCurvePrivateKey, digest: bytes) -> tuple[bytes, bytes]:
    """K_pol's signature (r, s) that approves the policy `digest`."""
    return sign(key, approved_hash(digest))


def signature(r: bytes, s: bytes) -> bytes:
    """TPMT_SIGNATURE: ECDSA with SHA-256."""
    return struct.pack("!HHH", 0x0018, _SHA256, 32) + r + struct.pack("!H", 32) + s


def is_approved(point: bytes, digest: bytes, r: bytes, s: bytes) -> bool:
    """Whether (r, s) is K_pol's approval of `digest`. A point off the curve approves nothing."""
    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + point)
        der = encode_dss_signature(int.from_bytes(r, "big"), int.from_bytes(s, "big"))
        key.verify(der, approved_hash(digest), ec.ECDSA(Prehashed(hashes.SHA256())))
    except (InvalidSignature, ValueError):
        return False
    return True
