"""`token issue`: a signed token for one client and one workload."""

from __future__ import annotations

import argparse
import re
from typing import Any

from supervisor.cli import exits
from supervisor.cli.secrets import add_pin_option, ask_vault

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_YEAR = 31_536_000
_NAME = r"[a-z0-9][a-z0-9.-]{0,62}"


def add(verbs: Any) -> None:
    """Declare the verb."""
    token = verbs.add_parser("token", help="tokens for clients of the gateway")
    issue = token.add_subparsers(metavar="VERB", required=True).add_parser(
        "issue", help="print a new token on stdout"
    )
    issue.add_argument(
        "--client", type=name, required=True, help="who will hold it; stands in the audit log"
    )
    issue.add_argument("--workload", type=name, required=True, help="the one adapter it opens")
    issue.add_argument("--lifetime", type=lifetime, default=3600, help="900, 15m, 12h, 7d (1h)")
    add_pin_option(issue)
    issue.set_defaults(run=run)


def name(text: str) -> str:
    """A client or workload as the supervisor takes it; argparse adds the option's name."""
    if not re.fullmatch(_NAME, text):
        raise argparse.ArgumentTypeError(f"{text!r} is no name of a-z, 0-9, '.' and '-'")
    return text


def run(arguments: argparse.Namespace) -> int:
    """Print the token and nothing else."""
    wanted = {key: getattr(arguments, key) for key in ("client", "workload", "lifetime")}
    print(ask_vault(arguments, "token.issue", wanted)["token"])
    return exits.OK


def lifetime(text: str) -> int:
    """Seconds from `900`, `15m`, `12h`, `7d`."""
    found = re.fullmatch(r"([1-9][0-9]{0,8})([smhd]?)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no time such as 900, 15m, 12h or 7d")
    seconds = int(found[1]) * _UNITS[found[2]]
    if seconds > _YEAR:
        raise argparse.ArgumentTypeError(f"{text!r} is more than a year")
    return seconds
