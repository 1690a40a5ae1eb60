"""The vault as the supervisor uses it: run the unlock helper, pass descriptors, read an exit code.

No key ever enters this process. A key that the operator types goes to the helper as a descriptor;
the helper hands opened keys to the egress proxy over a socket of which no end stays here.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from supervisor.egress import Egress
from supervisor.vault.errors import Fault, fault_of

HELPER, SOFTWARE_TPM = "service.unlock", "service.swtpm"
_RESULT_MAX = 65536
_KEY_ID, _PUBLIC_KEY = re.compile("[0-9a-f]{16}"), re.compile("[A-Za-z0-9_-]{43}")

OneShot = Callable[[str, tuple[str, ...], Mapping[str, int]], Awaitable[int]]


class VaultRefused(Exception):
    """The helper ended with one of the vault's named faults."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(f"{fault.name}: {fault.sentence}")
        self.fault = fault
        self.code = fault.name
        self.fix = fault.fix


@dataclass(frozen=True, slots=True)
class TpmUse:
    """How the helper reaches the TPM (`device` or `socket:/PATH`) and binds a new vault to it."""

    where: str
    pcrs: tuple[int, ...]
    allow_software: bool
    secure_boot: bool


class Keys:
    """The verbs of the vault. Each runs the helper once; each may raise VaultRefused."""

    def __init__(self, one_shot: OneShot, tpm: TpmUse, plain_memory: bool) -> None:
        self._one_shot = one_shot
        self._tpm = tpm
        self._plain_memory = plain_memory

    async def open_or_create(self) -> dict[str, Any]:
        """The vault's public status; makes an empty vault on the first start."""
        status = await self.status()
        if status.get("problem") == Fault.VAULT_ABSENT.name:
            words = ["--pcrs", ",".join(map(str, self._tpm.pcrs))]
            words += ["--allow-software-tpm"] if self._tpm.allow_software else []
            await self._run("init", *words, result=True)
            status = await self.status()
        return status

    async def status(self) -> dict[str, Any]:
        """What the helper can tell without unsealing anything."""
        return await self._run("status", result=True)

    async def names(self) -> list[str]:
        """The names of the stored keys."""
        names = (await self._run("list", result=True)).get("names")
        return [str(name) for name in names] if isinstance(names, list) else []

    async def add(self, name: str, value: int) -> None:
        """Store the key that can be read from the descriptor `value`."""
        await self._run("set", name, extra={"secret": value})

    async def remove(self, name: str) -> None:
        """Forget a key."""
        await self._run("remove", name)

    async def token(self, client: str, workload: str, lifetime: int) -> str:
        """A signed token of the gateway. The caller passes it on and keeps no copy."""
        arguments = ("--client", client, "--workload", workload, "--lifetime", str(lifetime))
        return str((await self._run("token", *arguments, result=True))["token"])

    async def hand_to(self, egress: Egress) -> None:
        """Let the helper hand every key to the egress proxy. Raises EgressRefused too."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            await egress.order([theirs.fileno()], op="keys")
            options = ("--allow-plain-memfd",) if self._plain_memory else ()
            await self._run("unlock", *options, extra={"handover": ours.fileno()})

    async def _run(
        self,
        verb: str,
        *arguments: str,
        extra: Mapping[str, int] | None = None,
        result: bool = False,
    ) -> dict[str, Any]:
        # "--" would end the options, so that a name such as "--dir" could only be a name; the
        # helper's own pattern refuses it anyway.
        boot = ("--secure-boot",) if self._tpm.secure_boot else ()
        words = (verb, "--tpm", self._tpm.where, *boot, *arguments)
        if not result:
            self._check(await self._one_shot(HELPER, words, dict(extra or {})))
            return {}
        reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            code = await self._one_shot(HELPER, words, {**(extra or {}), "result": writing})
            said = b"" if code else os.read(reading, _RESULT_MAX)
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
        return answer

    @staticmethod
    def _check(code: int) -> None:
        if fault := fault_of(code):
            raise VaultRefused(fault)


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
