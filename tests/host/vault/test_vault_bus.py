"""What an interposer on the TPM bus sees of a vault: nothing secret."""

from __future__ import annotations

import hmac
import struct
from collections.abc import Iterator

import pytest
from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from vault_scene import Helper, Recorder

PAYLOAD = b"this payload is searched on the bus, 64 bytes of it in the clear"


@pytest.mark.parametrize("backend", ["raw", "esapi"])
def test_seal_and_unseal_show_nothing_and_a_plain_run_does(
    helper: Helper, recorder: Recorder, backend: str
) -> None:
    """The same search over the same relay: salted sessions hide what password sessions show."""
    helper.where = recorder.where
    salted = helper.driver("seal", backend)
    assert salted.returncode == 0, salted.stderr.decode()
    assert len(recorder.seen) > 1000
    for begin in range(len(PAYLOAD) - 7):
        assert PAYLOAD[begin : begin + 8] not in recorder.seen
    recorder.seen.clear()
    plain = helper.driver("seal", "plain")
    assert plain.returncode == 0, plain.stderr.decode()
    assert recorder.seen.count(PAYLOAD) == 2  # once in Create, once in Unseal


def test_whole_life_of_a_vault_shows_no_key(helper: Helper, recorder: Recorder) -> None:
    """init, set, list, token over the relay; the payload is asked for afterwards, beside it."""
    helper.where = recorder.where
    helper.ok("init", "--pcrs", "7")
    assert helper.set("practice", b"sk-practice-0123456789").code == 0
    helper.ok("list")
    helper.ok("token", "--client", "alice", "--workload", "adapter.rest", "--lifetime", "60")
    seen = bytes(recorder.seen)
    helper.where = recorder.tpm.where
    kek = bytes.fromhex(helper.driver("kek", str(helper.state)).stdout.decode())
    assert len(kek) == 64
    assert len(seen) > 8000
    for begin in range(57):
        assert kek[begin : begin + 8] not in seen
    assert b"sk-practice" not in seen


def listener(exchanges: list[tuple[bytes, bytes]]) -> Iterator[bytes]:
    """What who only listens can decrypt: KDFa (TPM 2.0 part 1, 21.3) over the nonces on the bus."""
    nonces: dict[bytes, bytes] = {}

    def decrypted(newer: bytes, older: bytes, parameter: bytes) -> bytes:
        text = struct.pack("!I", 1) + b"CFB\0" + newer + older + struct.pack("!I", 256)
        made = hmac.digest(b"", text, "sha256")
        cipher = Cipher(algorithms.AES(made[:16]), CFB(made[16:]))
        return cipher.decryptor().update(parameter)

    for command, response in exchanges:
        code = int.from_bytes(command[6:10], "big")
        if code == 0x176:  # StartAuthSession: the handle, and the TPM's first nonce
            nonces[response[10:14]] = response[16:48]
        if code not in (0x153, 0x15E):  # Create, Unseal
            continue
        size = int.from_bytes(command[14:18], "big")
        session, caller = command[18:22], command[24:56]
        parameters = command[18 + size :]
        first = int.from_bytes(parameters[:2], "big") if parameters else 0
        yield decrypted(caller, nonces[session], parameters[2 : 2 + first])
        size = int.from_bytes(response[10:14], "big")
        answer, rest = response[14 : 14 + size], response[14 + size :]
        nonces[session] = rest[2:34]
        first = int.from_bytes(answer[:2], "big")
        yield decrypted(nonces[session], caller, answer[2 : 2 + first])


@pytest.mark.parametrize("kind, shown", [("unsalted", 2), ("raw", 0), ("esapi", 0)])
def test_only_the_salt_keeps_a_listener_out(
    helper: Helper, recorder: Recorder, kind: str, shown: int
) -> None:
    """Encrypted sessions without a salt show the payload twice to a script of a few lines."""
    exchanges: list[tuple[bytes, bytes]] = []

    def keep(command: bytes, response: bytes) -> bytes:
        exchanges.append((command, response))
        return response

    recorder.change = keep
    helper.where = recorder.where
    done = helper.driver("seal", kind)
    assert done.returncode == 0, done.stderr.decode()
    assert PAYLOAD not in recorder.seen
    assert sum(PAYLOAD in text for text in listener(exchanges)) == shown
