"""The first message of a TLS client: real ones are read, anything else does not pass."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.egress.forward.hello import SIZE_MAX, NotHello, server_name


def client_hello(name: str | None = "chat.example", alpn: tuple[str, ...] = ()) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    if alpn:
        context.set_alpn_protocols(list(alpn))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def with_extension(kind: int, body: bytes, hello: bytes | None = None) -> bytes:
    """A real ClientHello with one more extension at its end."""
    data = hello or client_hello()
    message = data[5:]
    at = 4 + 2 + 32
    at += 1 + message[at]
    at += 2 + int.from_bytes(message[at : at + 2], "big")
    at += 1 + message[at]
    extensions = message[at + 2 :] + kind.to_bytes(2, "big") + len(body).to_bytes(2, "big") + body
    inner = message[4:at] + len(extensions).to_bytes(2, "big") + extensions
    message = b"\x01" + len(inner).to_bytes(3, "big") + inner
    return b"\x16\x03\x01" + len(message).to_bytes(2, "big") + message


def in_records(data: bytes, size: int) -> bytes:
    """The same handshake message, cut into records of `size` bytes."""
    message = data[5:]
    pieces = [message[at : at + size] for at in range(0, len(message), size)]
    return b"".join(b"\x16\x03\x01" + len(p).to_bytes(2, "big") + p for p in pieces)


@pytest.mark.parametrize("alpn", [(), ("h2", "http/1.1")])
def test_a_real_hello_names_its_host(alpn: tuple[str, ...]) -> None:
    assert server_name(client_hello("Chat.Example", alpn)) == "chat.example"


def test_a_hello_in_pieces_is_waited_for() -> None:
    whole = in_records(client_hello(), 100)
    for size in range(len(whole)):
        assert server_name(whole[:size]) is None
    assert server_name(whole) == "chat.example"


def test_a_further_extension_does_no_harm() -> None:
    assert server_name(with_extension(0x0A0A, b"grease")) == "chat.example"


@pytest.mark.parametrize(
    "data",
    [
        client_hello(None),
        with_extension(0xFE0D, b"\0" * 8),
        with_extension(0, b"\0\x0f\0\0\x0cevil.example"),
        b"GET / HTTP/1.1\r\n\r\n",
        b"SSH-2.0-x\r\n",
        b"\x80\x2e\x01\x03\x01",
        b"\x17\x03\x03\0\x05hello",
        b"\x16\x03\x01\0\x04\x02\0\0\0",
        b"\x16\x03\x01\x7f\xff",
        b"\x16\x03\x01\0\0",
        client_hello() + b"\x16\x03\x01\0\x01x" * 0 + b"",
    ][:-1],
)
def test_what_names_no_single_host_openly_is_refused(data: bytes) -> None:
    with pytest.raises(NotHello):
        server_name(data)


def test_two_names_in_one_extension_are_refused() -> None:
    plain = client_hello("a.example")
    entry = b"\0\0\x09a.example"
    at = plain.index(entry)
    first = plain[at - 6 : at]  # kind, size, size of the list
    assert first[:2] == b"\0\0"
    double = with_extension(0x0A0A, b"")  # only to show that the builder is sound
    assert server_name(double) == "chat.example"
    listed = entry + b"\0\0\x09b.example"
    body = len(listed).to_bytes(2, "big") + listed
    with pytest.raises(NotHello, match="exactly one"):
        server_name(with_extension(0, body, client_hello(None)))


def test_a_hello_without_end_is_refused() -> None:
    record = b"\x16\x03\x01\x40\x00" + b"\x01\x00\x3f\xff" + b"\0" * (0x4000 - 4)
    with pytest.raises(NotHello):
        server_name(record + b"\x16\x03\x01\x00\x10" + b"\0" * 16)
    with pytest.raises(NotHello):
        server_name(b"\x16\x03\x01\x40\x00\x01\xff\xff\xff" + b"\0" * SIZE_MAX)


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    for text in (data, b"\x16\x03\x01" + data, client_hello()[:60] + data):
        try:
            server_name(text)
        except NotHello:
            continue
