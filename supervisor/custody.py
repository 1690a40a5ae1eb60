"""The vault in a running supervisor: opened at the start, or shut, and then why and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from proxy.audit import AuditUnwritable
from supervisor import boot
from supervisor.callers import EGRESS
from supervisor.egress import Egress, EgressRefused
from supervisor.keys import HELPER, SOFTWARE_TPM, Access, Keys, VaultRefused, public_keys
from supervisor.lifecycle import StartError
from supervisor.vault.errors import Fault

if TYPE_CHECKING:
    from supervisor.supervise import Supervisor

_FAULTS = (VaultRefused, *StartError)


class Custody:
    """What is known of the vault. `found` is the helper's last status, empty before the first.

    `locked`: why the egress proxy has no keys, as {"code", "why", "fix"}; None when it has them.
    """

    def __init__(self, of: Supervisor) -> None:
        self._of = of
        self.keys = Keys(of.one_shot, _access(of))
        self.found: dict[str, Any] = {}
        self.locked: dict[str, str] | None = None
        self._has_keys: Egress | None = None

    @property
    def handed(self) -> bool:
        """Whether the egress proxy that runs now has been given the keys."""
        return self._has_keys is not None and self._has_keys is self._of.egress

    @property
    def public_keys(self) -> list[dict[str, str]]:
        """With which the gateway checks tokens."""
        return public_keys(self.found)

    async def open(self) -> None:
        """Look at the vault; on the first start make an empty one. Never raises."""
        try:
            self.found = await self.keys.status()
            if self.found.get("problem") == Fault.VAULT_ABSENT.name:
                await self.keys.create()
                self.found = await self.keys.status()
        except _FAULTS as error:
            self._shut(error)
            self._of.note("vault", HELPER, "refused", reason=str(error))

    async def vouch(self, digest: bytes, signature: int) -> str:
        """Who of the vault's signers signed the policies with this digest; `signature` is a
        descriptor. Raises VaultRefused and what a launch raises."""
        words = ("--digest", digest.hex())
        fds = {"secret": signature}
        return str((await self.keys.run("policy-verify", *words, fds=fds, result=True))["signer"])

    async def look(self) -> None:
        """Take the status anew, after something was changed. Never raises."""
        try:
            self.found = await self.keys.status()
        except _FAULTS as error:
            self.found = {"problem": _code(error), "detail": str(error)} | _fix(error)

    async def unlock(self) -> None:
        """Hand the keys to the egress proxy; a shut vault leaves it answering 503. Never raises."""
        egress = self._of.egress
        if egress is None:
            return
        if self.locked and self.found.get("problem") == Fault.VAULT_ABSENT.name:
            await self._tell(egress, self.locked["code"])  # why it could not be made
            return
        try:
            await self.hand_over()
        except (AuditUnwritable, *_FAULTS) as error:
            self._of.note("unlock", EGRESS, "refused", reason=str(error))

    async def hand_over(self, *words: str, fds: Mapping[str, int] | None = None) -> None:
        """The same for an operator, who may add a PIN or a recovery code. Raises VaultRefused,
        EgressRefused, AuditUnwritable and what a launch raises."""
        egress = self._of.egress
        if egress is None:
            raise EgressRefused("the egress proxy is not running")
        try:
            self._of.record("unlock", EGRESS, "allowed")
            await self.keys.hand_to(egress, "unlock", *words, fds=fds)
        except (AuditUnwritable, *_FAULTS) as error:
            self._shut(error)
            await self.look()
            await self._tell(egress, _code(error))
            raise
        self._opened(egress)

    async def change(self, verb: str, *words: str, fds: Mapping[str, int]) -> None:
        """`set` or `remove`; the proxy, where it runs, gets all keys from the same run.

        Raises VaultRefused (HANDOVER_FAILED: changed all the same), EgressRefused and what a launch
        raises.
        """
        egress = self._of.egress
        if egress is None:
            await self.keys.run(verb, *words, fds=fds)
        else:
            await self.keys.hand_to(egress, verb, *words, fds=fds)
            self._opened(egress)

    def _opened(self, egress: Egress) -> None:
        self.locked, self._has_keys = None, egress
        self.found |= {"problem": None, "detail": ""}

    async def _tell(self, egress: Egress, code: str) -> None:
        """What the proxy answers to who needs a key."""
        try:
            await egress.order(op="locked", why=code)
        except EgressRefused as refused:
            self._of.note("locked", EGRESS, "failed", reason=str(refused))

    def _shut(self, error: Exception) -> None:
        self.locked = {"code": _code(error), "why": str(error)} | _fix(error)

    def gap(self) -> dict[str, str] | None:
        """What the status names as DEGRADED, or None. The PCRs that differ are named in words."""
        problem, detail = self.found.get("problem"), self.found.get("detail")
        if self.handed and problem == Fault.PIN_NEEDED.name:
            problem = None  # it is open; after the next start it will be needed again
        if self.locked is None and not problem:
            return None
        code = self.locked["code"] if self.locked else str(problem)
        why = self.locked["why"] if self.locked else ""
        fault = Fault.__members__.get(code)
        why = why or (f"{code}: {fault.sentence}" if fault else code)
        if code == problem and detail:
            why += f" ({detail})"
        if code == Fault.PCR_CHANGED.name and (changed := self.changed_pcrs()):
            why += ". " + "; ".join(f"PCR {n} measures {what}" for n, what in changed.items())
        fix = (self.locked or {}).get("fix") or (fault.fix if fault else "")
        return {"guarantee": "vault", "code": code, "why": why, "fix": fix}

    def waived(self) -> list[dict[str, str]]:
        """What the vault in use gives up and only its helper can see: DEGRADED like the rest."""
        if "pin-rate-limit" not in self.found.get("waivers", ()):
            return []
        fault = Fault.PIN_RATE_LIMIT
        why = f"{fault.sentence} (waived as pin-rate-limit)"
        return [{"guarantee": "pin-rate-limit", "why": why, "fix": fault.fix}]

    def changed_pcrs(self) -> dict[int, str]:
        """The bound PCRs that hold no approved value now, and what each measures."""
        rows = self.found.get("pcrs")
        return {
            row["pcr"]: boot.PCRS.get(row["pcr"], "nothing that this program knows")
            for row in (rows if isinstance(rows, list) else [])
            if isinstance(row, dict) and isinstance(row.get("pcr"), int) and not row.get("approved")
        }


def _code(error: Exception) -> str:
    """Upper case, as the vault's own codes are: the egress proxy tells it to who asks."""
    return str(getattr(error, "code", type(error).__name__)).upper()


def _fix(error: Exception) -> dict[str, str]:
    return {"fix": str(getattr(error, "fix", ""))}


def _access(of: Supervisor) -> Access:
    host, software = of.host, of.host_tpm_is_software
    facts = {
        "--secure-boot": boot.secure_boot() == "on",
        "--uki": boot.unified_kernel(),
        "--disk-encrypted": boot.encrypted("/"),
        "--allow-key-file": "file-key" in of.waived,
    }
    allowed = {
        # "device" is the administrator's word: in a virtual machine that one is software too.
        "allow-software-tpm": software or host.tpm.mode == "device" or "software-tpm" in of.waived,
        "allow-plain-memfd": "secret-memory" in of.waived,
        "allow-pin-reset": "pin-rate-limit" in of.waived,
    }
    return Access(
        where=f"socket:/run/anchorhold/{SOFTWARE_TPM}.sock" if software else "device",
        facts=tuple(word for word, holds in facts.items() if holds),
        allowed=frozenset(name for name, holds in allowed.items() if holds),
        pcrs=host.tpm.pcrs,
        pin=of.state / "srk-name",
    )
