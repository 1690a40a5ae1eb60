"""A30-A37: networks, sockets of every family, System V and POSIX IPC."""

from __future__ import annotations

from collections.abc import Iterator

from tests.attacks.attempts.attempt import Attempt

STREAM, DATAGRAM, RAW = "1", "2", "3"
AFS = {
    "ALG": (38, "5", "0"), "VSOCK": (40, STREAM, "0"), "PACKET": (17, RAW, "768"),
    "XDP": (44, RAW, "0"), "KCM": (41, DATAGRAM, "0"), "TIPC": (30, STREAM, "0"),
    "SMC": (43, STREAM, "0"), "CAN": (29, RAW, "1"), "KEY": (15, RAW, "2"),
    "PPPOX": (24, STREAM, "0"),
}  # fmt: skip
ENTRIES = {"ALG": "A32", "VSOCK": "A33", "PACKET": "A31"}
NETLINKS = {"route": "0", "audit": "9", "nfnetlink": "12", "uevent": "15"}
NO_FAMILY = "EAFNOSUPPORT|EPROTONOSUPPORT|ESOCKTNOSUPPORT|EINVAL"
UDP, UDP6 = (2, 2, 0), (10, 2, 0)
METADATA, SERVER = "169.254.169.254", "192.0.2.53"  # TEST-NET-1 (RFC 5737)


def attempts() -> Iterator[Attempt]:
    """In the order of the entries."""
    own = "own network namespace"
    yield Attempt(
        "A30",
        "the loopback is the only interface",
        "openat",
        ("net-table", "dev", "2"),
        beneath="returned 1: lo",
        layer=own,
        works=r"returned \d+: (lo \S+.*|\S+ lo.*)",
    )
    yield Attempt(
        "A30",
        "there is no route",
        "openat",
        ("net-table", "route", "1"),
        beneath="returned 0",
        layer=own,
        works=r"returned [1-9].*",
        lacks="returned 0",
    )
    gone = {"layer": f"Landlock, {own}", "critical": True}
    for what, address in {
        "127.0.0.1": "127.0.0.1",
        "::1": "::1",
        "its address": "{address}",
    }.items():
        yield Attempt(
            "A30",
            f"a service of the host on {what} is not reached",
            "connect",
            ("tcp", address, "{port}"),
            beneath="EACCES|ENETUNREACH|ECONNREFUSED",
            **gone,
        )
        beneath = "ENETUNREACH" if what == "its address" else "ENETUNREACH|returned 1"
        yield Attempt(
            "A30",
            f"no datagram arrives at the host on {what}",
            "socket",
            ("udp", address, "{port}"),
            UDP6 if address == "::1" else UDP,
            beneath=beneath,
            **gone,
        )
    for port in ("80", "8100"):
        yield Attempt(
            "A30",
            f"the metadata service is not reached on port {port}",
            "connect",
            ("tcp", METADATA, port),
            beneath="EACCES|ENETUNREACH",
            works="ECONNREFUSED",
            control="network",
            **gone,
        )
    for name, family in {"INET": "2", "INET6": "10"}.items():
        yield Attempt(
            "A31",
            f"no raw {name} socket",
            "socket",
            ("socket", family, RAW, "58"),
            (int(family), 3, 58),
            beneath="EPERM",
            layer="capabilities",
            critical=True,
        )
    for name, (family, kind, protocol) in AFS.items():
        yield Attempt(
            ENTRIES.get(name, "A34"),
            f"no {name} socket",
            "socket",
            ("socket", str(family), kind, protocol),
            (family, int(kind), int(protocol)),
            beneath="EPERM",
            layer="capabilities",
            lacks=NO_FAMILY,
            critical=True,
        )
    for name, protocol in NETLINKS.items():
        yield Attempt(
            "A34",
            f"no netlink socket for {name}",
            "socket",
            ("socket", "16", RAW, protocol),
            # Not critical: it would tell of, and change, the own network namespace.
            (16, 3, int(protocol)),
            lacks=NO_FAMILY,
            layer=own,
        )
    yield from _unix()
    for act, call in {"shmget": "shmget", "semget": "semget", "msgget": "msgget"}.items():
        yield Attempt(
            "A36",
            f"{act} does not find the host's",
            call,
            (act, "{key}"),
            beneath="ENOENT",
            layer="own ipc namespace",
            critical=True,
        )
    yield Attempt(
        "A36",
        "the host's message queue is not opened",
        "mq_open",
        ("mq-open", "{queue}"),
        beneath="ENOENT",
        layer="own ipc namespace",
        critical=True,
    )
    yield Attempt(
        "A36",
        "the host's /dev/shm is not seen",
        "openat",
        ("open-read", "{shared}"),
        beneath="ENOENT|EACCES",
        layer="own root",
        critical=True,
    )
    yield from _packets()


def _unix() -> Iterator[Attempt]:
    for what, path in {
        "Docker": "/run/docker.sock", "D-Bus": "/run/dbus/system_bus_socket",
        "the journal": "/run/systemd/journal/stdout", "the supervisor": "{run}/control.sock",
        "another workload": "{channel}", "the host": "{socket}",
    }.items():  # fmt: skip
        yield Attempt(
            "A35",
            f"the socket of {what} is not reached",
            "connect",
            ("unix", path),
            beneath="ENOENT|EACCES",
            layer="own root",
            lacks="ENOENT|ECONNREFUSED|EPROTOTYPE",
            critical=True,
        )
    yield Attempt(
        "A35",
        "an abstract socket of the host is not reached",
        "connect",
        ("unix", "{abstract}"),
        beneath="ECONNREFUSED|EPERM",
        layer="own network namespace, Landlock",
        critical=True,
    )


def _packets() -> Iterator[Attempt]:
    nowhere = {"layer": "no route", "control": "network", "critical": True, "works": "returned 1"}
    yield Attempt(
        "A37",
        "no question to a name server leaves",
        "socket",
        ("udp", SERVER, "53"),
        UDP,
        beneath="ENETUNREACH",
        **nowhere,
    )
    yield Attempt(
        "A37",
        "no datagram with a foreign source leaves",
        "socket",
        ("udp", SERVER, "53", "192.0.2.77"),
        UDP,
        beneath="ENETUNREACH",
        **nowhere,
    )
    yield Attempt(
        "A37",
        "no broadcast leaves",
        "socket",
        ("udp", "255.255.255.255", "9"),
        UDP,
        beneath="ENETUNREACH",
        **{**nowhere, "control": "network"},
    )
    yield Attempt(
        "A37",
        "no link-local multicast leaves",
        "socket",
        ("udp", "ff02::1", "9"),
        UDP6,
        beneath="ENETUNREACH|EADDRNOTAVAIL|returned 1",
        **{**nowhere, "critical": False},
    )
