"""Two ways to speak to a TPM, of which each opens, changes and renews what the other made."""

from __future__ import annotations

import itertools
import json
import os
import socket
import struct
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from vault_scene import Helper, Recorder, Swtpm

from supervisor.vault.errors import Fault

PIN = b"correct horse"
BACKENDS = ("raw", "esapi")
CODES = {"StartAuthSession": 0x176, "Unseal": 0x15E, "NV_Increment": 0x134, "Create": 0x153}


@pytest.mark.parametrize("first, second", list(itertools.permutations(BACKENDS)))
def test_each_goes_on_where_the_other_stopped(vault: Helper, first: str, second: str) -> None:
    with vault.server() as ask:

        def by(backend: str, *arguments: str, **given: bytes) -> Fault | None:
            vault.backend = backend
            return ask(*arguments, **given)

        assert by(first, "set", "one", secret=b"the value") is None
        assert by(second, "set", "two", secret=b"the value") is None
        assert by(first, "rotate") is None
        assert by(second, "list") is None
        prediction = json.dumps({"7": "ab" * 32}).encode()
        assert by(second, "approve", "--predict", prediction=prediction) is None
        assert by(first, "pin-set", "--allow-pin-reset", secret=PIN) is None
        assert by(second, "list", pin=b"a wrong one") is Fault.PIN_WRONG
        assert by(second, "list", pin=PIN) is None
        assert by(first, "list", pin=PIN) is None
        assert by(second, "pin-remove", pin=PIN) is None
        assert by(first, "recover", secret=vault.code) is None
        vault.tpm.extend(7)
        assert by(first, "list") is by(second, "list") is Fault.PCR_CHANGED
        assert by(second, "recover", secret=vault.code) is None
        assert by(first, "list") is None
    assert vault.ok("list").json["names"] == ["one", "two"]


def test_both_say_the_same_of_a_vault_and_its_tpm(vault: Helper) -> None:
    told = []
    for vault.backend in BACKENDS:
        told.append((vault.ok("status").json, vault.ok("list").json))
    assert told[0] == told[1]
    assert told[0][0]["tpm"]["vendor"] == "SW TPM"


def test_both_ask_for_as_much_protection(vault: Helper, recorder: Recorder) -> None:
    """The commands that carry a secret or move the counter, and their session attributes."""
    asked: list[dict[str, set[int]]] = []
    vault.where = recorder.where
    for vault.backend in BACKENDS:
        seen: dict[str, set[int]] = {}

        def look(_: socket.socket, command: bytes, seen: dict[str, set[int]] = seen) -> None:
            for name, code in CODES.items():
                if command[6:10] != struct.pack("!I", code):
                    continue
                if name == "StartAuthSession":
                    key, bind = struct.unpack_from("!II", command, 10)
                    salted = command[52:54] != b"\0\0"
                    seen.setdefault(name, set()).add(key if salted else 0)
                    assert bind == 0x40000007
                    continue
                handles = 2 if name == "NV_Increment" else 1
                area = command[14 + 4 * handles :]
                nonce = int.from_bytes(area[4:6], "big")
                assert area[:1] in (b"\x02", b"\x03"), (name, "no password session")
                seen.setdefault(name, set()).add(area[6 + nonce])

        recorder.before = look
        vault.ok("rotate")
        assert vault.set("practice", b"the value").code == 0
        asked.append(seen)
    assert asked[0] == asked[1]
    assert asked[0]["Unseal"] == {0x41} and asked[0]["Create"] == {0x61}
    assert asked[0]["StartAuthSession"] == {0x81000001}


def rsa_storage_key_commands() -> tuple[bytes, Callable[[bytes], bytes]]:
    """CreatePrimary of an RSA 2048 storage key, and EvictControl of what it made."""
    password = struct.pack("!IIHBH", 9, 0x40000009, 0, 0, 0)
    public = struct.pack("!HHIH", 0x0001, 0x000B, 0x0003_0472, 0)
    public += struct.pack("!HHHHHIH", 0x0006, 128, 0x0043, 0x0010, 2048, 0, 0)
    body = struct.pack("!II", 0x131, 0x40000001) + password
    body += struct.pack("!HHH", 4, 0, 0) + struct.pack("!H", len(public)) + public
    body += struct.pack("!HI", 0, 0)

    def keep(answer: bytes) -> bytes:
        evict = struct.pack("!II", 0x120, 0x40000001) + answer[10:14] + password
        evict += struct.pack("!I", 0x81000001)
        return struct.pack("!HI", 0x8002, 6 + len(evict)) + evict

    return struct.pack("!HI", 0x8002, 6 + len(body)) + body, keep


