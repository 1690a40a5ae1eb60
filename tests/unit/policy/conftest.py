"""One small valid policy to break, and the shipped directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from supervisor.host import Host, load_host
from supervisor.policy.errors import PolicyError
from supervisor.policy.parse import parse_policy

SHIPPED = Path(__file__).parents[3] / "policies"

VALID = """\
schema    = "anchorhold.policy/1"
id        = "tool.echo"
kind      = "tool"
version   = 1
owner     = "someone@example.org"
review_by = 2099-01-01
why       = "Answers what it is asked"
run       = { command = ["/usr/bin/echo"], restart = "never" }
requires  = ["seccomp"]

[[allow]]
id   = "program"
why  = "The program"
file = { path = "/usr/bin/echo", access = ["read", "exec"] }

[[allow]]
id       = "calls"
why      = "What it needs"
syscalls = { group = "python-tool/1" }

[limits]
memory = "64MiB"

[watch]
on_unseen = "record"

[[claim]]
id    = "no-passwords"
never = { file = { path = "/etc/**", access = ["read"] } }
"""

Errors = Callable[[str], list[PolicyError]]


@pytest.fixture
def valid() -> str:
    """A policy without a mistake."""
    return VALID


@pytest.fixture
def errors_of() -> Errors:
    """The mistakes in a text; it must then yield no policy."""

    def parse(text: str) -> list[PolicyError]:
        policy, errors = parse_policy(text.encode(), "tool-echo.toml")
        assert (policy is None) == bool(errors)
        return errors

    return parse


@pytest.fixture(scope="session")
def shipped() -> Path:
    """The policies that Anchorhold ships."""
    return SHIPPED


@pytest.fixture(scope="session")
def host() -> Host:
    """The shipped host file."""
    return load_host(SHIPPED / "hosts" / "demo.toml")
