"""The vault as the supervisor uses it: run the unlock helper, pass descriptors, read an exit code.

No key, PIN or recovery code ever enters this process. What the operator types goes to the helper as
a descriptor; the helper hands opened keys to the egress proxy over a socket of which no end stays
here.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supervisor.egress import Egress
from supervisor.vault.errors import Fault, fault_of

HELPER, SOFTWARE_TPM = "service.unlock", "service.swtpm"
_RESULT_MAX = 65536
_KEY_ID, _PUBLIC_KEY = re.compile("[0-9a-f]{16}"), re.compile("[A-Za-z0-9_-]{43}")
_SRK_NAME = re.compile("[0-9a-f]{68}")  # algorithm and SHA-256, in hex
# What the host file allows, by the verbs to which it matters.
_ALLOWANCES = {
    "allow-software-tpm": ("init", "recover", "rotate"),
    "allow-plain-memfd": ("unlock", "set", "remove"),
    "allow-pin-reset": ("pin-set",),
}
_ENROLS = ("init", "recover", "rotate")  # after these the storage root key may be another

OneShot = Callable[[str, tuple[str, ...], Mapping[str, int]], Awaitable[int]]


class VaultRefused(Exception):
    """The helper ended with one of the vault's named faults; its code is the exit code, too."""

    def __init__(self, fault: Fault, detail: str = "") -> None:
        super().__init__(f"{fault.name}: {fault.sentence}{detail and ': '}{detail}")
        self.fault = fault
        self.code = fault.name
        self.fix = fault.fix
        self.exit = fault.code


@dataclass(frozen=True, slots=True)
class Access:
    """How the helper reaches the TPM, what it is told, and what the host file allows it.

    `where`: "device" or "socket:/PATH". `facts`: options of every verb, such as "--secure-boot".
    `allowed`: keys of _ALLOWANCES. `pin`: root's own file with the name of the TPM's storage root
    key, so that no other key can be put in its place together with the vault file.
    """

    where: str
    facts: tuple[str, ...]
    allowed: frozenset[str]
    pcrs: tuple[int, ...]
    pin: Path


class Keys:
    """The verbs of the vault. Each runs the helper once; each may raise VaultRefused."""

    def __init__(self, one_shot: OneShot, access: Access) -> None:
        self._one_shot = one_shot
        self._access = access

    async def create(self) -> None:
        """Make an empty vault."""
        pcrs = ",".join(map(str, self._access.pcrs)) or "none"
        await self.run("init", "--pcrs", pcrs, result=True)

    async def status(self) -> dict[str, Any]:
        """What the helper can tell without unsealing anything."""
        found = await self.run("status", result=True)
        if not found.get("problem"):
            self._pin(found)
        return found

    async def token(self, client: str, workload: str, lifetime: int, fds: Mapping[str, int]) -> str:
        """A signed token of the gateway. The caller passes it on and keeps no copy."""
        arguments = ("--client", client, "--workload", workload, "--lifetime", str(lifetime))
        return str((await self.run("token", *arguments, fds=fds, result=True))["token"])

    async def hand_to(
        self, egress: Egress, verb: str, *words: str, fds: Mapping[str, int] | None = None
    ) -> None:
        """Let the helper hand every key to the egress proxy: `unlock`, or a change and then that.

        Raises EgressRefused too.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            await egress.order([theirs.fileno()], op="keys")
            await self.run(verb, *words, fds={**(fds or {}), "handover": ours.fileno()})

    async def run(
        self, verb: str, *words: str, fds: Mapping[str, int] | None = None, result: bool = False
    ) -> dict[str, Any]:
        """One run of the helper; what it wrote to `result`, or nothing. Raises VaultRefused."""
        access = self._access
        options = [f"--{name}" for name in sorted(access.allowed) if verb in _ALLOWANCES[name]]
        if verb not in _ENROLS and (name := self._pinned()):
            options += ["--srk-name", name]
        line = (verb, "--tpm", access.where, *access.facts, *options, *words)
        if not result:
            self._check(await self._one_shot(HELPER, line, dict(fds or {})))
            return {}
        reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            code = await self._one_shot(HELPER, line, {**(fds or {}), "result": writing})
            said = b"" if code else _said(reading)
        finally:
            os.close(reading)
            os.close(writing)
        self._check(code)
        try:
            answer = json.loads(said)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise VaultRefused(Fault.INTERNAL)
        if verb in _ENROLS:
            self._pin(answer, anew=True)
        return answer

    def _pinned(self) -> str | None:
        try:
            name = self._access.pin.read_text("ascii").strip()
        except (FileNotFoundError, UnicodeDecodeError):
            return None
        return name if _SRK_NAME.fullmatch(name) else None

    def _pin(self, answer: Mapping[str, Any], anew: bool = False) -> None:
        tpm = answer.get("tpm")
        name = tpm.get("srk_name") if isinstance(tpm, dict) else None
        if isinstance(name, str) and _SRK_NAME.fullmatch(name) and (anew or not self._pinned()):
            new = self._access.pin.with_suffix(".new")
            new.write_text(name + "\n", "ascii")
            new.replace(self._access.pin)

    @staticmethod
    def _check(code: int) -> None:
        if fault := fault_of(code):
            raise VaultRefused(fault)


def _said(pipe: int) -> bytes:
    """What the helper, which has ended, left in the pipe."""
    try:
        return os.read(pipe, _RESULT_MAX)
    except BlockingIOError:
        return b""


def public_keys(status: Mapping[str, Any]) -> list[dict[str, str]]:
    """The gateway's verification keys out of the helper's status; anything odd is left out."""
    vault = status.get("vault")
    keys = vault.get("keys") if isinstance(vault, dict) else None
    return [
        {"kid": key["kid"], "x": key["x"]}
        for key in (keys if isinstance(keys, list) else [])
        if isinstance(key, dict)
        and _KEY_ID.fullmatch(str(key.get("kid")))
        and _PUBLIC_KEY.fullmatch(str(key.get("x")))
    ]
