"""Which addresses a dial may reach when a *name* decides: public unicast ones, nothing else.

A name is an input (its DNS answer belongs to whoever runs that zone), so an answer that points back
at this host, at the local network or at a cloud's metadata service is refused (DNS rebinding,
SSRF). The table is the IANA special-purpose registries (RFC 6890 and its updates), written out:
`ipaddress.is_global` changed its answers between Python releases (CVE-2024-4032).
"""

from __future__ import annotations

import socket


class Network:
    """A CIDR: `family` AF_INET or AF_INET6, `value` the network as integer, `bits` its prefix."""

    __slots__ = ("bits", "family", "value")

    def __init__(self, family: int, value: int, bits: int) -> None:
        self.family = family
        self.value = value
        self.bits = bits

    def holds(self, family: int, packed: bytes) -> bool:
        """True when the address (4 or 16 bytes, network order) lies in this network."""
        if family != self.family:
            return False
        shift = len(packed) * 8 - self.bits
        return int.from_bytes(packed, "big") >> shift == self.value >> shift

    def holds_network(self, other: Network) -> bool:
        """True when all of `other` lies in this network."""
        width = 32 if self.family == socket.AF_INET else 128
        shift = width - self.bits
        same = self.family == other.family and other.bits >= self.bits
        return same and other.value >> shift == self.value >> shift


def is_loopback(text: str) -> bool:
    """Whether an address in text is in 127.0.0.0/8 or is ::1. ValueError when it is no address."""
    address = parse_network(text)
    return any(parse_network(net).holds_network(address) for net in ("127.0.0.0/8", "::1"))


def parse_network(text: str) -> Network:
    """`10.0.0.0/8`, `fd00::/8`, or one address. ValueError for anything else, also host bits."""
    address, slash, prefix = text.partition("/")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        packed = socket.inet_pton(family, address)
    except OSError:
        raise ValueError(f"{text!r} is not an address or a CIDR network") from None
    width = len(packed) * 8
    if slash and not (prefix.isascii() and prefix.isdigit() and int(prefix) <= width):
        raise ValueError(f"{text!r}: the prefix length must be a number from 0 to {width}")
    bits = int(prefix) if slash else width
    value = int.from_bytes(packed, "big")
    if value & ((1 << (width - bits)) - 1):
        raise ValueError(f"{text!r} has bits set beyond its prefix")
    return Network(int(family), value, bits)


_REFUSED: tuple[tuple[str, str], ...] = (
    # Named first, so that the reason says what the address is.
    ("169.254.169.254", "metadata service"),
    ("100.100.100.200", "metadata service"),
    ("168.63.129.16", "metadata service"),  # Azure's, in public address space
    ("fd00:ec2::/32", "metadata service"),
    ("fd20:ce::254", "metadata service"),
    ("0.0.0.0/32", "unspecified"),
    ("0.0.0.0/8", "this network"),
    ("10.0.0.0/8", "private"),
    ("100.64.0.0/10", "shared (carrier NAT)"),
    ("127.0.0.0/8", "loopback"),
    ("169.254.0.0/16", "link-local"),
    ("172.16.0.0/12", "private"),
    ("192.0.0.0/24", "special purpose"),
    ("192.0.2.0/24", "documentation"),
    ("192.88.99.0/24", "6to4 relay"),
    ("192.168.0.0/16", "private"),
    ("198.18.0.0/15", "benchmarking"),
    ("198.51.100.0/24", "documentation"),
    ("203.0.113.0/24", "documentation"),
    ("224.0.0.0/4", "multicast"),
    ("240.0.0.0/4", "reserved or broadcast"),
    ("::/128", "unspecified"),
    ("::1/128", "loopback"),
    ("::ffff:0:0/96", "v4-mapped"),
    ("64:ff9b::/96", "NAT64"),
    ("64:ff9b:1::/48", "NAT64"),
    ("2001::/23", "special purpose (Teredo, ORCHID)"),
    ("2001:db8::/32", "documentation"),
    ("2002::/16", "6to4"),
    ("3fff::/20", "documentation"),
    ("fc00::/7", "private"),
    ("fe80::/10", "link-local"),
    ("ff00::/8", "multicast"),
)
_TABLE = tuple((parse_network(text), why) for text, why in _REFUSED)
_GLOBAL_V6 = parse_network("2000::/3")


def refusal(family: int, packed: bytes, allowed: tuple[Network, ...] = ()) -> str | None:
    """Why this address must not be dialled, or None when it may.

    `packed` is 4 or 16 bytes in network order. `allowed` are the networks that the target names
    itself; only they lift a refusal, and only for their own family, so that an allowed
    `127.0.0.0/8` does not open `::ffff:127.0.0.1`.
    """
    if any(network.holds(family, packed) for network in allowed):
        return None
    for network, why in _TABLE:
        if network.holds(family, packed):
            return why
    if family == socket.AF_INET6 and not _GLOBAL_V6.holds(family, packed):
        return "not global unicast"
    return None