@pytest.mark.parametrize("backend", BACKENDS)
def test_rsa_storage_key_is_used_as_found(helper: Helper, tpm: Swtpm, backend: str) -> None:
    create, keep = rsa_storage_key_commands()
    tpm.command(keep(tpm.command(create)))
    helper.backend = backend
    helper.ok("init", "--pcrs", "7")
    code = helper.new_code()
    assert helper.give("confirm-recovery", secret=code).code == 0
    assert helper.set("practice", b"the value").code == 0
    helper.backend = BACKENDS[1 - BACKENDS.index(backend)]
    assert helper.ok("list").json["names"] == ["practice"]


def test_pinned_name_is_compared_with_the_callers_too(either: Helper) -> None:
    """The file's own pin can be replaced by who writes the file; the caller's cannot."""
    name = either.ok("status").json["tpm"]["srk_name"]
    assert either.run("list", "--srk-name", name).code == 0
    other = name[:-1] + ("0" if name[-1] != "0" else "1")
    for verb in ("list", "rotate", "status"):
        outcome = either.run(verb, "--srk-name", other)
        if verb == "status":
            assert outcome.json["problem"] == "TPM_CHANGED"
        else:
            assert outcome.fault is Fault.TPM_CHANGED
    either.file.unlink()
    assert either.run("init", "--srk-name", other).fault is Fault.TPM_CHANGED


def test_swapped_storage_key_under_the_right_name(either: Helper, recorder: Recorder) -> None:
    """An interposer puts its own public key into ReadPublic and leaves the name as it was."""
    numbers = ec.generate_private_key(ec.SECP256R1()).public_key().public_numbers()
    point = b"\0\x20".join([b"", numbers.x.to_bytes(32, "big"), numbers.y.to_bytes(32, "big")])

    def swap(command: bytes, response: bytes) -> bytes:
        if command[6:10] != struct.pack("!I", 0x173):
            return response
        end = 12 + int.from_bytes(response[10:12], "big")
        return response[: end - 68] + point + response[end:]

    either.where = recorder.where
    assert either.run("list").code == 0
    recorder.change = swap
    assert either.run("list").fault is Fault.TPM_CHANGED


def test_truncated_and_senseless_answers(either: Helper, recorder: Recorder) -> None:
    """Each answer of an unlock is cut short, emptied or noise: one named error, no crash."""
    asked: list[bytes] = []
    either.where = recorder.where
    recorder.before = lambda _, command: asked.append(command[6:10])
    assert either.run("list").code == 0
    recorder.before = None
    codes = sorted(set(asked) - {struct.pack("!I", code) for code in (0x165, 0x17B)})
    lies: list[Callable[[bytes], bytes]] = [
        lambda answer: answer[:2] + struct.pack("!I", len(answer) - 1) + answer[6:-1],
        lambda answer: answer[:2] + struct.pack("!I", 10) + answer[6:10],
        lambda answer: answer[:10] + os.urandom(len(answer) - 10),
        lambda answer: b"\xff" * 10,
    ]

    def told(lie: Callable[[bytes], bytes], answer: bytes) -> bytes:
        # Of a bare header nothing can be cut off but in a way that the helper waits for the rest.
        return lie(answer) if len(answer) > 10 else lies[-1](answer)

    with either.server() as ask:
        for code in codes:
            for lie in lies:
                recorder.change = lambda command, answer, code=code, lie=lie: (
                    told(lie, answer) if command[6:10] == code else answer
                )
                fault = ask("list")
                assert fault is not Fault.INTERNAL, (code, lies.index(lie))
        recorder.change = None
        assert ask("list") is None
