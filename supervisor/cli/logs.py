"""`logs`: what workloads wrote (redacted by the proxy before it was stored), and the audit records.

Files are opened as root and read as nobody: their content is a workload's choice.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from supervisor.cli import exits
from supervisor.cli.place import host_of
from supervisor.cli.privilege import become_nobody
from supervisor.cli.secrets import ask_vault
from supervisor.cli.terminal import print_json, say
from supervisor.control import ControlError

_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}")
_PAUSE = 0.3  # seconds between two looks with -f
_TAIL_MAX = 4 << 20  # bytes read back from the end of a file
_SHOWN_FIRST = ("time", "hop", "workload", "event", "verdict", "reason")


def add(verbs: Any) -> None:
    """Declare the verb."""
    parser = verbs.add_parser("logs", help="what workloads wrote; with --audit the audit records")
    parser.add_argument("workload", nargs="?", help="all of them without it")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until Ctrl-C")
    parser.add_argument("-n", "--lines", type=int, default=100, help="last lines per file (100)")
    parser.add_argument("--audit", action="store_true", help="one line per decision")
    parser.add_argument("--json", action="store_true", help="audit records as they were written")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="check the audit records against the checkpoints that the vault signed",
    )
    parser.add_argument(
        "--key",
        action="append",
        metavar="KEY",
        help="with --verify: the audit log's public key (base64url); default: ask the vault",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the last lines; audit records of several files in the order of time."""
    import json  # before root is gone, and with it perhaps the right to read the library

    if arguments.verify:
        return _verify(arguments)
    audit = arguments.audit or arguments.json
    folder = Path(host_of(arguments).paths.state, "audit" if audit else "logs")
    files = _open(folder, ".jsonl" if audit else ".log", arguments.workload)
    become_nobody()
    shown = [
        (name, line) for name, fd in files.items() for line in _tail(fd, max(arguments.lines, 0))
    ]
    if audit:
        shown.sort(key=lambda item: _time(json, item[1]))
    several = len(files) > 1
    for name, line in shown:
        _show(json, name if several else "", line, audit, arguments.json)
    if arguments.follow:
        for name, line in _follow(files):
            _show(json, name if several else "", line, audit, arguments.json)
    return exits.OK


def _verify(arguments: argparse.Namespace) -> int:
    """0: every checkpoint fits and at least one is signed. 1 otherwise, with what is wrong."""
    import cryptography.hazmat.primitives.asymmetric.ed25519  # noqa: F401 - before root is gone

    from supervisor.cli.logs_verify import verify

    keys = arguments.key
    if keys is None:
        keys = [key["x"] for key in ask_vault(arguments, "list").get("audit", [])]
    files = _open(Path(host_of(arguments).paths.state, "audit"), ".jsonl", None)
    become_nobody()
    found = verify(files, keys)
    if arguments.json:
        print_json({**vars(found), "good": found.good})
        return exits.OK if found.good else exits.FAILED
    for text in found.wrong:
        say(f"WRONG  {text}")
    for text in found.unproven:
        say(f"not proven  {text}")
    say(f"{found.signed} of {found.checkpoints} checkpoints signed and checked")
    say(f"{found.lines} records, {found.after} of them after the last checkpoint")
    return exits.OK if found.good else exits.FAILED


def _open(folder: Path, suffix: str, workload: str | None) -> dict[str, int]:
    """Descriptors by workload. No symbolic link is followed, no fifo is waited for."""
    if workload is not None and not _NAME.fullmatch(workload):
        raise ControlError("bad_name", f"{workload!r} is no workload id", exit=exits.USAGE)
    found: dict[str, int] = {}
    try:
        names = [workload] if workload else sorted(
            path.stem for path in folder.iterdir() if path.suffix == suffix
        )  # fmt: skip
        for name in names:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            found[name] = os.open(folder / f"{name}{suffix}", flags)
    except FileNotFoundError as error:
        raise _no_file(folder, suffix, workload, str(error.filename)) from None
    except PermissionError as error:
        raise ControlError(
            "not_allowed", f"{error.filename} is root's", "use sudo", exits.NOT_ALLOWED
        ) from None
    return found


def _no_file(folder: Path, suffix: str, workload: str | None, path: str) -> ControlError:
    """Adapters, executors and models have no audit file: what they record is in their log."""
    if suffix == ".jsonl" and workload and (folder.parent / "logs" / f"{workload}.log").exists():
        return ControlError(
            "no_audit_file",
            f"{workload} keeps its records in its log",
            f"anchorhold logs {workload}",
        )
    return ControlError("no_log", f"there is no {path}", "`anchorhold status` lists the workloads")


def _tail(fd: int, count: int) -> list[bytes]:
    end = os.fstat(fd).st_size
    start = max(0, end - _TAIL_MAX)
    os.lseek(fd, start, os.SEEK_SET)
    data = b""
    while len(data) < end - start and (part := os.read(fd, end - start - len(data))):
        data += part
    lines = data.split(b"\n")
    if start:
        lines = lines[1:]  # most likely half a line
    os.lseek(fd, -len(lines[-1]), os.SEEK_CUR)  # an unfinished line is left for --follow
    return lines[:-1][-count:] if count else []


def _follow(files: dict[str, int]) -> Iterator[tuple[str, bytes]]:
    rest = dict.fromkeys(files, b"")
    while True:
        quiet = True
        for name, fd in files.items():
            if part := os.read(fd, 65536):
                quiet = False
                *lines, rest[name] = (rest[name] + part).split(b"\n")
                rest[name] = rest[name][-_TAIL_MAX:]
                for line in lines:
                    yield name, line
        if quiet:
            sys.stdout.flush()  # into a pipe, too, a line is seen when it is written
            time.sleep(_PAUSE)


def _time(json: Any, line: bytes) -> str:
    record = _record(json, line)
    return str(record.get("time", "")) if record else ""


def _record(json: Any, line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _show(json: Any, name: str, line: bytes, audit: bool, raw: bool) -> None:
    text = line.decode("utf-8", "replace")
    record = _record(json, line) if audit and not raw else None
    if record:
        rest = {key: value for key, value in record.items() if key not in _SHOWN_FIRST}
        words = [str(record[key]) for key in _SHOWN_FIRST if key in record]
        words += [f"{key}={json.dumps(value)}" for key, value in rest.items()]
        say(" ".join(words))
    else:
        say(f"{name}: {text}" if name and not raw else text)
