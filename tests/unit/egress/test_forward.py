"""The forward port: listed hosts only, the name in the handshake checked, nothing else gets out."""

from __future__ import annotations

import contextlib
import datetime
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from proxy.egress.forward.destination import Destination, host_name, reachable

from .harness import PLACEHOLDER, WORKLOAD, Proxy, Upstream
from .test_forward_hello import client_hello

HOST = "chat.example"


def rule(name: str = "chat", **changes: Any) -> dict[str, Any]:
    return {
        "rule": name, "line": 70, "host": HOST, "port": 443, "methods": [], "path": "",
        "credential": None, "header": "authorization", "prefix": "Bearer ", "redact": "standard",
        "websocket": False, "ask": False, "hold": 0, "time": 0, "target": f"net.{WORKLOAD}.{name}",
    } | changes  # fmt: skip


class TlsEcho:
    """A TLS server for `HOST` that sends back what it gets; what came before TLS is kept."""

    def __init__(self, folder: Path) -> None:
        self.ca = folder / "ca.pem"
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)])
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(HOST)]), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        self.ca.write_bytes(pem)
        (folder / "both.pem").write_bytes(pem + private)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(folder / "both.pem")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.raw: list[bytes] = []
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        sock.settimeout(10)
        with contextlib.suppress(OSError):
            self.raw.append(sock.recv(5, socket.MSG_PEEK))
            with self._context.wrap_socket(sock, server_side=True) as tls:
                while data := tls.recv(65536):
                    tls.sendall(data)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsEcho]:
    server = TlsEcho(tmp_path_factory.mktemp("tls"))
    yield server
    server.close()


WILD, READS = "*.wild.example", "reads.example"


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory, shared_upstream: Upstream, echo: TlsEcho
) -> Iterator[Proxy]:
    rules = [
        rule(),
        rule("wild", host=WILD),
        rule("reads", host=READS, methods=["GET"]),
        rule("models", host="*.models.example"),
    ]
    proxy = Proxy(
        tmp_path_factory.mktemp("forward"), shared_upstream,
        upstream={"host": "api.models.example"},
        workload={"net": rules}, config={"ca_file": str(echo.ca)},
    )  # fmt: skip
    proxy.broker.ports |= {each["target"]: echo.port for each in rules}
    proxy.forward()
    yield proxy
    assert proxy.close() == b"", "the proxy printed something"


@pytest.fixture
def forward(shared: Proxy, echo: TlsEcho) -> Proxy:
    """The proxy; what an earlier test left of it is forgotten, and its connections are closed."""
    shared.forward()
    shared.wait_for(lambda: len(shared.records("admission")) <= len(tunnels(shared)))
    shared.audit_path.write_bytes(b"")
    shared.broker.dialled.clear()
    shared.broker.refuse.clear()
    echo.raw.clear()
    return shared


def tunnels(proxy: Proxy) -> list[Any]:
    """The ends of what was admitted."""
    admitted = {record["request"] for record in proxy.records("admission")}
    return [r for r in proxy.records("completion") if r["request"] in admitted]


def dial(proxy: Proxy, text: bytes) -> socket.socket:
    sock = socket.create_connection(proxy.forwarders[WORKLOAD], timeout=10)
    sock.sendall(text)
    return sock


def connect(proxy: Proxy, target: str = f"{HOST}:443", *headers: str) -> socket.socket:
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}", *headers]
    return dial(proxy, "\r\n".join([*lines, "", ""]).encode())


def head(sock: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        byte = sock.recv(1)
        if not byte:
            break
        data += byte
    return data


def answer(sock: socket.socket) -> tuple[int, str]:
    """Status and error code of a refusal."""
    import json

    sock.settimeout(10)
    lines = head(sock).decode().split("\r\n")
    size = next(int(x.split(": ")[1]) for x in lines if x.lower().startswith("content-length"))
    body = b""
    while len(body) < size:
        body += sock.recv(size - len(body))
    return int(lines[0].split()[1]), json.loads(body)["error"]["code"]


def over_tls(sock: socket.socket, echo: TlsEcho, name: str = HOST) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=str(echo.ca))
    return context.wrap_socket(sock, server_hostname=name)


