"""`keys approve --predict`: approve the boot states that an update will bring, before it does.

Kernel images and the firmware's log are opened as root and read by a child that is nobody; of its
words only notes and hexadecimal values of a strict form come back.
"""

from __future__ import annotations

import argparse
import os
import re
import stat
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from supervisor import prediction
from supervisor.cli import exits
from supervisor.cli.privilege import become_nobody
from supervisor.cli.secrets import ask_vault
from supervisor.cli.terminal import complain, print_json, say
from supervisor.control import ControlError
from supervisor.prediction import Unpredictable

_LOG = Path("/sys/kernel/security/tpm0/binary_bios_measurements")
_IMAGES = ("/efi/EFI/Linux", "/boot/efi/EFI/Linux", "/boot/EFI/Linux")
_VARIABLES = ("dbx", "db", "KEK", "PK", "SecureBoot")
_WORDS_MAX = 64 * 1024
_FOUND = re.compile(r"([A-Za-z0-9][A-Za-z0-9 ._:+~-]{0,79})((?:\t[0-9]{1,2}=[0-9a-f]{64})+)")
_UNKNOWN = re.compile(r"\?([ -~]{1,300})")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare what belongs to predictions."""
    parser.add_argument(
        "--predict",
        action="store_true",
        help="the states after the next start: every unified kernel image, and --variable",
    )
    parser.add_argument(
        "--variable",
        action="append",
        default=[],
        type=_variable,
        metavar="NAME=FILE",
        help=f"a Secure Boot variable as it will be ({', '.join(_VARIABLES)}), without attributes",
    )
    parser.add_argument(
        "--values",
        type=_values,
        metavar="PCR=HEX,...",
        help="approve these values, computed elsewhere, instead",
    )


def _variable(text: str) -> tuple[str, str]:
    name, _, path = text.partition("=")
    if name not in _VARIABLES or not path:
        raise argparse.ArgumentTypeError(f"{text!r}: NAME=FILE, NAME of {', '.join(_VARIABLES)}")
    return name, path


def _values(text: str) -> dict[str, str]:
    parts = [re.fullmatch(r"([0-9]|1[0-9]|2[0-3])=([0-9a-f]{64})", p) for p in text.split(",")]
    if not all(parts):
        raise argparse.ArgumentTypeError("such as 7=HEX,11=HEX, each value 64 digits of 0-9, a-f")
    return {part[1]: part[2] for part in parts if part}


def run(arguments: argparse.Namespace) -> int:
    """Approve each state that is not approved already. 1 if a bound PCR could not be predicted."""
    status = ask_vault(arguments, "status")
    now = {int(row["pcr"]): bytes.fromhex(row["now"]) for row in status.get("pcrs", ())}
    if not now:
        say("The vault is bound to no PCR: no update can lock it.")
        return exits.OK
    states: list[tuple[str, dict[str, str]]] = [("given by hand", arguments.values)]
    unknown: list[str] = []
    if not arguments.values:
        states, unknown = _by_nobody(now, dict(arguments.variable))
    known = [each.get("pcr") for each in status.get("approvals", ())]
    done: list[dict[str, Any]] = []
    for note, values in states:
        if values.keys() != {str(pcr) for pcr in now}:
            raise ControlError(
                "other_pcrs", f"the vault is bound to PCRs {sorted(now)}", exit=exits.USAGE
            )
        if values in known or values in (each["pcr"] for each in done):
            continue
        given = {"options": {"predict": True, "note": arguments.note or note}}
        ask_vault(arguments, "approve", given, {"prediction": _json(values)})
        done.append({"note": arguments.note or note, "pcr": values})
    if arguments.json:
        print_json({"approved": done, "not_predicted": unknown})
    else:
        for each in done:
            say(f"approved for the next start: {each['note']}")
        if not done and not unknown:
            say("Nothing to approve: every state that can be foreseen is approved already.")
    for reason in unknown:
        complain(f"not predicted: {reason}", "have the recovery code at hand for the next start")
    return exits.FAILED if unknown else exits.OK


def _json(values: Mapping[str, str]) -> bytes:
    return ("{" + ", ".join(f'"{pcr}": "{value}"' for pcr, value in values.items()) + "}").encode()


def _by_nobody(
    now: Mapping[int, bytes], variables: Mapping[str, str]
) -> tuple[list[tuple[str, dict[str, str]]], list[str]]:
    """Predicted states as note and values, and why others are missing."""
    images = list(_images())
    given = {name: _open(Path(path)) for name, path in variables.items()}
    log = _open(_LOG) if _LOG.exists() else None
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            become_nobody()
            with os.fdopen(writing, "w") as out:
                out.writelines(f"{line}\n" for line in _lines(now, images, log, given))
        except BaseException as error:
            print(f"anchorhold: prediction: {type(error).__name__}", file=sys.stderr)
            os._exit(1)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as source:
        words = source.read(_WORDS_MAX).decode("ascii", "replace")
    _, status = os.waitpid(child, 0)
    for fd in (*(fd for _, fd in images), *given.values(), *(() if log is None else (log,))):
        os.close(fd)
    states, unknown = [], []
    for line in words.splitlines():
        if found := _FOUND.fullmatch(line):
            pairs = [(pair.split("=")[0], pair.split("=")[1]) for pair in found[2].split("\t")[1:]]
            states.append((found[1], dict(pairs)))
        elif reason := _UNKNOWN.fullmatch(line):
            unknown.append(reason[1])
    if status:
        unknown.append("the program that reads images and log failed")
    return states, unknown


def _images() -> Iterator[tuple[str, int]]:
    """Name and descriptor of every unified kernel image."""
    for folder in _IMAGES:
        for path in sorted(Path(folder).glob("*.efi")):
            yield path.name, _open(path)


def _open(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ControlError("not_a_file", f"{path} is no regular file", exit=exits.USAGE)
    return fd


def _lines(
    now: Mapping[int, bytes], images: list[tuple[str, int]], log: int | None, given: dict[str, int]
) -> Iterator[str]:
    """One line for each state: its note and values; or "?" and why there is none."""
    values = {pcr: value.hex() for pcr, value in now.items()}
    about = "next start"
    if given:
        try:
            values[7] = _with_variables(now, log, given)
        except Unpredictable as why:
            yield f"?PCR 7: {why}"
            return
        about = f"next start with new {' and '.join(sorted(given))}"
    if 11 not in now:
        yield _line(about, values)
        return
    try:
        found = []
        for name, fd in images:
            try:
                found.append((name, prediction.sections(fd)))
            except Unpredictable as why:
                yield f"?{_plain(name)}: {why}"
        rule = prediction.explain([each for _, each in found], now[11])
    except Unpredictable as why:
        yield f"?PCR 11: {why}"
        return
    for name, each in found:
        values[11] = prediction.image_value(each, rule).hex()
        yield _line(f"{about}: {name}", values)


def _with_variables(now: Mapping[int, bytes], log: int | None, given: Mapping[str, int]) -> str:
    if 7 not in now:
        raise Unpredictable("the vault is not bound to it")
    if log is None:
        raise Unpredictable("the firmware left no log of its measurements")
    measured = _whole(log)
    if prediction.replayed(measured, 7) != now[7]:
        raise Unpredictable("the firmware's log does not explain the present value")
    contents = {name: _whole(fd) for name, fd in given.items()}
    return prediction.replayed(measured, 7, contents).hex()


def _whole(fd: int) -> bytes:
    data = b""
    while part := os.read(fd, 1 << 20):
        data += part
        if len(data) > 16 << 20:
            raise Unpredictable("a file is too long")
    return data


def _line(note: str, values: Mapping[Any, str]) -> str:
    return "\t".join([_plain(note), *(f"{pcr}={value}" for pcr, value in values.items())])


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9 ._:+~-]", "_", text)[:80]
