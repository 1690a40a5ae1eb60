"""What a client of the broker may dial, as the supervisor declares it; checked all the same."""

from __future__ import annotations

import socket

from sandbox import addresses

TYPE_CHECKING = False  # known to type checkers; the typing module would be 0.7 MB here
if TYPE_CHECKING:
    from typing import Any

TARGET_MAX = 200


class Target:
    """One entry of a client's list: a workload's port, or a host with the networks it may be in.

    A host may be `*.DOMAIN`: the client then names one of its hosts, as in `TARGET=api.DOMAIN`.
    """

    def __init__(self, name: str, body: dict[str, Any]) -> None:
        if not (name.isascii() and name.isprintable() and 0 < len(name) <= TARGET_MAX):
            raise ValueError(f"target {name!r}: 1 to {TARGET_MAX} printable ASCII characters")
        self.workload = text(body.pop("workload", ""), "workload")
        # A host file writes an IPv6 literal in brackets, as a URL does.
        self.host = text(body.pop("host", ""), "host").removeprefix("[").removesuffix("]")
        self.port = port(body.pop("port", None), 1)
        self.allowed = tuple(map(addresses.parse_network, body.pop("addresses", None) or ()))
        if body or bool(self.workload) == bool(self.host):
            raise ValueError(f"target {name}: workload or host, port and addresses; got {[*body]}")
        self.literal = _literal(self.host)
        self._until, self._uses = float("inf"), float("inf")

    def bound(self, until: float, uses: int) -> Target:
        """The same, good until then (time.monotonic) and for so many dials."""
        self._until, self._uses = until, uses
        return self

    def spend(self, now: float) -> bool:
        """Take one use; False when there is none left, or its time is over."""
        self._uses -= 1
        return self._uses >= 0 and now < self._until

    def named(self, host: str) -> Target | None:
        """The target for one host below `*.DOMAIN`; None when it is not below, or no host name.

        A client wrote `host`: letters, digits, dots and hyphens pass, an address never.
        """
        inside = self.host.startswith("*.") and host.endswith(self.host[1:])
        if not inside or len(host) > 253 or not all(map(_label, host.split("."))):
            return None
        return Target("named", {"host": host, "port": self.port})


def find(targets: dict[str, Target], name: str) -> Target | None:
    """What a client means by `name`: a target of its list, or a host below a pattern's domain."""
    pattern, named, host = name.partition("=")
    target = targets.get(pattern)
    if target is None or bool(named) != target.host.startswith("*."):
        return None
    return target.named(host) if named else target


def text(value: object, what: str) -> str:
    """`value` if it is a short ASCII name, else ValueError naming `what`."""
    if not isinstance(value, str) or not value.isascii() or len(value) > 253:
        raise ValueError(f"{what} must be ASCII text of at most 253 characters")
    return value


def port(value: object, least: int) -> int:
    """`value` if it is a port number, else ValueError."""
    if type(value) is not int or not least <= value <= 65535:
        raise ValueError(f"port must be a whole number from {least} to 65535")
    return value


def _label(text: str) -> bool:
    """Whether `text` is one label of a host name, in lower case (RFC 1123, section 2.1)."""
    plain = text.replace("-", "a")
    whole = 0 < len(text) <= 63 and text == text.lower() and text[0] != "-" and text[-1] != "-"
    return whole and plain.isascii() and plain.isalnum()


def _literal(host: str) -> tuple[int, bytes] | None:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            return int(family), socket.inet_pton(family, host)
        except OSError:
            continue
    return None
