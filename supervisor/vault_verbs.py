"""The verbs of the vault on the control socket: `keys.VERB`, each one run of the unlock helper.

Arguments: `name` where the verb takes one; `options`, an object; `fds`, the names of the
descriptors that came along, in their order. The answer is the helper's result, without a secret. A
vault that refuses is answered with the code of its fault, which is the exit code of the command
line, too.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from supervisor.boot import PCRS
from supervisor.cli import exits
from supervisor.control import ControlError, Handler, Request
from supervisor.keys import VaultRefused
from supervisor.vault.errors import Fault

if TYPE_CHECKING:
    from supervisor.supervise import Supervisor

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_OPTIONS = {
    "pcrs": re.compile(r"none|[0-9]{1,2}(,[0-9]{1,2}){0,23}"),
    "note": re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._:+~/-]{0,79}"),
    "kind": re.compile(r"host|backup"),
    "accept-stale": None,  # takes no value
    "predict": None,
}


@dataclass(frozen=True, slots=True)
class Verb:
    """What one verb takes and what follows it.

    `named`: it takes a name. `needs`: descriptors without which it makes no sense; PIN and, where
    it only opens the vault, recovery code may come with any. `event`: what the audit record of a
    change is called. `hands_over`: the egress proxy gets the keys afterwards; `keys`: from the same
    run of the helper, which changes them.
    """

    event: str = ""
    named: bool = False
    needs: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    result: bool = True
    hands_over: bool = False
    keys: bool = False


_VERBS = {
    "list": Verb(),
    "init": Verb("vault-made", options=("pcrs",), hands_over=True),
    "set": Verb("key-set", named=True, needs=("secret",), result=False, keys=True),
    "remove": Verb("key-removed", named=True, result=False, keys=True),
    "recovery-code": Verb("recovery-code-made", needs=("code",), result=False),
    "confirm-recovery": Verb("recovery-confirmed", needs=("secret",)),
    "recover": Verb(
        "vault-recovered", needs=("secret",), options=("accept-stale", "pcrs"), hands_over=True
    ),
    "approve": Verb("boot-approved", options=("note", "predict"), result=False),
    "rebind": Verb("vault-rebound", options=("pcrs",)),
    "rotate": Verb("vault-rotated"),
    "pin-set": Verb("pin-set", needs=("secret",), result=False),
    "pin-remove": Verb("pin-removed", result=False),
    "recipient-add": Verb(
        "recipient-added", named=True, needs=("secret",), options=("kind",), result=False
    ),
    "recipient-remove": Verb("recipient-removed", named=True, result=False),
    "trust-add": Verb("signer-trusted", named=True, needs=("secret",), result=False),
    "trust-remove": Verb("signer-removed", named=True, result=False),
}
_ALSO = ("pin", "recovery", "prediction")


def vault_handlers(of: Supervisor) -> Mapping[str, Handler]:
    """Every `keys.VERB`."""
    verbs = _VaultVerbs(of)
    handlers: dict[str, Handler] = {f"keys.{word}": verbs.run for word in _VERBS}
    return handlers | {
        "keys.add": verbs.add,
        "keys.unlock": verbs.unlock,
        "keys.status": verbs.status,
    }


class _VaultVerbs:
    def __init__(self, of: Supervisor) -> None:
        self._of = of

    async def run(self, request: Request) -> object:
        """One verb of the table."""
        word = request.verb.removeprefix("keys.")
        return await self._run(word, _VERBS[word], request)

    async def add(self, request: Request) -> object:
        """A key under a new name: what is there already is replaced by `set` alone."""
        verb = dataclasses.replace(_VERBS["set"], event="key-added")
        try:
            return await self._run("set", verb, request, "--new")
        except VaultRefused as refused:
            if refused.fault is not Fault.NAME_TAKEN:
                raise
            name = request.arguments["name"]
            fix = f"`anchorhold keys set {name}` replaces it"
            said = f"there is a key {name} already"
            raise ControlError(refused.code, said, fix, refused.exit) from None

    async def unlock(self, request: Request) -> object:
        """Hand the keys to the egress proxy: with a PIN, or by the recovery code."""
        fds = descriptors(request)
        _known(fds, ("pin", "recovery"))
        request.progress({"doing": "opening the vault"})
        await self._of.vault.hand_over(*_options(request, ("accept-stale",)), fds=fds)
        self._of.lifecycle.spawn(self._settle())
        return {"unlocked": True}

    async def status(self, request: Request) -> object:
        """The helper's status, what is shut and why, and what each PCR measures."""
        custody = self._of.vault
        request.progress({"doing": "asking the TPM"})
        await custody.look()
        gap = custody.gap()
        return custody.found | {
            "locked": custody.locked,
            "handed": custody.handed,
            "gap": gap,
            "changed": {str(pcr): what for pcr, what in custody.changed_pcrs().items()},
            "measures": {str(pcr): what for pcr, what in PCRS.items()},
            "waived": [
                {"guarantee": w.guarantee, "why": w.why}
                for w in self._of.host.waivers
                if w.guarantee in ("software-tpm", "file-key", "secret-memory", "pin-rate-limit")
                and w.guarantee in self._of.waived
            ],
        }

    async def _run(self, word: str, verb: Verb, request: Request, *more: str) -> object:
        fds = descriptors(request)
        _known(fds, (*verb.needs, *_ALSO))
        if missing := [name for name in verb.needs if name not in fds]:
            raise _usage(f"keys.{word} needs a descriptor: {', '.join(missing)}")
        named = (_text(request, "name"),) if verb.named else ()
        words = (*named, *_options(request, verb.options), *more)
        request.progress({"doing": "changing the vault" if verb.event else "opening the vault"})
        custody, found = self._of.vault, dict[str, Any]()
        if not verb.event:
            return await custody.keys.run(word, *words, fds=fds, result=True)
        about = {"key": named[0]} if named else {}
        try:
            if verb.keys:
                await custody.change(word, *words, fds=fds)
            else:
                found = await custody.keys.run(word, *words, fds=fds, result=verb.result)
        except VaultRefused as refused:
            if refused.fault is Fault.HANDOVER_FAILED:
                self._of.record(verb.event, "vault", "allowed", **about)
            raise
        self._of.record(verb.event, "vault", "allowed", **about)
        if verb.hands_over and self._of.egress is not None:
            request.progress({"doing": "handing the keys to the egress proxy"})
            await custody.hand_over()
        self._of.lifecycle.spawn(self._settle())
        return found | ({"name": named[0]} if named else {})

    async def _settle(self) -> None:
        """The status as it is now; the gateway learns keys that it did not have before."""
        custody = self._of.vault
        before = custody.public_keys
        await custody.look()
        if custody.public_keys != before:
            await self._of.serve_tokens()


