"""WebSockets on the forward port: text masked message by message, all else refused or dropped."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from wsproto import ConnectionType, WSConnection
from wsproto.connection import Connection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    Pong,
    Request,
    TextMessage,
)  # fmt: skip
from wsproto.extensions import PerMessageDeflate

from .harness import KEY, WORKLOAD, Proxy, Upstream
from .samples import SECRETS
from .test_forward import HOST, TlsEcho, answer, rule

SECRET, MASK = SECRETS["github-token"], "[REDACTED:github-token]"


class Chat(TlsEcho):
    """A WebSocket server behind TLS: keeps the text it gets and sends `says` back to each."""

    def __init__(self, folder: Path) -> None:
        self.got: list[Any] = []
        self.says: list[Any] = []
        self.heads: list[Request] = []
        super().__init__(folder)

    def _serve(self, sock: socket.socket) -> None:
        sock.settimeout(10)
        with contextlib.suppress(OSError), self._context.wrap_socket(sock, server_side=True) as tls:
            web = WSConnection(ConnectionType.SERVER)
            while data := tls.recv(65536):
                web.receive_data(data)
                for event in web.events():
                    if isinstance(event, Request):
                        self.heads.append(event)
                        tls.sendall(web.send(AcceptConnection(extensions=[PerMessageDeflate()])))
                    elif isinstance(event, TextMessage | BytesMessage):
                        self.got.append(event.data)
                        for each in self.says:
                            tls.sendall(web.send(each))
                    elif isinstance(event, Ping | CloseConnection):
                        self.got.append(event)
                        tls.sendall(web.send(event.response()))


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chat]:
    server = Chat(tmp_path_factory.mktemp("chat"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory, shared_upstream: Upstream, chat: Chat
) -> Iterator[Proxy]:
    rules = [
        rule(path="/ws/**", websocket=True, credential="practice"),
        rule("plain", path="/http/**"),
    ]
    proxy = Proxy(
        tmp_path_factory.mktemp("websocket"), shared_upstream,
        workload={"net": rules}, config={"ca_file": str(chat.ca)},
    )  # fmt: skip
    proxy.broker.ports |= {each["target"]: chat.port for each in rules}
    proxy.forward()
    proxy.unlock()
    yield proxy
    assert SECRET not in proxy.audit_path.read_text()
    assert proxy.close() == b"", "the proxy printed something"


class Client:
    """A WebSocket client of the forward port."""

    made: ClassVar[list[Client]] = []

    def __init__(self, proxy: Proxy, path: str = "/ws/x", key: str = "", *headers: str) -> None:
        self.sock = socket.create_connection(proxy.forwarders[WORKLOAD], timeout=10)
        key = key or base64.b64encode(bytes(range(16))).decode()
        lines = [
            f"GET http://{HOST}:443{path} HTTP/1.1", f"Host: {HOST}", "Upgrade: websocket",
            "Connection: Upgrade", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {key}",
            "Sec-WebSocket-Extensions: permessage-deflate", *headers, "", "",
        ]  # fmt: skip
        self.sock.sendall("\r\n".join(lines).encode())
        self.web = Connection(ConnectionType.CLIENT)
        self.made.append(self)

    def open(self) -> str:
        data = b""
        while not data.endswith(b"\r\n\r\n"):
            data += self.sock.recv(1)
        return data.decode().lower()

    def send(self, event: Any) -> None:
        self.sock.sendall(self.web.send(event))

    def events(self, count: int = 1) -> list[Any]:
        found: list[Any] = []
        while len(found) < count:
            data = self.sock.recv(65536)
            self.web.receive_data(data or None)
            found += list(self.web.events())
            if not data:
                break
        return found


def ended(proxy: Proxy) -> Any:
    """The record of the only WebSocket of a test."""
    proxy.wait_for(lambda: bool(proxy.records("completion")), 20)
    return proxy.last()


@pytest.fixture
def proxy(shared: Proxy, chat: Chat) -> Iterator[Proxy]:
    chat.got.clear()
    chat.heads.clear()
    chat.says[:] = []
    yield shared
    for client in Client.made:
        client.sock.close()
    Client.made.clear()

    def settled() -> bool:
        ends = {record["request"] for record in shared.records("completion")}
        return ends >= {record["request"] for record in shared.records("admission")}

    shared.wait_for(settled, 20)
    shared.audit_path.write_bytes(b"")


def test_messages_are_masked_both_ways_and_nothing_is_compressed(proxy: Proxy, chat: Chat) -> None:
    chat.says[:] = [TextMessage(data=json.dumps({"echo": f"{SECRET} and {KEY}"}))]
    client = Client(proxy)
    opened = client.open()
    assert opened.startswith("http/1.1 101") and "extensions" not in opened
    client.send(TextMessage(data=json.dumps({"text": f"hi {SECRET}"})))
    (event,) = client.events()
    assert json.loads(event.data) == {"echo": f"{MASK} and [REDACTED:live-key]"}
    assert json.loads(chat.got[0]) == {"text": f"hi {MASK}"}
    head = dict(chat.heads[0].extra_headers)
    assert head[b"authorization"] == f"Bearer {KEY}".encode()
    assert not chat.heads[0].extensions
    client.send(CloseConnection(code=1000))
    assert client.events()[0].code == 1000
    record = ended(proxy)
    assert record["verdict"] == "allowed" and record["rule"]["id"] == "chat"
    assert record["redacted"]["request"] == {"github-token": 1}


def test_a_secret_over_two_frames_is_masked(proxy: Proxy, chat: Chat) -> None:
    client = Client(proxy)
    client.open()
    client.send(TextMessage(data=f"key {SECRET[:9]}", message_finished=False))
    client.send(TextMessage(data=f"{SECRET[9:]} end", message_finished=True))
    proxy.wait_for(lambda: bool(chat.got))
    assert chat.got == [f"key {MASK} end"]


def test_a_ping_is_answered_by_the_proxy(proxy: Proxy, chat: Chat) -> None:
    client = Client(proxy)
    client.open()
    client.send(Ping(payload=SECRET[:20].encode()))
    assert isinstance(client.events()[0], Pong)
    assert not chat.got


@pytest.mark.parametrize("frame", [b"\xc1\x81\0\0\0\0a", b"\x83\x80\0\0\0\0", b"\x81\x01a"])
def test_compressed_and_malformed_frames_end_it(proxy: Proxy, chat: Chat, frame: bytes) -> None:
    client = Client(proxy)
    client.open()
    client.sock.sendall(frame)
    with contextlib.suppress(ConnectionResetError):
        assert all(isinstance(event, CloseConnection) for event in client.events(9))
    assert ended(proxy)["reason"] == "malformed_frame"
    assert not [text for text in chat.got if isinstance(text, str)]


def test_binary_messages_end_it_from_either_side(proxy: Proxy, chat: Chat) -> None:
    client = Client(proxy)
    client.open()
    client.send(BytesMessage(data=b"\0" * 8))
    assert client.events()[0].code == 1003
    chat.says[:] = [BytesMessage(data=b"\0" * 8)]
    client = Client(proxy)
    client.open()
    client.send(TextMessage(data="go"))
    assert client.events()[0].code == 1003
    assert b"\0" * 8 not in chat.got


def test_a_message_without_end_is_refused(proxy: Proxy, chat: Chat) -> None:
    client = Client(proxy)
    client.open()
    with contextlib.suppress(OSError):
        for _ in range(40):
            client.send(TextMessage(data="x" * 65536, message_finished=False))
    assert ended(proxy)["reason"] == "message_too_large"
    assert not [text for text in chat.got if isinstance(text, str)]


@pytest.mark.parametrize(
    ("path", "key", "status", "code"),
    [
        ("/http/x", "", 403, "upgrade_refused"),
        ("/ws/x", "short", 400, "proxy_request_invalid"),
        ("/ws/x?t=" + SECRET, "", 422, "secret_in_head"),
    ],
)
def test_other_openings_are_refused(
    proxy: Proxy, chat: Chat, path: str, key: str, status: int, code: str
) -> None:
    assert answer(Client(proxy, path, key).sock) == (status, code)
    assert not chat.heads
    assert "101" in Client(proxy).open()


def test_a_host_that_does_not_switch_is_a_502(
    start: Any, upstream: Upstream, tmp_path: Path
) -> None:
    echo = TlsEcho(tmp_path)
    proxy = start(workload={"net": [rule(websocket=True)]}, config={"ca_file": str(echo.ca)})
    proxy.broker.ports[f"net.{WORKLOAD}.chat"] = echo.port
    proxy.forward()
    assert answer(Client(proxy, "/").sock)[0] == 502
    echo.close()
