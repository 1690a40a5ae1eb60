"""WebSocket: authenticated before the upgrade, relayed frame by frame, ended by limits."""

from __future__ import annotations

import os
import struct
import time

import pytest
from gateway_rig import BODY_MAX, REST, SOCKET, Client, Gateway
from wsproto import events as ws

UPGRADE = ("Upgrade: websocket", "Connection: keep-alive, Upgrade", "Sec-WebSocket-Version: 13",
           "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==")  # fmt: skip


def frame(first: int, payload: bytes = b"", *, masked: bool = True, length: bytes = b"") -> bytes:
    """A frame by hand, so that it can be wrong; `length` overrides the extended length."""
    size = len(payload)
    if not length:
        extended = b"\x7e" + struct.pack("!H", size & 0xFFFF)
        if size > 0xFFFF:
            extended = b"\x7f" + struct.pack("!Q", size)
        length = bytes([size]) if size < 126 else extended
    second = bytes([length[0] | (0x80 if masked else 0)]) + length[1:]
    return bytes([first]) + second + (bytes(4) if masked else b"") + payload


def reason(gateway: Gateway) -> object:
    """How the newest WebSocket ended, from its audit record."""
    request = gateway.adapter.seen[-1].header("x-request-id")
    return gateway.wait_for(lambda: gateway.records(request))[0].get("reason")


def test_messages_both_ways_and_an_orderly_close(gateway: Gateway) -> None:
    client = Client(gateway)
    assert isinstance(client.opening, ws.AcceptConnection)
    assert client.say("hello") == "hello"
    assert client.say("x" * 40_000) == "x" * 40_000
    client.send(ws.CloseConnection(code=1000))
    assert client.next().code == 1000
    request = gateway.adapter.seen[-1].header("x-request-id")
    record = gateway.wait_for(lambda: gateway.records(request))[0]
    assert (record["verdict"], record["status"]) == ("allowed", 101)
    assert record["bytes_in"] == record["bytes_out"] == 40_005 + 2
    client.close()


def test_adapter_sees_only_what_it_should(gateway: Gateway) -> None:
    client = Client(gateway, "/websocket/chat?a=b", origin=gateway.origin, compress=True,
                    protocols=("chat", "other"))  # fmt: skip
    assert isinstance(client.opening, ws.AcceptConnection)
    assert client.opening.subprotocol == "chat"
    assert client.opening.extensions == []
    seen = gateway.adapter.seen[-1]
    names = {name for name, _ in seen.headers}
    assert seen.target == "/chat?a=b"
    assert not names & {"authorization", "sec-websocket-extensions", "cookie"}
    assert seen.header("x-anchorhold-client") == "alice"
    assert seen.header("sec-websocket-protocol") == "chat, other"
    client.close()


def test_a_browser_sends_its_token_as_a_subprotocol(gateway: Gateway) -> None:
    token = gateway.issuer.token(SOCKET)
    client = Client(gateway, token=None, origin=gateway.origin, protocols=("bearer", token))
    assert client.opening.subprotocol == "bearer"
    assert gateway.adapter.seen[-1].header("sec-websocket-protocol") is None
    assert token not in str(gateway.adapter.seen[-1])
    assert client.say("hi") == "hi"
    client.close()
    client = Client(gateway, "/websocket/chat", token=None, protocols=("bearer", token, "chat"))
    assert client.opening.subprotocol == "chat"
    client.close()


@pytest.mark.parametrize(
    ("extra", "options", "status", "code"),
    [
        (UPGRADE, {"token": None}, 401, "missing_token"),
        ((*UPGRADE, "Origin: http://evil.test"), {}, 403, "origin_not_allowed"),
        ((*UPGRADE, "Sec-WebSocket-Protocol: bearer"), {"token": None}, 401, "malformed_token"),
        ((*UPGRADE, "Sec-WebSocket-Protocol: bearer, x"), {}, 400, "two_tokens"),
        ((*UPGRADE, "Sec-WebSocket-Protocol: Bearer, x"), {}, 400, "two_tokens"),
        (
            (*UPGRADE, "Sec-WebSocket-Protocol: bearer, x, BEARER, y"),
            {"token": None},
            400,
            "two_tokens",
        ),
        ((*UPGRADE[:3], "Sec-WebSocket-Key: AAAA"), {}, 400, "bad_upgrade"),
        (UPGRADE[:3], {}, 400, "bad_upgrade"),
        ((UPGRADE[1], "Upgrade: h2c"), {}, 400, "bad_upgrade"),
        ((UPGRADE[0], *UPGRADE[2:]), {}, 400, "bad_upgrade"),
        (UPGRADE[1:], {}, 400, "bad_upgrade"),
        ((*UPGRADE[:2], "Sec-WebSocket-Version: 8", UPGRADE[3]), {}, 426, "websocket_version"),
        ((*UPGRADE, "Content-Length: 5"), {}, 400, "bad_upgrade"),
        ((*UPGRADE, "Transfer-Encoding: chunked"), {}, 400, "bad_upgrade"),
    ],
)
def test_refused_before_the_adapter(
    gateway: Gateway, extra: tuple[str, ...], options: dict, status: int, code: str
) -> None:
    before = gateway.adapter.connections
    options = {"token": gateway.issuer.token(SOCKET)} | options
    answer = gateway.ask("GET", "/websocket/", *extra, **options)
    assert (answer.status, answer.code) == (status, code)
    assert gateway.record(answer)["verdict"] == "refused"
    assert gateway.adapter.connections == before
    client = Client(gateway)  # positive control
    assert client.say("hi") == "hi"
    client.close()


