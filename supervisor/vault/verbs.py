"""One function per verb of the unlock helper; each takes the parsed options and the descriptors.

A verb returns what goes to the descriptor `result` (never a secret), or None.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import re
import socket
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from . import crypto, entries, levels, store, tokens, vault
from .document import Header
from .errors import Fault, VaultError
from .handover import hand_over
from .tpm import Facts, Tpm, connected

VALUE_MIN = 8  # the egress proxy cannot tell a shorter key from ordinary text, and masks none
VALUE_MAX = 16 * 1024
_NAME = re.compile("[a-z0-9][a-z0-9-]{0,62}")

Result = dict[str, Any]


class Descriptors(Protocol):
    """Where the verbs find what was handed to the process."""

    def number(self, name: str) -> int:
        """The descriptor of that name."""


@contextlib.contextmanager
def _opened(options: argparse.Namespace, *, write: bool) -> Iterator[tuple[int, vault.Opened]]:
    """The locked directory and the open vault, wiped at the end."""
    with store.locked(options.dir, write=write) as directory:
        with connected(options.tpm) as tpm:
            opened = vault.open_vault(directory, tpm)
        try:
            yield directory, opened
        finally:
            opened.wipe()


def _key_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise VaultError(Fault.KEY_NAME)
    return name


def _read_value(fd: int) -> bytearray:
    """The value to store: read to its end, one newline stripped. Raises KEY_VALUE."""
    buffer = bytearray(VALUE_MAX + 2)
    try:
        length = 0
        # readv fills a buffer of ours, so no copy is left that nobody wipes.
        while length < len(buffer):
            count = os.readv(fd, [memoryview(buffer)[length:]])
            if count == 0:
                break
            length += count
        if length and buffer[length - 1] == 0x0A:
            length -= 1
        view = memoryview(buffer)[:length]
        if not VALUE_MIN <= length <= VALUE_MAX or any(not 0x20 <= byte <= 0x7E for byte in view):
            raise VaultError(Fault.KEY_VALUE)
        return bytearray(view)
    finally:
        crypto.wipe(buffer)


def init(options: argparse.Namespace, descriptors: Descriptors) -> Result:
    """Make the vault. A TPM reached by a socket is software by choice of the caller."""
    allowed = options.allow_software_tpm or options.tpm.startswith("socket:")
    with store.locked(options.dir, write=True) as directory, connected(options.tpm) as tpm:
        header = vault.create(
            directory,
            tpm,
            options.pcrs,
            software_allowed=allowed,
            secure_boot=options.secure_boot,
        )
        facts = tpm.facts()
    return _header_result(header) | _level_result(facts, header.tpm.pcrs, options.secure_boot)


def set_key(options: argparse.Namespace, descriptors: Descriptors) -> None:
    """Store the value read from `secret` under a name, replacing an older one."""
    name = _key_name(options.name)
    value = _read_value(descriptors.number("secret"))
    try:
        with _opened(options, write=True) as (directory, opened):
            values = opened.entries()
            values[name] = memoryview(value)
            vault.change(directory, opened, values)
    finally:
        crypto.wipe(value)


def remove(options: argparse.Namespace, descriptors: Descriptors) -> None:
    """Remove a key. Older copies of the file still hold it: change it at the provider too."""
    name = _key_name(options.name)
    with _opened(options, write=True) as (directory, opened):
        values = opened.entries()
        if values.pop(name, None) is None:
            raise VaultError(Fault.KEY_UNKNOWN, name)
        vault.change(directory, opened, values)


def list_names(options: argparse.Namespace, descriptors: Descriptors) -> Result:
    """The names of the keys, without Anchorhold's own."""
    with _opened(options, write=False) as (_, opened):
        return {"names": sorted(_visible(opened.entries()))}


def unlock(options: argparse.Namespace, descriptors: Descriptors) -> None:
    """Hand keys to the egress proxy over `handover`."""
    peer = socket.socket(fileno=os.dup(descriptors.number("handover")))
    with peer, _opened(options, write=False) as (_, opened):
        values = _visible(opened.entries())
        if options.names is not None:
            names = [_key_name(name) for name in options.names.split(",") if name]
            for name in names:
                if name not in values:
                    raise VaultError(Fault.KEY_UNKNOWN, name)
            values = {name: values[name] for name in names}
        hand_over(values, peer, allow_plain=options.allow_plain_memfd)


def token(options: argparse.Namespace, descriptors: Descriptors) -> Result:
    """Issue a token of the gateway."""
    claims = {"client": options.client, "workload": options.workload, "lifetime": options.lifetime}
    tokens.check_claims(**claims)
    with _opened(options, write=False) as (_, opened):
        private = opened.entries().get(entries.SIGNING_KEY)
        if private is None or len(private) != 32:
            raise VaultError(Fault.TAMPERED, "the signing key is missing")
        kid = opened.document.header.keys[0].kid
        text, signed = tokens.issue(private, kid, **claims)
    return {"token": text, "claims": signed}


def status(options: argparse.Namespace, descriptors: Descriptors) -> Result:
    """What can be told without unsealing: vault, TPM, PCRs against approvals, threat level.

    A vault or TPM that would not open is reported as `problem`, the name of the fault.
    """
    result: Result = {"problem": None, "detail": "", "vault": None, "tpm": None, "level": None}
    header: Header | None = None
    try:
        with store.locked(options.dir, write=False) as directory:
            header = vault.load(directory).header
            result["vault"] = _header_result(header)
        with connected(options.tpm) as tpm:
            _tpm_status(result, header, tpm, options)
    except VaultError as error:
        result["problem"], result["detail"] = error.fault.name, error.detail
        if error.fault is Fault.VAULT_ABSENT:
            with contextlib.suppress(VaultError), connected(options.tpm) as tpm:
                result["tpm"] = dataclasses.asdict(tpm.facts())
    return result


def _tpm_status(result: Result, header: Header, tpm: Tpm, options: argparse.Namespace) -> None:
    facts = tpm.facts()
    result["tpm"] = dataclasses.asdict(facts)
    result |= _level_result(facts, header.tpm.pcrs, options.secure_boot)
    vault.check_sealed(header)
    key = tpm.storage_key(header.tpm.srk_name)
    approval = vault.matching_approval(header, tpm, key, facts)
    result["approval"] = {"note": approval.note, "gen": approval.gen}


def _header_result(header: Header) -> Result:
    return {
        "id": header.id,
        "generation": header.gen,
        "date": header.date,
        "pcrs": list(header.tpm.pcrs),
        "keys": [dataclasses.asdict(key) for key in header.keys],
    }


def _level_result(facts: Facts, pcrs: tuple[int, ...], secure_boot: bool) -> Result:
    found = levels.level(software=facts.software, pcrs=pcrs, secure_boot=secure_boot)
    return {"level": dataclasses.asdict(found)}


def _visible(values: dict[str, memoryview]) -> dict[str, memoryview]:
    return {k: v for k, v in values.items() if not k.startswith(entries.RESERVED)}


VERBS: dict[str, Callable[[argparse.Namespace, Descriptors], Result | None]] = {
    "init": init,
    "set": set_key,
    "remove": remove,
    "list": list_names,
    "status": status,
    "unlock": unlock,
    "token": token,
}
