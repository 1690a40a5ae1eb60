"""Prints anchorhold(8), made from the command line's own declaration so that the two cannot differ.

    /usr/bin/python3 -IS packaging/manpage.py

roff: man(7). The date is SOURCE_DATE_EPOCH's, so that two builds give the same page.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from supervisor.cli.run import parser

_FILES = (
    ("/etc/anchorhold/host.toml", "what is true of this machine; it explains itself"),
    ("/usr/lib/anchorhold/app/policies", "the policies, one file per workload"),
    ("/var/lib/anchorhold", "the vault, audit records, logs and the workloads' own files"),
    ("/run/anchorhold/control.sock", "where the commands reach the supervisor; root only"),
)


def _escape(text: str) -> str:
    """Text that roff prints as it stands, also at the beginning of a line."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("`", "\\(ga")
    return "\\&" + text if text[:1] in (".", "'") else text


def _option(action: argparse.Action) -> str:
    value = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    takes = "" if action.nargs == 0 else f" {value}"
    return ", ".join(f"{name}{takes}" for name in action.option_strings)


def _parser(own: argparse.ArgumentParser, summary: str) -> Iterator[str]:
    """One verb: its usage, what it does, its options, then the verbs below it."""
    usage = own.format_usage().removeprefix("usage: ").replace("[-h] ", "").split()
    yield from (".TP", f".B {_escape(' '.join(usage))}", _escape(summary or "-"))
    below = None
    for action in own._actions:
        if isinstance(action, argparse._SubParsersAction):
            below = action
        elif action.help and action.help is not argparse.SUPPRESS and action.dest != "help":
            name = _option(action) or str(action.metavar or action.dest)
            text = action.help % {"default": action.default}
            yield from (".RS", ".TP", f".I {_escape(name)}", _escape(text), ".RE")
    if below:
        yield from _verbs(below)


def _verbs(action: argparse._SubParsersAction[argparse.ArgumentParser]) -> Iterator[str]:
    helps = {each.dest: each.help or "" for each in action._choices_actions}
    for name, own in action.choices.items():
        yield from _parser(own, helps.get(name, ""))


def page() -> str:
    """The whole page."""
    os.environ["COLUMNS"] = "1000"  # argparse breaks usage lines at the width of a terminal
    top = parser()
    day = datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH", "0")), UTC)
    lines = [
        f'.TH ANCHORHOLD 8 "{day:%Y-%m-%d}" "anchorhold" "System administration"',
        ".SH NAME",
        "anchorhold \\- security\\-hardened supervisor for self\\-hosted AI assistants",
        ".SH SYNOPSIS",
        ".B anchorhold",
        "[\\-\\-host\\-file FILE] VERB ...",
        ".SH DESCRIPTION",
        _escape(top.description or ""),
        "The service is started with",
        '.BR "systemctl enable \\-\\-now anchorhold" ;',
        "before that,",
        ".B anchorhold doctor",
        "says what this machine can guarantee.",
        ".SH VERBS",
    ]
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            lines += _verbs(action)
    lines += [".SH FILES"]
    for path, what in _FILES:
        lines += [".TP", f".I {_escape(path)}", _escape(what)]
    lines += [".SH EXIT STATUS", _escape((top.epilog or "").removeprefix("exit: ")) + "."]
    lines += [".SH SEE ALSO", ".BR systemctl (1),", "/usr/share/doc/anchorhold/docs"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