def test_a_rest_token_opens_no_websocket(gateway: Gateway) -> None:
    client = Client(gateway, token=gateway.issuer.token(REST))
    assert (type(client.opening), client.opening.status_code) == (ws.RejectConnection, 403)
    client.close()


def test_a_protocol_without_websocket(gateway: Gateway) -> None:
    answer = gateway.ask("GET", "/rest/", *UPGRADE)
    assert (answer.status, answer.code) == (403, "upgrade_not_allowed")


def test_the_adapter_may_refuse(gateway: Gateway) -> None:
    answer = gateway.ask("GET", "/websocket/refuse", *UPGRADE, token=gateway.issuer.token(SOCKET))
    assert (answer.status, answer.body) == (403, b"no")


@pytest.mark.parametrize("path", ["/websocket/wrong-accept", "/websocket/compress"])
def test_a_wrong_handshake_of_the_adapter(gateway: Gateway, path: str) -> None:
    answer = gateway.ask("GET", path, *UPGRADE, token=gateway.issuer.token(SOCKET))
    assert (answer.status, answer.code) == (502, "adapter_bad_answer")


def test_a_message_above_the_limit_closes_with_1009(gateway: Gateway) -> None:
    client = Client(gateway)
    assert client.say("x" * BODY_MAX) == "x" * BODY_MAX  # positive control
    seen = gateway.adapter.seen[-1]
    client.sock.sendall(frame(0x81, b"y" * (BODY_MAX + 1)))
    closing = client.next()
    assert (closing.code, closing.reason) == (1009, "message_too_large")
    assert seen.vanished.wait(5)
    assert gateway.adapter.closes[-1] == 1009
    assert b"y" not in seen.body
    assert reason(gateway) == "message_too_large"
    client.close()


def test_fragments_are_added_up(gateway: Gateway) -> None:
    half = b"x" * (BODY_MAX // 2)
    client = Client(gateway)
    client.sock.sendall(frame(0x01, half) + frame(0x89, b"p") + frame(0x80, half))
    got = b""
    while len(got) < BODY_MAX:
        event = client.next()
        got += event.data.encode() if isinstance(event, ws.TextMessage) else b""
    client.sock.sendall(frame(0x01, half) + frame(0x00, half) + frame(0x80, b"z"))
    while not isinstance(event := client.next(), ws.CloseConnection):
        pass
    assert event.code == 1009
    client.close()


@pytest.mark.parametrize(
    "data",
    [
        frame(0x81, b"unmasked", masked=False),
        frame(0xC1, b"compressed?"),
        frame(0x83, b"opcode 3"),
        frame(0x80, b"continues nothing"),
        frame(0x01, b"a") + frame(0x81, b"b"),
        frame(0x09, b"fragmented ping"),
        frame(0x89, b"x" * 126),
        frame(0x81, b"x", length=b"\x7e\x00\x01"),
        frame(0x81, b"x", length=b"\x7f" + bytes(7) + b"\x01"),
        frame(0x81, b"x", length=b"\x7f\xff" + bytes(7)),
    ],
)
def test_broken_frames_close_with_1002(gateway: Gateway, data: bytes) -> None:
    client = Client(gateway)
    assert client.say("hi") == "hi"  # positive control
    client.sock.sendall(data)
    while not isinstance(event := client.next(), ws.CloseConnection):
        pass
    assert event.code == 1002
    assert reason(gateway) == "websocket_protocol"
    client.close()


def test_frames_in_single_bytes(gateway: Gateway) -> None:
    client = Client(gateway)
    for byte in frame(0x81, b"x" * 300):
        client.sock.sendall(bytes([byte]))
    got = ""
    while len(got) < 300:
        got += client.next().data
    assert got == "x" * 300
    client.close()


def test_a_client_that_vanishes_ends_the_adapter_side(gateway: Gateway) -> None:
    client = Client(gateway)
    assert client.say("hi") == "hi"
    seen = gateway.adapter.seen[-1]
    client.close()
    assert seen.vanished.wait(5)
    assert reason(gateway) == "client_gone"


def test_the_connection_ends_with_its_token(gateway: Gateway) -> None:
    token = gateway.issuer.token(SOCKET, exp=int(time.time()) + 2)
    client = Client(gateway, token=token)
    assert client.say("hi") == "hi"
    closing = client.next()
    assert (closing.code, closing.reason) == (1008, "token_expired")
    assert reason(gateway) == "token_expired"
    client.close()


def test_random_frames_after_the_handshake_do_no_harm(gateway: Gateway) -> None:
    for _ in range(20):
        client = Client(gateway)
        client.sock.sendall(os.urandom(64))
        client.close()
    client = Client(gateway)
    assert client.say("still here") == "still here"
    client.close()
