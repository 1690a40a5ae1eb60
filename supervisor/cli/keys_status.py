"""`keys status`: what the vault stops, what it does not, and what is to be done next."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from supervisor.cli import exits
from supervisor.cli.secrets import ask_vault
from supervisor.cli.terminal import print_json, say, table

_SHOWN = 12  # characters of a PCR's value


def add(keys: Any) -> None:
    """Declare the verb."""
    status = keys.add_parser(
        "status", help="threat level, TPM, boot state, recovery; opens nothing"
    )
    status.add_argument("--json", action="store_true", help="for scripts")
    status.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """0 when the vault is open; otherwise the exit code of its fault."""
    found = ask_vault(arguments, "status")
    if arguments.json:
        print_json(found)
    else:
        for line in lines(found):
            say(line)
        if rows := list(_pcrs(found)):
            table("", ("PCR", "now", "approved", "measures"), rows)
    return exit_code(found)


def exit_code(found: dict[str, Any]) -> int:
    """The fault's own number, so that a monitor need not read the text."""
    from supervisor.vault.errors import Fault

    gap = found.get("gap")
    if not gap:
        return exits.OK
    fault = Fault.__members__.get(str(gap.get("code")))
    return fault.code if fault else exits.FAILED


def lines(found: dict[str, Any]) -> Iterator[str]:
    """Everything but the table of PCRs."""
    if gap := found.get("gap"):
        if found.get("handed"):
            yield "open for now: the egress proxy has the keys until it is started again"
        yield f"SHUT  {gap['why']}"
        if gap.get("fix"):
            yield f"      to do: {gap['fix']}"
    else:
        yield "open: the egress proxy has the keys"
    level = found.get("level") or {}
    if level:
        yield f"level: {level['code']}"
        yield f"  stops: {level['stops']}"
        yield f"  does not stop: {level['does_not_stop']}"
        for reason in level.get("reasons", ()):
            yield f"  because: {reason}"
        if level.get("next"):
            yield f"  next: {level['next']}"
    yield from _tpm(found.get("tpm") or {})
    yield from _vault(found)
    for waiver in found.get("waived", ()):
        yield f"WAIVED  {waiver['guarantee']}: {waiver['why']}"


def _tpm(tpm: dict[str, Any]) -> Iterator[str]:
    if not tpm:
        yield "TPM: none answers"
        return
    kind = (
        "software TPM, which protects nothing against root" if tpm.get("software") else "hardware"
    )
    name = " ".join(str(tpm[key]) for key in ("manufacturer", "vendor") if tpm.get(key))
    yield f"TPM: {kind}; {name or tpm.get('identity', 'unknown maker')}"
    if tpm.get("ek"):
        yield f"  endorsement certificate: {tpm['ek']}"
    if tpm.get("in_lockout"):
        yield f"  LOCKED OUT: tries again in {tpm.get('lockout_seconds')} s"
    if tpm.get("lockout_auth_set") is False:
        yield "  lockout password: not set, so root can reset the count of wrong PINs"


def _vault(found: dict[str, Any]) -> Iterator[str]:
    vault = found.get("vault")
    if not vault:
        return
    yield f"vault: {vault['id']}, generation {vault['generation']} of {vault['date']}"
    if counter := found.get("counter"):
        yield (
            f"  rollback counter: {counter.get('value')} for generation"
            f" {counter.get('generation')} ({counter.get('state')})"
        )
    if found.get("upgrade"):
        yield f"  upgrade: {found['upgrade']}"
    recovery = vault.get("recovery")
    if recovery is not None:
        state = "none: `anchorhold keys recovery-code`"
        if recovery.get("code"):
            state = "confirmed" if recovery.get("confirmed") else "NOT confirmed: type it back"
        yield f"  recovery code: {state}"
        for recipient in recovery.get("recipients", ()):
            yield f"  recipient: {recipient['name']} ({recipient['kind']})"
    if "pin" in vault:
        yield f"  PIN: {'needed at each start' if vault['pin'] else 'none'}"
    if vault.get("key_file"):
        yield "  KEY FILE: the sealing key lies beside the vault; whoever reads the disk has all"
    for approval in found.get("approvals", ()):
        yield f"  approved boot state: {approval['note']} ({approval.get('kind', '')})"


def _pcrs(found: dict[str, Any]) -> Iterator[tuple[object, ...]]:
    measures = found.get("measures", {})
    for row in found.get("pcrs", ()):
        expected = ", ".join(value[:_SHOWN] for value in row.get("expected", ()))
        verdict = "yes" if row.get("approved") else f"NO, but {expected or 'nothing'}"
        yield (
            row["pcr"],
            (row.get("now") or "")[:_SHOWN],
            verdict,
            measures.get(str(row["pcr"]), "?"),
        )