def test_a_tunnel_carries_tls_end_to_end(forward: Proxy, echo: TlsEcho) -> None:
    proxy = forward
    sock = connect(proxy)
    assert head(sock) == b"HTTP/1.1 200 Connection established\r\n\r\n"
    with over_tls(sock, echo) as tls:
        tls.sendall(b"hello" * 1000)
        got = b""
        while len(got) < 5000:
            got += tls.recv(65536)
        assert got == b"hello" * 1000
    proxy.wait_for(lambda: bool(proxy.records("completion")))
    record = proxy.last()
    assert (record["verdict"], record["way"]) == ("allowed", "tunnel")
    assert (record["host"], record["port"]) == (HOST, 443)
    assert record["rule"] == {
        "file": "executor-main.toml", "id": "chat", "line": 70, "digest": "d" * 64,
    }  # fmt: skip
    assert record["bytes"]["request"] > 5000 and record["bytes"]["response"] > 5000
    assert proxy.records("admission")[-1]["request"] == record["request"]
    assert proxy.broker.dialled == [f"net.{WORKLOAD}.chat"]


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        (client_hello("evil.example"), "sni_mismatch"),
        (client_hello(None), "handshake_refused"),
        (b"GET / HTTP/1.1\r\n\r\n", "handshake_refused"),
        (client_hello("evil.example")[:40], None),
    ],
)
def test_not_one_byte_goes_out_before_the_name_is_right(
    forward: Proxy, echo: TlsEcho, first: bytes, reason: str | None
) -> None:
    proxy = forward
    sock = connect(proxy)
    assert b" 200 " in head(sock)
    sock.sendall(first)
    if reason is None:
        sock.shutdown(socket.SHUT_WR)
    with contextlib.suppress(ConnectionResetError):
        assert sock.recv(10) == b""
    proxy.wait_for(lambda: bool(proxy.records("completion")))
    record = proxy.last()
    assert record["reason"] == (reason or "client_gone")
    assert record["bytes"] == {"request": 0, "response": 0}
    assert not any(echo.raw), "the upstream saw something"


def test_a_pattern_names_its_host_to_the_broker(forward: Proxy, echo: TlsEcho) -> None:
    proxy = forward
    proxy.broker.ports[f"net.{WORKLOAD}.wild=eu.wild.example"] = echo.port
    sock = connect(proxy, "eu.wild.example:443")
    assert b" 200 " in head(sock)
    sock.sendall(client_hello("eu.wild.example"))
    assert sock.recv(1) == b"\x16"
    assert answer(connect(proxy, "wild.example:443")) == (403, "destination_not_allowed")
    assert answer(connect(proxy, "eu.wild.example.evil:443")) == (403, "destination_not_allowed")


@pytest.mark.parametrize(
    ("target", "status", "code"),
    [
        ("other.example:443", 403, "destination_not_allowed"),
        ("chat.example:80", 403, "destination_not_allowed"),
        ("127.0.0.1:443", 400, "proxy_request_invalid"),
        ("[::1]:443", 400, "proxy_request_invalid"),
        ("2130706433:443", 400, "proxy_request_invalid"),
        ("0x7f.1:443", 400, "proxy_request_invalid"),
        ("chat.example", 400, "proxy_request_invalid"),
        ("chat.example:0", 400, "proxy_request_invalid"),
        ("chat.example:99999999999", 400, "proxy_request_invalid"),
        ("user@chat.example:443", 400, "proxy_request_invalid"),
        ("chat.example.:443", 400, "proxy_request_invalid"),
    ],
)
def test_other_targets_are_refused_and_nothing_is_dialled(
    forward: Proxy, target: str, status: int, code: str
) -> None:
    proxy = forward
    assert answer(connect(proxy, target)) == (status, code)
    assert not proxy.broker.dialled
    assert proxy.last()["verdict"] == "refused" and proxy.last()["reason"] == code
    with connect(proxy) as sock:
        assert b" 200 " in head(sock), "the same port works for the listed host"


def test_a_rule_that_must_read_refuses_a_tunnel(forward: Proxy) -> None:
    proxy = forward
    assert answer(connect(proxy, f"{READS}:443")) == (403, "tunnel_not_allowed")
    assert proxy.last()["rule"]["id"] == "reads"
    assert not proxy.broker.dialled


def test_no_model_is_reached_this_way(forward: Proxy) -> None:
    proxy = forward
    assert answer(connect(proxy, "api.models.example:443")) == (403, "model_host")
    assert not proxy.broker.dialled
    proxy.broker.refuse.append((3, b"no such name"))
    assert answer(connect(proxy, "else.models.example:443")) == (502, "upstream_unreachable")


