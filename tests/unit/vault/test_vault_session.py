"""The pure-Python TPM client: key derivation by the specification, and answers that lie."""

from __future__ import annotations

import hashlib
import hmac
import struct
import time
from typing import Any

import pytest
from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.kdf.kbkdf import KBKDFHMAC, CounterLocation, Mode
from hypothesis import given
from hypothesis import strategies as st

from supervisor.vault.commands import DECRYPT, ENCRYPT, Entity, TpmError, sized
from supervisor.vault.errors import Fault, VaultError
from supervisor.vault.raw import RawCommands
from supervisor.vault.session import Session, kdfa, kdfe, salt


@given(st.binary(min_size=1, max_size=64), st.binary(max_size=32), st.binary(max_size=32))
def test_kdfa_is_sp_800_108(key: bytes, first: bytes, second: bytes) -> None:
    library = KBKDFHMAC(
        algorithm=hashes.SHA256(), mode=Mode.CounterMode, length=32, rlen=4, llen=4,
        location=CounterLocation.BeforeFixed, label=b"CFB", context=first + second, fixed=None,
    )  # fmt: skip
    assert kdfa(key, b"CFB", first, second, 256) == library.derive(key)
    assert kdfa(key, b"CFB", first, second, 512)[:16] != kdfa(key, b"CFB", first, second, 256)[:16]


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=32), st.binary(max_size=32))
def test_kdfe_is_sp_800_56a(shared: bytes, first: bytes, second: bytes) -> None:
    library = ConcatKDFHash(hashes.SHA256(), 32, b"SECRET\0" + first + second)
    assert kdfe(shared, b"SECRET", first, second) == library.derive(shared)


def ecc_public(key: ec.EllipticCurvePrivateKey) -> bytes:
    numbers = key.public_key().public_numbers()
    head = struct.pack("!HHIH", 0x0023, 0x000B, 0x0003_0472, 0)
    head += struct.pack("!HHHHHH", 0x0006, 128, 0x0043, 0x0010, 0x0003, 0x0010)
    return head + b"".join(sized(n.to_bytes(32, "big")) for n in (numbers.x, numbers.y))


def rsa_public(key: rsa.RSAPrivateKey) -> bytes:
    head = struct.pack("!HHIH", 0x0001, 0x000B, 0x0003_0472, 0)
    head += struct.pack("!HHHHHI", 0x0006, 128, 0x0043, 0x0010, 2048, 0)
    return head + sized(key.public_key().public_numbers().n.to_bytes(256, "big"))


def test_salt_reaches_the_holder_of_an_ecc_key() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    secret, encrypted = salt(ecc_public(key))
    x, y = encrypted[2:34], encrypted[36:68]
    point = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + x + y)
    own = key.public_key().public_numbers().x.to_bytes(32, "big")
    assert secret == kdfe(key.exchange(ec.ECDH(), point), b"SECRET", x, own)


def test_salt_reaches_the_holder_of_an_rsa_key() -> None:
    """Storage root keys of older machines are RSA; they are used as found."""
    key = rsa.generate_private_key(65537, 2048)
    secret, encrypted = salt(rsa_public(key))
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), b"SECRET\0")
    assert key.decrypt(encrypted, oaep) == secret


@given(st.binary(max_size=120))
def test_senseless_keys_take_no_salt(public: bytes) -> None:
    with pytest.raises(VaultError) as caught:
        salt(public)
    assert caught.value.fault is Fault.TPM_FAULT


