"""Where a workload may go: the `net` rules of its policy, and which of them fits a request."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_HOST = re.compile(
    r"(?=.{1,253}\Z)(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?"
)
CREDENTIAL = "{credential}"  # where in a path the key stands


@dataclass(frozen=True, slots=True)
class Destination:
    """One `net` rule. `host`: a name, `*.name`, or `*`; `path`: one, or a tree that ends in /**.

    No methods, no path: any. With either, or with a credential, only requests that the proxy can
    read are allowed. `hold` and `time` are seconds: how long a request waits for the operator, and
    how long his word is good. `target` is the broker's name for it.
    """

    rule: str
    line: int
    host: str
    port: int
    methods: frozenset[str]
    path: str
    credential: str | None
    header: str
    prefix: str
    redact: str
    websocket: bool
    ask: bool
    hold: float
    time: float
    target: str

    @property
    def readable_only(self) -> bool:
        """Whether a tunnel, in which nothing can be read, is out of the question."""
        return bool(self.methods or self.path or self.credential or self.websocket)

    def reaches(self, host: str, port: int) -> bool:
        """Whether host and port are those of the rule."""
        if port != self.port:
            return False
        if self.host.startswith("*."):
            return host.endswith(self.host[1:])
        return self.host in ("*", host)

    def allows(self, method: str, path: str, placeholder: str) -> bool:
        """Whether method and path are its; the placeholder stands in the path for the key."""
        if self.methods and method not in self.methods:
            return False
        if not self.path:
            return True
        pattern = self.path.replace(CREDENTIAL, placeholder)
        if pattern.endswith("/**"):
            return path == pattern[:-3] or path.startswith(pattern[:-2])
        return path == pattern

    def dial_as(self, workload: str, host: str) -> str:
        """The target to ask the broker for: with the name where the rule leaves it open.

        What the operator allows is a target of its own, which the broker forgets in time.
        """
        if self.ask:
            return f"ask.{workload}.{host}:{self.port}"
        return self.target if self.host == host else f"{self.target}={host}"


def host_name(text: str) -> str | None:
    """Return `text` as a lower-case DNS name; None for an address or anything else.

    A name ends in a letter's label, so no way of writing an IPv4 address is one.
    """
    name = text.lower()
    return name if _HOST.fullmatch(name) else None


def reachable(rules: Iterable[Destination], host: str, port: int) -> list[Destination]:
    """Return the rules for host and port: those that name it, patterns, then those that ask."""
    found = [rule for rule in rules if rule.reaches(host, port)]
    return sorted(found, key=lambda rule: (rule.ask, rule.host.startswith("*")))
