"""Opening the vault as a verb asks for it: which TPM, what the operator typed, what is allowed."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Protocol

from . import crypto, recovery, store, vault
from .document import Document
from .errors import Fault, VaultError
from .tpm import Tpm, connected

PIN_MAX = 64


class Descriptors(Protocol):
    """Where the verbs find what was handed to the process."""

    def number(self, name: str) -> int:
        """The descriptor of that name. Raises USAGE if it was not passed."""

    def has(self, name: str) -> bool:
        """Whether it was passed."""


@contextlib.contextmanager
def typed(fd: int, most: int) -> Iterator[bytearray]:
    """What can be read from `fd` to its end, without a newline at its end; wiped afterwards.

    It may be one byte longer than `most`: the caller refuses that by the name of what it wanted.
    """
    buffer = bytearray(most + 2)
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
        value = buffer[:length]
        try:
            yield value
        finally:
            crypto.wipe(value)
    finally:
        crypto.wipe(buffer)


@contextlib.contextmanager
def present_tpm(options: argparse.Namespace) -> Iterator[Tpm | None]:
    """The TPM; None where there is none and a key file is allowed in its place."""
    with contextlib.ExitStack() as stack:
        try:
            tpm = stack.enter_context(connected(options.tpm, options.backend))
        except VaultError as error:
            if error.fault is not Fault.TPM_ABSENT or not options.allow_key_file:
                raise
            yield None
        else:
            yield tpm


@contextlib.contextmanager
def opened(
    options: argparse.Namespace, descriptors: Descriptors, *, write: bool
) -> Iterator[vault.Opened]:
    """The open vault under its lock, wiped at the end.

    Raises KEY_FILE_REFUSED for a vault with a key file where none is allowed.
    """
    with store.locked(options.dir, write=write) as directory, contextlib.ExitStack() as stack:
        doc = vault.load(directory)
        if not write and descriptors.has("recovery"):
            found = _by_recovery(directory, doc, options, descriptors)
        elif doc.header.file:
            if not options.allow_key_file:
                raise VaultError(Fault.KEY_FILE_REFUSED)
            found = vault.open_by_file(directory, doc, doc.header.file)
        else:
            pin = None
            if doc.header.pin and descriptors.has("pin"):
                pin = stack.enter_context(typed(descriptors.number("pin"), PIN_MAX))
            tpm = stack.enter_context(connected(options.tpm, options.backend))
            found = vault.open_by_tpm(directory, doc, tpm, pinned=options.srk_name, pin=pin)
        stack.callback(found.wipe)
        yield found


def _by_recovery(
    directory: int, doc: Document, options: argparse.Namespace, descriptors: Descriptors
) -> vault.Opened:
    found = by_recovery(directory, doc, descriptors.number("recovery"))
    try:
        with contextlib.ExitStack() as stack:
            tpm = quietly(lambda: stack.enter_context(connected(options.tpm, options.backend)))
            stale = getattr(options, "accept_stale", False)
            vault.check_fresh(doc.header, tpm, stale_accepted=stale)
    except BaseException:
        found.wipe()
        raise
    return found


def by_recovery(directory: int, doc: Document, fd: int) -> vault.Opened:
    """The vault opened by the recovery code or the private key that is read from `fd`."""
    with typed(fd, recovery.TEXT_MAX) as text:
        return vault.open_by_recovery(directory, doc, recovery.private_key(text))


def quietly(connect: Callable[[], Tpm]) -> Tpm | None:
    """The TPM if it can be had: where the recovery code opens the vault, it only adds a check."""
    try:
        return connect()
    except VaultError:
        return None