def test_salt_refuses_a_point_off_the_curve() -> None:
    good = ecc_public(ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(VaultError):
        salt(good[:-1] + bytes([good[-1] ^ 1]))
    assert salt(good)


class Peer:
    """The TPM's side of a session, written from the specification and not from our code."""

    def __init__(self, salted: bytes, caller: bytes) -> None:
        self.nonce = b"t" * 32
        self.key = bytes(kdfa(salted, b"ATH", self.nonce, caller, 256))

    def answer(self, code: int, caller: bytes, parameters: bytes) -> tuple[bytearray, bytes]:
        self.nonce = hashlib.sha256(self.nonce).digest()
        made = kdfa(self.key, b"CFB", self.nonce, caller, 256)
        cfb = CFB(bytes(made[16:]))
        stream = Cipher(algorithms.AES(bytes(made[:16])), cfb).encryptor()
        sealed = parameters[:2] + stream.update(parameters[2:])
        digest = hashlib.sha256(struct.pack("!II", 0, code) + sealed).digest()
        attributes = bytes([0x01 | DECRYPT | ENCRYPT])
        mac = hmac.digest(self.key, digest + self.nonce + caller + attributes, "sha256")
        return bytearray(sealed), sized(self.nonce) + attributes + sized(mac)


def test_session_encrypts_authenticates_and_refuses_replays() -> None:
    session = Session(0x03000000, bytearray(b"s" * 32), b"c" * 32, b"t" * 32)
    session.attributes |= DECRYPT | ENCRYPT
    peer = Peer(b"s" * 32, b"c" * 32)
    parameters = bytearray(sized(b"the secret of the command") + b"rest")
    area = session.seal_command(0x153, b"name", parameters, b"")
    assert b"secret" not in parameters and parameters.endswith(b"rest")
    caller = area[6:38]
    answer, auth = peer.answer(0x153, caller, sized(b"the secret of the answer"))
    kept = bytearray(answer)
    flipped = bytearray(answer)
    flipped[5] ^= 1
    for code, lie in ((0x153, flipped), (0x154, bytearray(answer))):
        with pytest.raises(VaultError, match="changed on its way"):
            session.open_response(code, lie, auth, b"")
    session.open_response(0x153, answer, auth, b"")
    assert answer == sized(b"the secret of the answer")
    session.seal_command(0x153, b"name", bytearray(sized(b"again")), b"")
    with pytest.raises(VaultError, match="changed on its way"):
        session.open_response(0x153, kept, auth, b"")


class Liar:
    """A channel whose TPM answers whatever it is given."""

    def __init__(self, *answers: bytes) -> None:
        self._answers = list(answers)
        self.asked = 0

    def send(self, command: bytes) -> None:
        self.asked += 1

    def receive(self) -> bytes:
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


def response(body: bytes, code: int = 0, tag: int = 0x8001) -> bytes:
    return struct.pack("!HII", tag, 10 + len(body), code) + body


CALLS: list[tuple[str, tuple[Any, ...]]] = [
    ("properties", (0x100, 5)),
    ("persistent", (0x81000001,)),
    ("load", (Entity(1, b""), b"", b"\0\0")),
    ("load_external", (b"",)),
    ("nv", (0x01A00000,)),
    ("nv_define", (b"",)),
    ("flush", (Entity(1, b""),)),
]


@given(st.sampled_from(CALLS), st.binary(max_size=64), st.sampled_from([0x8001, 0x8002, 0]))
def test_any_answer_ends_in_a_value_or_a_named_error(
    call: tuple[str, tuple[Any, ...]], body: bytes, tag: int
) -> None:
    channel: Any = Liar(response(body, tag=tag))
    try:
        getattr(RawCommands(channel), call[0])(*call[1])
    except VaultError as error:
        assert error.fault is Fault.TPM_FAULT


def test_codes_of_the_tpm_come_through_and_busy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    refused: Any = Liar(response(b"", 0x18B))
    with pytest.raises(TpmError) as caught:
        RawCommands(refused).nv(0x01A00000)
    assert (caught.value.code, caught.value.kind) == (0x18B, 0x8B)
    patient: Any = Liar(response(b"", 0x922), response(b"", 0x90A), response(b""))
    RawCommands(patient).flush(Entity(1, b""))
    assert patient.asked == 3
    busy: Any = Liar(response(b"", 0x922))
    with pytest.raises(VaultError) as named:
        RawCommands(busy).flush(Entity(1, b""))
    assert named.value.fault is Fault.TPM_BUSY
