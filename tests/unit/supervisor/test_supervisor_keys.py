"""How the unlock helper is called: what it is told, what it may, and what is believed of it."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from supervisor.keys import Access, Keys, VaultRefused, public_keys
from supervisor.vault.errors import Fault

NAME = "000b" + "ab" * 32
OTHER = "000b" + "cd" * 32


class Helper:
    """Takes down each call; writes `result` and ends with `code`."""

    def __init__(self, folder: Path, allowed: frozenset[str] = frozenset()) -> None:
        self.calls: list[tuple[tuple[str, ...], set[str]]] = []
        self.result: bytes = b"{}\n"
        self.code = 0
        self.pin = folder / "srk-name"
        self.keys = Keys(self.run, Access("device", ("--secure-boot",), allowed, (7, 11), self.pin))

    async def run(self, id_: str, words: tuple[str, ...], fds: Mapping[str, int]) -> int:
        assert id_ == "service.unlock"
        self.calls.append((words, set(fds)))
        if "result" in fds:
            os.write(fds["result"], self.result)
        return self.code

    def ask(self, verb: str, *words: str, result: bool = True) -> dict[str, Any]:
        return asyncio.run(self.keys.run(verb, *words, result=result))


def test_facts_go_with_every_verb_and_what_is_allowed_with_its_own(tmp_path: Path) -> None:
    every = frozenset({"allow-software-tpm", "allow-plain-memfd", "allow-pin-reset"})
    helper = Helper(tmp_path, every)
    expected = {
        "rotate": ["--allow-software-tpm"],
        "unlock": ["--allow-plain-memfd"],
        "set": ["--allow-plain-memfd"],
        "pin-set": ["--allow-pin-reset"],
        "list": [],
    }
    for verb, options in expected.items():
        helper.ask(verb, "more")
        assert helper.calls[-1][0] == (verb, "--tpm", "device", "--secure-boot", *options, "more")
    careful = Helper(tmp_path)
    for verb in expected:
        careful.ask(verb)
        assert not [word for word in careful.calls[-1][0] if word.startswith("--allow")]


def test_the_storage_root_key_is_remembered_and_held_against_the_next(tmp_path: Path) -> None:
    helper = Helper(tmp_path)
    helper.result = json.dumps({"problem": "PCR_CHANGED", "tpm": {"srk_name": NAME}}).encode()
    asyncio.run(helper.keys.status())
    assert not helper.pin.exists(), "nothing is learned of a vault that does not open"
    helper.result = json.dumps({"problem": None, "tpm": {"srk_name": NAME}}).encode()
    asyncio.run(helper.keys.status())
    assert helper.pin.read_text() == NAME + "\n"
    helper.result = json.dumps({"problem": None, "tpm": {"srk_name": OTHER}}).encode()
    asyncio.run(helper.keys.status())
    assert helper.pin.read_text() == NAME + "\n", "another one does not replace it"
    assert helper.calls[-1][0][-2:] == ("--srk-name", NAME)
    helper.ask("recover")
    assert "--srk-name" not in helper.calls[-1][0], "it may be another TPM"
    assert helper.pin.read_text() == OTHER + "\n"
    helper.result = json.dumps({"tpm": {"srk_name": "../../etc"}}).encode()
    helper.ask("rotate")
    assert helper.pin.read_text() == OTHER + "\n"


@pytest.mark.parametrize("said", [b"", b"[]", b"{", b"\xff", b"[" * 5000, b'"text"'])
def test_a_result_that_is_no_object_is_a_failure(tmp_path: Path, said: bytes) -> None:
    helper = Helper(tmp_path)
    helper.result = said
    with pytest.raises(VaultRefused) as refused:
        helper.ask("list")
    assert refused.value.fault is Fault.INTERNAL
    helper.result = b'{"names": []}'
    assert helper.ask("list") == {"names": []}


def test_an_exit_code_is_the_fault_and_the_command_lines_own(tmp_path: Path) -> None:
    helper = Helper(tmp_path)
    for fault in Fault:
        helper.code = fault.code
        with pytest.raises(VaultRefused) as refused:
            helper.ask("set", result=False)
        error = refused.value
        assert (error.code, error.fix, error.exit) == (fault.name, fault.fix, fault.code)
    helper.code = 137
    with pytest.raises(VaultRefused, match="INTERNAL"):
        helper.ask("set", result=False)


def test_public_keys_are_taken_only_in_their_form() -> None:
    good = {"kid": "ab" * 8, "x": "A" * 43}
    odd = [{"kid": "ab" * 8}, {"kid": "../", "x": "A" * 43}, "text", {"kid": "ab" * 8, "x": "="}]
    assert public_keys({"vault": {"keys": [*odd, good | {"more": 1}]}}) == [good]
    for nothing in ({}, {"vault": None}, {"vault": {"keys": "x"}}):
        assert public_keys(nothing) == []