def test_what_the_broker_refuses_is_a_502(forward: Proxy) -> None:
    proxy = forward
    proxy.broker.refuse.append((4, b"10.0.0.1 is private"))
    assert answer(connect(proxy)) == (502, "upstream_unreachable")
    assert proxy.last()["verdict"] == "failed"


def test_a_claim_of_another_identity_changes_nothing(forward: Proxy) -> None:
    proxy = forward
    claims = ("Proxy-Authorization: Basic b3RoZXI6eA==", "X-Forwarded-For: 10.0.0.1")
    assert b" 200 " in head(connect(proxy, f"{HOST}:443", *claims))
    proxy.forward("other")
    sock = socket.create_connection(proxy.forwarders["other"], timeout=10)
    sock.sendall(f"CONNECT {HOST}:443 HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
    assert b" 200 " in head(sock), "it has the same rules here; its own identity"
    proxy.wait_for(lambda: len(proxy.records("admission")) == 2)
    assert [r["workload"] for r in proxy.records("admission")] == [WORKLOAD, "other"]


@pytest.mark.parametrize(
    "text",
    [
        b"\x16\x03\x01\x00\x05hello",
        b"CONNECT chat.example:443 HTTP/2\r\n\r\n",
        b"CONNECT chat.example:443 HTTP/1.1\r\n\r\n",
        b"CONNECT chat.example:443 HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"CONNECT chat.example:443 HTTP/1.1\r\nHost: a\r\n bad name: b\r\n\r\n"[:-2]
        + b"\0\r\n\r\n",
        b"X" * 40_000,
    ],
)
def test_malformed_heads_are_refused(forward: Proxy, text: bytes) -> None:
    proxy = forward
    sock = dial(proxy, text)
    with contextlib.suppress(ConnectionResetError):
        assert answer(sock) == (400, "proxy_request_invalid")
    assert not proxy.broker.dialled
    assert b" 200 " in head(connect(proxy))


def test_unlisten_ends_the_forward_port(forward: Proxy) -> None:
    proxy = forward
    assert proxy.command({"op": "unlisten", "workload": WORKLOAD}) == 0

    def refused() -> bool:
        try:
            socket.create_connection(proxy.forwarders[WORKLOAD]).close()
        except ConnectionRefusedError:
            return True
        return False

    proxy.wait_for(refused)
    proxy.forward()
    assert b" 200 " in head(connect(proxy))


def test_more_connections_than_allowed_are_closed_and_room_comes_back(
    forward: Proxy,
) -> None:
    proxy = forward
    held = [socket.create_connection(proxy.forwarders[WORKLOAD], timeout=10) for _ in range(64)]
    for sock in held:
        sock.sendall(b"CONNECT ")
    extra = connect(proxy)
    with contextlib.suppress(ConnectionResetError):
        assert extra.recv(1) == b""
    for sock in held:
        sock.close()

    def open_again() -> bool:
        with contextlib.suppress(ConnectionResetError):
            return b" 200 " in head(connect(proxy))
        return False

    proxy.wait_for(open_again)


# --- rules ----------------------------------------------------------------------------------------


def destination(**changes: Any) -> Destination:
    fields = rule(**changes)
    return Destination(**{**fields, "methods": frozenset(fields["methods"])})


@pytest.mark.parametrize(
    ("path", "asked", "allowed"),
    [
        ("", "/anything", True),
        ("/v1", "/v1", True),
        ("/v1", "/v1/", False),
        ("/v1/**", "/v1", True),
        ("/v1/**", "/v1/a/b", True),
        ("/v1/**", "/v11", False),
        ("/bot{credential}/**", f"/bot{PLACEHOLDER}/send", True),
        ("/bot{credential}/**", "/bot123/send", False),
    ],
)
def test_paths_are_compared_as_written(path: str, asked: str, allowed: bool) -> None:
    assert destination(path=path).allows("GET", asked, PLACEHOLDER) is allowed


def test_the_most_telling_rule_decides() -> None:
    rules = [
        destination(name="all", host="*", ask=True),
        destination(name="some", host="*.example"),
        destination(name="one"),
    ]
    assert [r.rule for r in reachable(rules, HOST, 443)] == ["one", "some", "all"]
    assert [r.rule for r in reachable(rules, "x.test", 443)] == ["all"]
    assert not reachable(rules, HOST, 8443)


@pytest.mark.parametrize("text", ["127.1", "0x7f000001", "1", "a..b", "a_b.example", "-a.b", ""])
def test_an_address_is_no_host_name(text: str) -> None:
    assert host_name(text) is None
    assert host_name("A.Example") == "a.example"
