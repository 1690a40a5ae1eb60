"""The vault file is strict: what `to_bytes` writes is the only thing that `parse` takes."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.vault import document
from supervisor.vault.document import FILE_MAX, Document, parse
from supervisor.vault.errors import Fault, VaultError
from supervisor.vault.header import (
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

APPROVAL = Approval(
    "enrolment", "current", 1, (bytes(32), b"\x01" * 32), b"d" * 32, b"r" * 32, b"s" * 32
)
HEADER = Header(
    id="0123456789abcdef" * 2,
    gen=7,
    date="2026-11-23T02:03:04Z",
    recovery_confirmed=True,
    pin=Pin(b"s" * 16, 15),
    recovery=(Recipient("code", "code", b"p" * 32, b"e" * 32, b"c" * 48),),
    keys=(SigningKey("0123456789abcdef", "A" * 43),),
    audit=(SigningKey("0123456789abcdef", "A" * 43),),
    trust=(Trusted("alice", "A" * 43),),
    tpm=SealedTo(
        identity="IBM SW TPM 1.2",
        ek="unchecked",
        srk=0x81000001,
        srk_name=b"\x00\x0b" + b"n" * 32,
        priv=b"private",
        pub=b"public",
        pol_pub=b"p" * 64,
        nv=Nv(0x01A00000, -3),
        pcrs=(7, 11),
        wanted=(7, 11),
        wrap=Wrap(b"w" * 12, b"k" * 48),
        approvals=(APPROVAL,),
    ),
    file=None,
)


def whole(header: Header) -> Document:
    return Document(header, b"n" * 12, b"ciphertext and tag", document.canonical(header))


DOCUMENT = whole(HEADER)


FIRST_RELEASE = Path(__file__).with_name("vault_v1.json")


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def refusal(raw: bytes) -> Fault:
    with pytest.raises(VaultError) as caught:
        parse(raw)
    return caught.value.fault


def test_file_round_trip() -> None:
    raw = DOCUMENT.to_bytes()
    assert parse(raw) == DOCUMENT
    assert parse(raw).to_bytes() == raw
    assert canonical(json.loads(raw)["header"]) == document.canonical(HEADER)


def test_vault_with_a_key_file_round_trip() -> None:
    """Without a TPM; a header with neither or with both is refused."""
    file = KeyFile("0123456789abcdef", Wrap(b"w" * 12, b"k" * 48))
    other = whole(dataclasses.replace(HEADER, tpm=None, file=file, pin=None))
    assert parse(other.to_bytes()) == other
    assert refusal(whole(dataclasses.replace(HEADER, file=file)).to_bytes()) is Fault.TAMPERED
    assert refusal(whole(dataclasses.replace(HEADER, tpm=None)).to_bytes()) is Fault.TAMPERED


def test_file_of_the_first_release_is_read_as_it_was() -> None:
    """Its header is authenticated in its own form, whatever this release writes."""
    raw = FIRST_RELEASE.read_bytes()
    old = parse(raw)
    assert (old.header.v, old.header.gen) == (1, 2)
    assert old.header.tpm is not None and old.header.tpm.nv is None
    assert old.header.tpm.wanted == old.header.tpm.pcrs == (7,)
    assert old.to_bytes() == raw
    assert old.authenticated == canonical(json.loads(raw)["header"])
    changed = json.loads(raw)
    changed["header"]["recovery_confirmed"] = True
    assert refusal(canonical(changed)) is Fault.VAULT_VERSION


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, child in items:
        yield from places(child, (*path, key))


WHOLE = json.loads(DOCUMENT.to_bytes())
VERSIONED = {"v"}


@pytest.mark.parametrize("path", list(places(WHOLE)), ids=str)
def test_no_field_takes_another_type_or_goes_missing(path: tuple[Any, ...]) -> None:
    for wrong in (None, True, -1, 2**60, 1.5, "", "\n", "x" * 9001, [], {}, ["x"], {"x": 1}):
        changed = copy.deepcopy(WHOLE)
        place = changed
        for key in path[:-1]:
            place = place[key]
        optional = path[-1] in ("pin", "file") and wrong is None
        good: dict[str, list[Any]] = {
            "trust": [[]],
            "recovery": [[]],
            "wanted": [[]],
            "base": [-1],
            "recovery_confirmed": [True, False],
        }
        if optional or wrong in good.get(str(path[-1]), []):
            continue
        if place[path[-1]] == wrong and type(place[path[-1]]) is type(wrong):
            continue
        place[path[-1]] = wrong
        fault = refusal(canonical(changed))
        assert fault is Fault.TAMPERED or (
            fault is Fault.VAULT_VERSION and path[-1] in VERSIONED
        ), wrong
    if path[-2:-1] and path[-2] in ("trust", "recovery", "wanted"):
        return  # these lists may be shorter
    changed = copy.deepcopy(WHOLE)
    place = changed
    for key in path[:-1]:
        place = place[key]
    del place[path[-1]]
    if isinstance(place, dict):
        place[f"{path[-1]}2"] = 1
    assert refusal(canonical(changed)) is Fault.TAMPERED


def test_later_versions_are_named() -> None:
    changed = copy.deepcopy(WHOLE)
    changed["header"] = {"v": 3, "something": "else"}
    assert refusal(canonical(changed)) is Fault.VAULT_VERSION


def test_size_is_bounded_before_parsing_and_when_writing() -> None:
    assert refusal(b"[" * (FILE_MAX + 1)) is Fault.TAMPERED
    with pytest.raises(VaultError) as caught:
        dataclasses.replace(DOCUMENT, data=bytes(FILE_MAX)).to_bytes()
    assert caught.value.fault is Fault.VAULT_FULL


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_noise_is_refused(raw: bytes) -> None:
    assert refusal(raw) is Fault.TAMPERED


@given(st.integers(0, len(DOCUMENT.to_bytes()) - 1), st.integers(0, 255))
def test_one_changed_byte_parses_to_something_else_or_not_at_all(at: int, byte: int) -> None:
    """Whatever still parses is re-encoded to the very same bytes: no two files are alike."""
    raw = bytearray(DOCUMENT.to_bytes())
    raw[at] = byte
    try:
        assert parse(bytes(raw)).to_bytes() == bytes(raw)
    except VaultError as error:
        assert error.fault in (Fault.TAMPERED, Fault.VAULT_VERSION)
