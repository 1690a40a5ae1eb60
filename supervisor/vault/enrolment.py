"""The verbs that decide what opens the vault: TPM, boot states, PIN, recovery, recipients."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import re
from collections.abc import Sequence

from . import access, approvals, audit, crypto, pin, recovery, sealing, store, vault, views
from .access import Descriptors, opened, present_tpm, typed
from .document import NAME, RECIPIENTS_MAX, TRUST_MAX
from .errors import Fault, VaultError
from .header import Approval, Header, Recipient, SealedTo, Trusted
from .sealing import Boot
from .tpm import Tpm
from .views import Result


def _boot(
    tpm: Tpm | None,
    options: argparse.Namespace,
    pcrs: Sequence[int],
    wanted: Sequence[int],
    note: str,
) -> Boot | None:
    """The state booted now, on the TPM that is there; None without one.

    Raises SOFTWARE_TPM, OWNER_AUTH_SET, TPM_CHANGED, PCR_BANK_MISSING.
    """
    if tpm is None:
        return None
    # A TPM reached by a socket is software by choice of the caller.
    allowed = options.allow_software_tpm or options.tpm.startswith("socket:")
    if tpm.facts().software and not allowed:
        raise VaultError(Fault.SOFTWARE_TPM)
    key = tpm.ensure_storage_key(options.srk_name)
    tpm.read_pcrs(wanted, key, software=tpm.facts().software)  # say now what binding will need
    return sealing.boot_now(tpm, key, pcrs, wanted, note)


def _wanted(options: argparse.Namespace) -> tuple[int, ...]:
    if options.pcrs is not None:
        return tuple(options.pcrs)
    return (7,) if options.secure_boot else ()


def init(options: argparse.Namespace, descriptors: Descriptors) -> Result:
    """Make the vault, bound to no PCR yet: those wanted are bound by `confirm_recovery`."""
    with (
        store.locked(options.dir, write=True) as directory,
        present_tpm(options) as tpm,
    ):
        if store.exists(directory):
            raise VaultError(Fault.VAULT_EXISTS)
        boot = _boot(tpm, options, (), _wanted(options), "enrolment")
        blank = vault.blank(directory)
        try:
            header = vault.reenrol(blank, blank.header, tpm=tpm, boot=boot)
        finally:
            blank.wipe()
        return views.whole(header, tpm, options)


def recovery_code(options: argparse.Namespace, descriptors: Descriptors) -> None:
    """Make a fresh code in place of an older one and write it to `code`, which is the terminal."""
    out = descriptors.number("code")
    code = recovery.new_code()
    letters = bytearray()
    try:
        with opened(options, descriptors, write=True) as found:
            new = recovery.recipient(recovery.CODE, recovery.CODE, recovery.code_public(code))
            rest = tuple(r for r in found.header.recovery if r.kind != recovery.CODE)
            vault.change(
                found,
                dataclasses.replace(found.header, recovery=(new, *rest), recovery_confirmed=False),
            )
        letters = recovery.spell(code)
        letters += b"\n"
        rest_of = memoryview(letters)
        while rest_of:
            rest_of = rest_of[os.write(out, rest_of) :]
        rest_of.release()
    finally:
        crypto.wipe(code, letters)


def confirm_recovery(options: argparse.Namespace, descriptors: Descriptors) -> Result:
    """The code was typed back: only now are the wanted PCRs bound."""
    with (
        typed(descriptors.number("secret"), recovery.TEXT_MAX) as text,
        opened(options, descriptors, write=True) as found,
    ):
        codes = tuple(r for r in found.header.recovery if r.kind == recovery.CODE)
        # The file as it stands must open by it, not just the public half fit.
        doc = vault.load(found.directory)
        key = recovery.private_key(text)
        crypto.wipe(recovery.unwrap(codes, key, doc.header.id))
        header = dataclasses.replace(found.header, recovery_confirmed=True)
        header = _rebound(found, header, header.tpm.wanted if header.tpm else ())
        return views.whole(vault.change(found, header), found.tpm, options)


def _rebound(found: vault.Opened, header: Header, pcrs: Sequence[int]) -> Header:
    """`header` bound to the present values of `pcrs`; predictions stay where those are the same."""
    kept, sealed = found.sealing, header.tpm
    if sealed is None or kept is None or kept.tpm is None or kept.key is None:
        return header  # a key file is bound to nothing
    boot = sealing.boot_now(kept.tpm, kept.key, pcrs, pcrs, "bound")
    states = sealed.approvals if boot.pcrs == sealed.pcrs else boot.approvals
    sealed = dataclasses.replace(sealed, pcrs=boot.pcrs, wanted=boot.wanted, approvals=states)
    return dataclasses.replace(header, tpm=sealed)


def rebind(options: argparse.Namespace, descriptors: Descriptors) -> Result:
    """Bind to the present values of other PCRs."""
    with opened(options, descriptors, write=True) as found:
        header = found.header
        if header.tpm is None:
            raise VaultError(Fault.KEY_FILE_REFUSED, "a key file is bound to nothing")
        pcrs = header.tpm.wanted if options.pcrs is None else options.pcrs
        if pcrs and not header.recovery_confirmed:
            raise VaultError(Fault.RECOVERY_UNCONFIRMED)
        done = vault.change(found, _rebound(found, header, pcrs))
        return views.whole(done, found.tpm, options)


def approve(options: argparse.Namespace, descriptors: Descriptors) -> None:
    """Approve a boot state that is expected; without one, the present state alone."""
    with opened(options, descriptors, write=True) as found:
        sealed = found.header.tpm
        if sealed is None:
            raise VaultError(Fault.PREDICTION, "a key file is bound to nothing")
        if not options.predict:
            values = sealed.approvals[0].pcr
            now = approvals.unsigned(options.note or "approved", approvals.CURRENT, values)
            _change_approvals(found, sealed, (now,))
            return
        with typed(descriptors.number("prediction"), approvals.PREDICTION_MAX) as raw:
            values = approvals.read_prediction(bytes(raw), sealed.pcrs)
        new = approvals.unsigned(options.note or "predicted", approvals.PREDICTED, values)
        _change_approvals(found, sealed, approvals.with_prediction(sealed.approvals, new))


def _change_approvals(found: vault.Opened, sealed: SealedTo, states: tuple[Approval, ...]) -> None:
    sealed = dataclasses.replace(sealed, approvals=states)
    vault.change(found, dataclasses.replace(found.header, tpm=sealed))


def _fresh(
    found: vault.Opened,
    tpm: Tpm | None,
    options: argparse.Namespace,
    new_pin: bytearray | None = None,
) -> Result:
    """Everything that seals made anew: KEK, K_pol, sealed object, counter."""
    sealed, kept = found.header.tpm, found.sealing
    if sealed and kept and kept.key:
        boot: Boot | None = Boot(kept.key, sealed.pcrs, sealed.wanted, sealed.approvals)
    else:
        boot = _boot(tpm, options, (), _wanted(options), "rotated")
    header = vault.reenrol(found, found.header, tpm=tpm, boot=boot, pin=new_pin)
    return views.whole(header, tpm, options)


def rotate(options: argparse.Namespace, descriptors: Descriptors) -> Result:
    """Everything that seals made anew; from a key file into a TPM as soon as there is one."""
    with contextlib.ExitStack() as stack:
        found = stack.enter_context(opened(options, descriptors, write=True))
        if found.header.file:
            return _fresh(found, stack.enter_context(present_tpm(options)), options)
        return _fresh(found, found.tpm, options, found.pin)


def pin_set(options: argparse.Namespace, descriptors: Descriptors) -> Result:
    """Ask for a PIN from now on. The object that opened without it is replaced, and its keys."""
    with typed(descriptors.number("secret"), pin.LENGTH_MAX) as new:
        pin.check(new)
        with opened(options, descriptors, write=True) as found:
            if found.tpm is None:
                raise VaultError(Fault.PIN_ABSENT)
            if not found.tpm.facts().lockout_auth_set and not options.allow_pin_reset:
                raise VaultError(Fault.PIN_RATE_LIMIT)
            return _fresh(found, found.tpm, options, new)


def pin_remove(options: argparse.Namespace, descriptors: Descriptors) -> Result:
    """Open unattended again."""
    with opened(options, descriptors, write=True) as found:
        if found.header.pin is None:
            raise VaultError(Fault.PIN_ABSENT)
        return _fresh(found, found.tpm, options)


def recover(options: argparse.Namespace, descriptors: Descriptors) -> Result:
    """Open by the code or another recipient's key, and enrol whatever TPM is present."""
    with (
        store.locked(options.dir, write=True) as directory,
        present_tpm(options) as tpm,
    ):
        doc = vault.load(directory)
        found = access.by_recovery(directory, doc, descriptors.number("secret"))
        try:
            vault.check_fresh(doc.header, tpm, stale_accepted=options.accept_stale)
            header = found.header
            wanted = header.tpm.wanted if header.tpm else _wanted(options)
            wanted = wanted if options.pcrs is None else tuple(options.pcrs)
            pcrs = wanted if header.recovery_confirmed else ()
            boot = _boot(tpm, options, pcrs, wanted, "recovered")
            done = vault.reenrol(found, header, tpm=tpm, boot=boot)
        finally:
            found.wipe()
        return views.whole(done, tpm, options)


