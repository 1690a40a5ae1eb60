"""The unlock helper: hardens itself, parses its arguments, runs one verb, exits with a code.

`main` is the whole life of the process; the package docstring has arguments and descriptors.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import resource
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from .errors import Fault, VaultError

RESULT_MAX = 64 * 1024
_QUIET = ("pin-set", "pin-remove")  # their result is the caller's choice
_PR_SET_DUMPABLE = 4


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise VaultError(Fault.USAGE, message)


def _hex(size: int) -> Callable[[str], bytes]:
    def parse(text: str) -> bytes:
        if not re.fullmatch(f"[0-9a-f]{{{2 * size}}}", text):
            raise argparse.ArgumentTypeError(f"not {2 * size} hex digits")
        return bytes.fromhex(text)

    return parse


def _count(text: str) -> int:
    if not re.fullmatch("[0-9]{1,15}", text):
        raise argparse.ArgumentTypeError("not a number")
    return int(text)


def _pcr_list(text: str) -> list[int]:
    if text == "none":
        return []
    if not re.fullmatch(r"[0-9]{1,2}(,[0-9]{1,2}){0,23}", text):
        raise argparse.ArgumentTypeError("not numbers separated by commas")
    pcrs = sorted({int(part) for part in text.split(",")})
    if pcrs[-1] > 23:
        raise argparse.ArgumentTypeError("PCRs are numbered 0 to 23")
    return pcrs


def parser() -> argparse.ArgumentParser:
    """The command line. Its errors are USAGE; no argument ever holds a secret."""
    common = _Parser(add_help=False)
    common.add_argument("--dir", default="/state", help="the vault directory")
    common.add_argument("--tpm", default="device", help="device, or socket:/PATH (software TPM)")
    common.add_argument("--backend", choices=("raw", "esapi"), default="raw")
    common.add_argument("--srk-name", type=_hex(34), help="the storage root key's pinned name")
    common.add_argument("--secure-boot", action="store_true", help="Secure Boot is on")
    common.add_argument("--uki", action="store_true", help="a signed unified kernel was booted")
    common.add_argument("--disk-encrypted", action="store_true", help="the root is on LUKS")
    common.add_argument("--allow-key-file", action="store_true", help="waiver file-key")
    enrols = _Parser(add_help=False, parents=[common])
    enrols.add_argument("--pcrs", type=_pcr_list, default=None)
    enrols.add_argument("--allow-software-tpm", action="store_true")
    top = _Parser(prog="vault", allow_abbrev=False)
    verbs = top.add_subparsers(dest="verb", required=True)
    for name in ("init", "rotate", "rebind"):
        verbs.add_parser(name, parents=[enrols])
    recover = verbs.add_parser("recover", parents=[enrols])
    for name in ("set", "remove"):
        key = verbs.add_parser(name, parents=[common])
        key.add_argument("name")
        key.add_argument("--allow-plain-memfd", action="store_true")
        if name == "set":
            key.add_argument("--new", action="store_true", help="refuse a name that is there")
    for name in ("recipient-remove", "trust-add", "trust-remove"):
        verbs.add_parser(name, parents=[common]).add_argument("name")
    listing = verbs.add_parser("list", parents=[common])
    for name in ("status", "recovery-code", "confirm-recovery"):
        verbs.add_parser(name, parents=[common])
    approve = verbs.add_parser("approve", parents=[common])
    approve.add_argument("--predict", action="store_true", help="the state read from `prediction`")
    approve.add_argument("--note", default=None)
    for name in ("pin-set", "pin-remove"):
        pin = verbs.add_parser(name, parents=[enrols])
        pin.add_argument("--allow-pin-reset", action="store_true", help="waiver pin-rate-limit")
    recipient = verbs.add_parser("recipient-add", parents=[common])
    recipient.add_argument("name")
    recipient.add_argument("--kind", choices=("host", "backup"), required=True)
    unlock = verbs.add_parser("unlock", parents=[common])
    unlock.add_argument("--names", default=None, help="comma-separated; all keys if left out")
    unlock.add_argument("--allow-plain-memfd", action="store_true")
    for reader in (unlock, recover, listing):
        reader.add_argument("--accept-stale", action="store_true", help="an old file is all right")
    token = verbs.add_parser("token", parents=[common])
    token.add_argument("--client", required=True)
    token.add_argument("--workload", required=True)
    token.add_argument("--lifetime", type=int, required=True, help="seconds")
    audit = verbs.add_parser("audit-sign", parents=[common])
    audit.add_argument("--count", type=_count, required=True, help="records in the log")
    audit.add_argument("--digest", type=_hex(32), required=True, help="of their chain")
    policies = verbs.add_parser("policy-verify", parents=[common])
    policies.add_argument("--digest", type=_hex(32), required=True, help="of the policies")
    return top


class Descriptors:
    """The inherited descriptors by name (sd_listen_fds(3)): from number 3 on, in order."""

    def __init__(self, environment: dict[str, str]) -> None:
        count = environment.get("LISTEN_FDS", "0")
        names = environment.get("LISTEN_FDNAMES", "")
        self._names = names.split(":") if names else []
        if not re.fullmatch("[0-9]{1,3}", count) or int(count) != len(self._names):
            raise VaultError(Fault.USAGE, "LISTEN_FDS does not fit LISTEN_FDNAMES")

    def has(self, name: str) -> bool:
        """Whether a descriptor of that name was passed."""
        return name in self._names

    def number(self, name: str) -> int:
        """The descriptor of that name. Raises USAGE if it was not passed."""
        if name not in self._names:
            raise VaultError(Fault.USAGE, f"no descriptor named {name} was passed")
        return 3 + self._names.index(name)


def _harden() -> None:
    """No core dump, no ptrace by the same uid, nothing of ours readable in /proc/PID."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise VaultError(Fault.INTERNAL, "PR_SET_DUMPABLE")


def _location(error: BaseException) -> str:
    """File and line of an unexpected error. Its text is left out: it may quote a secret."""
    trace, where = error.__traceback__, "?"
    while trace is not None:
        where = f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}"  # noqa: PTH119  # pathlib is an import we save
        trace = trace.tb_next
    return f"{type(error).__name__} at {where}"


def _write_result(fd: int, result: dict[str, Any]) -> None:
    line = json.dumps(result, separators=(",", ":")).encode() + b"\n"
    if len(line) > RESULT_MAX:
        raise VaultError(Fault.INTERNAL, "the result is too long")
    rest = memoryview(line)
    while rest:
        rest = rest[os.write(fd, rest) :]


def run(arguments: list[str], environment: dict[str, str]) -> None:
    """One verb, from arguments to result. Raises VaultError."""
    options = parser().parse_args(arguments)
    descriptors = Descriptors(environment)
    # Imported after the arguments are known to be good: the TPM library costs 20 MB and 0.2 s.
    from . import verbs

    result = verbs.VERBS[options.verb](options, descriptors)
    if result is not None and (options.verb not in _QUIET or descriptors.has("result")):
        _write_result(descriptors.number("result"), result)


def main() -> int:
    """The process. Returns the exit code: 0, or the code of a Fault."""
    try:
        _harden()
        run(sys.argv[1:], dict(os.environ))
    except VaultError as error:
        print(f"vault: {error}", file=sys.stderr)
        return error.fault.code
    except Exception as error:  # an unknown error must not print a traceback with its values
        print(f"vault: INTERNAL: {_location(error)}", file=sys.stderr)
        return Fault.INTERNAL.code
    return 0
