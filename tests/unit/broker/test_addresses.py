"""What a name may resolve to, and what it may not."""

import socket

import pytest

from sandbox.addresses import parse_network, refusal


def packed(text: str) -> tuple[int, bytes]:
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    return family, socket.inet_pton(family, text)


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("127.0.0.1", "loopback"),
        ("127.255.255.254", "loopback"),
        ("0.0.0.0", "unspecified"),
        ("0.1.2.3", "this network"),
        ("10.0.0.1", "private"),
        ("172.16.0.1", "private"),
        ("172.31.255.255", "private"),
        ("192.168.1.1", "private"),
        ("100.64.0.1", "shared"),
        ("169.254.1.1", "link-local"),
        ("169.254.169.254", "metadata"),
        ("100.100.100.200", "metadata"),
        ("168.63.129.16", "metadata"),
        ("224.0.0.1", "multicast"),
        ("255.255.255.255", "broadcast"),
        ("::", "unspecified"),
        ("::1", "loopback"),
        ("::ffff:127.0.0.1", "v4-mapped"),
        ("::ffff:93.184.216.34", "v4-mapped"),
        ("::127.0.0.1", "not global unicast"),
        ("64:ff9b::7f00:1", "NAT64"),
        ("64:ff9b:1::1", "NAT64"),
        ("2002:7f00:1::", "6to4"),
        ("2001::1", "Teredo"),
        ("fc00::1", "private"),
        ("fd00:ec2::254", "metadata"),
        ("fe80::1", "link-local"),
        ("fec0::1", "not global unicast"),
        ("ff02::1", "multicast"),
    ],
)
def test_special_addresses_are_refused_with_their_name(address: str, why: str) -> None:
    assert why in (refusal(*packed(address)) or "allowed")


@pytest.mark.parametrize(
    "address",
    ["93.184.216.34", "1.1.1.1", "172.15.255.255", "172.32.0.1", "100.128.0.1", "169.253.0.1",
     "2606:4700::1111", "2a00::1", "2003::1"],
)  # fmt: skip
def test_public_addresses_are_allowed(address: str) -> None:
    assert refusal(*packed(address)) is None


def test_only_the_named_network_is_lifted() -> None:
    allowed = (parse_network("10.1.0.0/16"),)
    assert refusal(*packed("10.1.2.3"), allowed) is None
    assert refusal(*packed("10.2.2.3"), allowed) == "private"


def test_allowing_loopback_does_not_open_its_mapped_form() -> None:
    allowed = (parse_network("127.0.0.0/8"),)
    assert refusal(*packed("127.0.0.1"), allowed) is None
    assert refusal(*packed("::ffff:127.0.0.1"), allowed) == "v4-mapped"


@pytest.mark.parametrize(
    "text", ["", "10.0.0.0/33", "10.0.0.1/8", "10.0.0.0/", "10.0.0.0/-1", "::/129", "name", "10.0"]
)
def test_malformed_networks_are_errors(text: str) -> None:
    with pytest.raises(ValueError, match=r"address|prefix"):
        parse_network(text)