def _name(text: str) -> str:
    if not re.fullmatch(NAME, text, re.ASCII):
        raise VaultError(Fault.KEY_NAME)
    return text


def recipient_add(options: argparse.Namespace, descriptors: Descriptors) -> None:
    """Let the holder of a private key open the vault too."""
    name = _name(options.name)
    with typed(descriptors.number("secret"), recovery.TEXT_MAX) as pem:
        new = recovery.recipient(options.kind, name, recovery.public_key(pem))
    with opened(options, descriptors, write=True) as found:
        have = found.header.recovery
        if any(r.name == name or r.pub == new.pub for r in have):
            raise VaultError(Fault.NAME_TAKEN, name)
        if len(have) == RECIPIENTS_MAX:
            raise VaultError(Fault.LIST_FULL)
        vault.change(found, dataclasses.replace(found.header, recovery=(*have, new)))


def recipient_remove(options: argparse.Namespace, descriptors: Descriptors) -> None:
    """The next file does not open for them; files they could open before still do."""
    name = _name(options.name)
    with opened(options, descriptors, write=True) as found:
        rest = tuple(r for r in found.header.recovery if not _is_named(r, name))
        if len(rest) == len(found.header.recovery):
            raise VaultError(Fault.NAME_UNKNOWN, name)
        vault.change(found, dataclasses.replace(found.header, recovery=rest))


