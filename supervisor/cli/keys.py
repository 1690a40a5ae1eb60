"""`keys`: the vault and the API keys in it, by name. Values go in and never come out."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from supervisor.cli import exits, keys_status, predict
from supervisor.cli.secrets import add_option, add_pin_option, ask_vault, read
from supervisor.cli.terminal import confirmed, print_json, say, table
from supervisor.control import ControlError

_KEY_MIN = 8  # what is shorter cannot be told from ordinary text, so it would never be masked
_KEY_MAX = 8192
_CODE = "recovery code: "


def add(verbs: Any) -> None:
    """Declare the verbs."""
    keys = verbs.add_parser("keys", help="the vault and the API keys in it").add_subparsers(
        metavar="VERB", required=True
    )
    for word, help_ in (
        ("add", "store a key under a new name: asked for without echo, or read from stdin"),
        ("set", "the same; a key of that name is replaced, in use within a second"),
    ):
        new = _verb(keys, word, help_, run_store)
        new.add_argument("name")
        new.set_defaults(verb=word)
        add_option(new, "the key")
    _verb(keys, "remove", "forget a key", run_remove).add_argument("name")
    _verb(keys, "list", "the names of the stored keys", run_list)
    keys_status.add(keys)
    init = _verb(keys, "init", "make the vault, where the first start could not", run_change)
    _pcrs(init)
    init.set_defaults(verb="init", done="made an empty vault")
    unlock = _verb(keys, "unlock", "open the vault with its PIN or the recovery code", run_unlock)
    unlock.add_argument("--recovery", action="store_true", help="by the code, without the TPM")
    _stale(unlock)
    add_option(unlock, "the recovery code")
    _recovery(keys)
    _boot_states(keys)
    pin = keys.add_parser("pin", help="a PIN without which the vault does not open")
    pin = pin.add_subparsers(metavar="VERB", required=True)
    add_option(_verb(pin, "set", "set or change it", run_pin_set), "the new PIN")
    _verb(pin, "remove", "open without it again", run_change).set_defaults(
        verb="pin-remove", done="the vault opens without a PIN"
    )
    _named_lists(keys)


def _verb(verbs: Any, word: str, help_: str, run: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(word, help=help_)
    parser.add_argument("--json", action="store_true", help="for scripts")
    add_pin_option(parser)
    parser.set_defaults(run=run)
    return parser


def _recovery(keys: Any) -> None:
    code = _verb(keys, "recovery-code", "a new recovery code, shown once", run_recovery_code)
    code.add_argument(
        "--no-confirm", action="store_true", help="do not ask to type it back; confirm it later"
    )
    confirm = _verb(
        keys, "confirm-recovery", "prove that the code was written down", run_confirm_recovery
    )
    add_option(confirm, "the code")
    recover = _verb(
        keys, "recover", "seal the vault anew to the TPM and boot state that are there", run_recover
    )
    _stale(recover)
    _pcrs(recover)
    add_option(recover, "the code, or the private key of a recipient")


def _boot_states(keys: Any) -> None:
    approve = _verb(
        keys,
        "approve",
        "let the vault open in the present boot state, or a coming one",
        run_approve,
    )
    predict.add_options(approve)
    approve.add_argument("--note", help="kept with the approval: letters, digits, spaces")
    rebind = _verb(keys, "rebind", "bind the vault to other PCRs", run_change)
    _pcrs(rebind)
    rebind.set_defaults(verb="rebind", done="bound anew")
    _verb(
        keys, "rotate", "new sealing keys and counter, after root may have been taken", run_change
    ).set_defaults(verb="rotate", done="sealed under new keys; API keys stay as they are")


def _named_lists(keys: Any) -> None:
    for what, text, kind in (
        ("recipient", "others who can recover the vault: another host, an offline key", "X25519"),
        ("trust", "whose signatures under policies count", "Ed25519"),
    ):
        verbs = keys.add_parser(what, help=text).add_subparsers(metavar="VERB", required=True)
        new = _verb(verbs, "add", f"add one by its public key (PEM, {kind})", run_add_public)
        new.add_argument("name")
        new.add_argument("file", nargs="?", help="default: standard input")
        new.set_defaults(what=what)
        if what == "recipient":
            new.add_argument("--kind", choices=("host", "backup"), default="backup")
        remove = _verb(verbs, "remove", "take one out", run_change)
        remove.add_argument("name")
        remove.set_defaults(verb=f"{what}-remove", done="removed")
        _verb(verbs, "list", "their names", run_list_public).set_defaults(what=what)


def _pcrs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pcrs", metavar="LIST", help="such as 7 or 7,11, or none")


def _stale(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--accept-stale", action="store_true", help="also a file that may be an older one"
    )


# --- API keys -------------------------------------------------------------------------------------


def run_store(arguments: argparse.Namespace) -> int:
    """Read the key and hand it over in a pipe."""
    value = _checked(read(f"key for {arguments.name}: ", arguments.from_fd))
    found = ask_vault(arguments, arguments.verb, {"name": arguments.name}, {"secret": value})
    return _done(arguments, found, f"stored: {arguments.name}")


def run_remove(arguments: argparse.Namespace) -> int:
    """Forget one."""
    found = ask_vault(arguments, "remove", {"name": arguments.name})
    return _done(arguments, found, f"removed: {arguments.name}; revoke it at its provider, too")


def run_list(arguments: argparse.Namespace) -> int:
    """Names, one a line."""
    names = ask_vault(arguments, "list")["names"]
    if arguments.json:
        print_json(names)
    else:
        for name in names:
            say(name)
    return exits.OK


def _checked(value: bytes) -> bytes:
    wrong = "is empty" if not value else ""
    if 0 < len(value) < _KEY_MIN:
        wrong = f"has fewer than {_KEY_MIN} characters, too few to be recognised and masked"
    elif len(value) > _KEY_MAX:
        wrong = f"is longer than {_KEY_MAX} bytes"
    elif any(byte < 33 or byte > 126 for byte in value):
        wrong = "holds a space, a line break or a character that no HTTP header may hold"
    if wrong:
        raise ControlError("bad_key", f"the key {wrong}", "give the bare key", exits.USAGE)
    return value


# --- the vault ------------------------------------------------------------------------------------


def run_change(arguments: argparse.Namespace) -> int:
    """A verb that takes at most a name and PCRs."""
    named = {"name": arguments.name} if hasattr(arguments, "name") else {}
    found = ask_vault(arguments, arguments.verb, named | _options(arguments, "pcrs"))
    return _done(arguments, found, ": ".join((arguments.done, *named.values())))


def run_unlock(arguments: argparse.Namespace) -> int:
    """Hand the keys to the egress proxy now."""
    by_code = {"recovery": read(_CODE, arguments.from_fd)} if arguments.recovery else {}
    found = _although_stale(arguments, "unlock", by_code)
    return _done(arguments, found, "unlocked: the egress proxy has the keys")


def run_recovery_code(arguments: argparse.Namespace) -> int:
    """The helper writes the code to the terminal itself; then it is asked for."""
    sys.stdout.flush()
    ask_vault(arguments, "recovery-code", lent={"code": sys.stdout.fileno()})
    if arguments.no_confirm or not (sys.stdin.isatty() and sys.stdout.isatty()):
        print("Confirm it: anchorhold keys confirm-recovery", file=sys.stderr)
        return exits.OK
    say("This code is shown once and kept nowhere. Write it down on paper, away from this machine.")
    say("Whoever has it and a copy of the vault file has the keys. Now type it back from there.")
    return run_confirm_recovery(argparse.Namespace(**vars(arguments), from_fd=None))


def run_confirm_recovery(arguments: argparse.Namespace) -> int:
    """Typed back: from now on the vault may be bound to a boot state."""
    found = ask_vault(
        arguments, "confirm-recovery", secrets={"secret": read(_CODE, arguments.from_fd)}
    )
    bound = ", ".join(map(str, found.get("pcrs", ()))) or "none"
    return _done(arguments, found, f"confirmed; the vault is bound to PCRs: {bound}")


def run_recover(arguments: argparse.Namespace) -> int:
    """Open by the code and seal to what is there. Tells how old the file is."""
    secret = {"secret": read(_CODE, arguments.from_fd)}
    found = _although_stale(arguments, "recover", secret, "pcrs")
    told = f"recovered: generation {found.get('generation')} of {found.get('date')}"
    return _done(arguments, found, f"{told}; the egress proxy has the keys")


def run_approve(arguments: argparse.Namespace) -> int:
    """Approve the present state, or the states that an update will bring."""
    if not (arguments.predict or arguments.variable or arguments.values):
        found = ask_vault(arguments, "approve", _options(arguments, "note"))
        return _done(arguments, found, "approved: the present boot state")
    return predict.run(arguments)


def run_pin_set(arguments: argparse.Namespace) -> int:
    """A new PIN, typed twice on a terminal."""
    new = read("new PIN: ", arguments.from_fd)
    if arguments.from_fd is None and sys.stdin.isatty() and read("again: ", None) != new:
        raise ControlError("not_equal", "the two are not the same", exit=exits.USAGE)
    found = ask_vault(arguments, "pin-set", secrets={"secret": new})
    done = "the PIN is set: after each start the vault waits for `anchorhold keys unlock`"
    return _done(arguments, found, done)


def _although_stale(
    arguments: argparse.Namespace, verb: str, secrets: dict[str, bytes], *options: str
) -> Any:
    values = _options(arguments, *options, "accept-stale")
    try:
        return ask_vault(arguments, verb, values, secrets)
    except ControlError as error:
        if error.code != "RECOVERY_STALE" or arguments.accept_stale:
            raise
        vault = ask_vault(arguments, "status").get("vault") or {}
        say(f"The file is generation {vault.get('generation')} of {vault.get('date')}.")
        say("Nothing here can tell whether a newer one was lost: an older file holds older keys.")
        if not confirmed("Use it?"):
            raise
    values.setdefault("options", {})["accept-stale"] = True
    return ask_vault(arguments, verb, values, secrets)


# --- recipients and signers -----------------------------------------------------------------------


def run_add_public(arguments: argparse.Namespace) -> int:
    """Add a public key from a file."""
    fd = os.open(arguments.file, os.O_RDONLY | os.O_CLOEXEC) if arguments.file else None
    public = read("public key (PEM): ", fd)
    found = ask_vault(
        arguments,
        f"{arguments.what}-add",
        {"name": arguments.name} | _options(arguments, "kind"),
        {"secret": public},
    )
    return _done(arguments, found, f"added: {arguments.name}")


def run_list_public(arguments: argparse.Namespace) -> int:
    """Signers as the vault vouches for them; recipients as its header names them."""
    if arguments.what == "trust":
        found = ask_vault(arguments, "list").get("trust", [])
        columns: tuple[str, ...] = ("name", "x")
    else:
        vault = ask_vault(arguments, "status").get("vault") or {}
        found = (vault.get("recovery") or {}).get("recipients", [])
        columns = ("name", "kind")
    if arguments.json:
        print_json(found)
    else:
        table("", columns, ([one.get(c) for c in columns] for one in found))
    return exits.OK


def _options(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    given = {name: getattr(arguments, name.replace("-", "_"), None) for name in names}
    options = {name: value for name, value in given.items() if value}
    return {"options": options} if options else {}


def _done(arguments: argparse.Namespace, found: Any, told: str) -> int:
    if arguments.json:
        print_json(found)
    else:
        say(told)
    return exits.OK