def descriptors(request: Request) -> dict[str, int]:
    """The request's descriptors by name. Raises ControlError."""
    names = request.arguments.get("fds", [])
    if (
        not isinstance(names, list)
        or len(names) != len(request.fds)
        or len(set(names)) != len(names)
    ):
        raise _usage("fds names each descriptor once, in order")
    return dict(zip(map(str, names), request.fds, strict=True))


def _known(fds: Mapping[str, int], names: tuple[str, ...]) -> None:
    if unknown := sorted(set(fds) - set(names)):
        raise _usage(f"no such descriptor here: {', '.join(unknown)}")


def _options(request: Request, allowed: tuple[str, ...]) -> list[str]:
    given: Any = request.arguments.get("options", {})
    if not isinstance(given, dict) or not given.keys() <= set(allowed):
        raise _usage(f"options are: {', '.join(allowed) or 'none'}")
    words = []
    for name, value in given.items():
        pattern = _OPTIONS[name]
        if pattern is None:
            if value is not True:
                raise _usage(f"{name} is true or left out")
            words.append(f"--{name}")
        elif isinstance(value, str) and pattern.fullmatch(value):
            words += [f"--{name}", value]
        else:
            raise _usage(f"{name} is not of the form that is known")
    return words


def _text(request: Request, name: str) -> str:
    value = request.arguments.get(name)
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise _usage(f"{name} is 1 to 63 of a-z, 0-9 and '-'")
    return value


def _usage(message: str) -> ControlError:
    return ControlError("bad_request", message, "see `anchorhold keys --help`", exits.USAGE)