def _is_named(recipient: Recipient, name: str) -> bool:
    """The code has a name too, and is replaced by `recovery_code` only."""
    return recipient.name == name and recipient.kind != recovery.CODE


def trust_add(options: argparse.Namespace, descriptors: Descriptors) -> None:
    """Trust somebody's signatures over policies."""
    name = _name(options.name)
    with typed(descriptors.number("secret"), recovery.TEXT_MAX) as pem:
        new = Trusted(name, audit.signer_key(pem))
    with opened(options, descriptors, write=True) as found:
        have = found.header.trust
        if any(key.name == name or key.x == new.x for key in have):
            raise VaultError(Fault.NAME_TAKEN, name)
        if len(have) == TRUST_MAX:
            raise VaultError(Fault.LIST_FULL)
        vault.change(found, dataclasses.replace(found.header, trust=(*have, new)))


def trust_remove(options: argparse.Namespace, descriptors: Descriptors) -> None:
    """Trust somebody no more."""
    name = _name(options.name)
    with opened(options, descriptors, write=True) as found:
        rest = tuple(key for key in found.header.trust if key.name != name)
        if len(rest) == len(found.header.trust):
            raise VaultError(Fault.NAME_UNKNOWN, name)
        vault.change(found, dataclasses.replace(found.header, trust=rest))
