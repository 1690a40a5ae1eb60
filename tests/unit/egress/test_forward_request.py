"""Requests with an absolute URI: checked, masked both ways, with the key put in by the proxy."""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy.egress.errors import Refusal
from proxy.egress.forward.target import parse
from tests.memory import search

from .harness import KEY, OTHER, PLACEHOLDER, WORKLOAD, Proxy, Response, Upstream, read_response
from .samples import SECRETS
from .test_forward import HOST, TlsEcho, rule

SECRET = SECRETS["github-token"]
MASK = "[REDACTED:github-token]"


class Service(TlsEcho):
    """A chat service behind TLS: `answer` is sent to every request, `seen` is what came."""

    def __init__(self, folder: Path) -> None:
        self.answer: list[bytes] = []
        self.seen: list[bytes] = []
        super().__init__(folder)

    def _serve(self, sock: socket.socket) -> None:
        sock.settimeout(10)
        with contextlib.suppress(OSError), self._context.wrap_socket(sock, server_side=True) as tls:
            data = b""
            while b"\r\n\r\n" not in data:
                data += tls.recv(65536)
            head, _, body = data.partition(b"\r\n\r\n")
            sizes = [x for x in head.lower().split(b"\r\n") if x.startswith(b"content-length:")]
            size = int(sizes[0].split(b":")[1]) if sizes else 0
            while len(body) < size:
                body += tls.recv(65536)
            self.seen.append(head + b"\r\n\r\n" + body)
            for piece in self.answer:
                tls.sendall(piece)
            with contextlib.suppress(ssl.SSLError):
                tls.unwrap()


def reply(body: bytes, kind: str = "application/json", status: str = "200 OK", *more: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-type: {kind}", f"content-length: {len(body)}", *more]
    return "\r\n".join([*lines, "", ""]).encode() + body


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    server = Service(tmp_path_factory.mktemp("service"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory, shared_upstream: Upstream, service: Service
) -> Iterator[Proxy]:
    rules = [
        rule(methods=["GET", "POST"], path="/v1/**"),
        rule("keyed", methods=["POST"], path="/keyed/**", credential="practice"),
        rule("inpath", path="/bot{credential}/**", credential="practice"),
        rule("absent", path="/absent", credential="nobody"),
    ]
    proxy = Proxy(
        tmp_path_factory.mktemp("requests"), shared_upstream,
        workload={"net": rules, "body_max": 2000}, config={"ca_file": str(service.ca)},
    )  # fmt: skip
    proxy.broker.ports |= {each["target"]: service.port for each in rules}
    proxy.forward()
    proxy.unlock()
    yield proxy
    audit = proxy.audit_path.read_text()
    assert KEY not in audit and SECRET not in audit and PLACEHOLDER not in audit
    assert proxy.close() == b"", "the proxy printed something"


@pytest.fixture
def proxy(shared: Proxy, service: Service) -> Proxy:
    service.seen.clear()
    service.answer[:] = [reply(b'{"ok": true}')]
    shared.broker.dialled.clear()
    return shared


def send(proxy: Proxy, raw: bytes) -> Response:
    sock = socket.create_connection(proxy.forwarders[WORKLOAD], timeout=10)
    sock.sendall(raw)
    return read_response(sock)


def ask(
    proxy: Proxy,
    path: str = "/v1/x",
    body: bytes | None = None,
    method: str = "",
    kind: str = "application/json",
    **headers: str,
) -> Response:
    lines = [
        f"{method or ('POST' if body is not None else 'GET')} http://{HOST}:443{path} HTTP/1.1"
    ]
    given = {"Host": HOST, "Connection": "close", **headers}
    if body is not None:
        given |= {"Content-Type": kind, "Content-Length": str(len(body))}
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in given.items()]
    return send(proxy, "\r\n".join([*lines, "", ""]).encode() + (body or b""))


def test_a_request_goes_out_over_tls_with_our_own_head(proxy: Proxy, service: Service) -> None:
    answer = ask(
        proxy, "/v1/a?q=1", X_Custom="yes", Proxy_Authorization="Basic eDp5",
        X_Forwarded_For="10.0.0.1", TE="trailers", Keep_Alive="5", Accept_Encoding="br",
    )  # fmt: skip
    assert (answer.status, answer.json) == (200, {"ok": True})
    head, *lines = service.seen[0].decode().split("\r\n")
    assert head == "GET /v1/a?q=1 HTTP/1.1"
    names = {line.partition(":")[0].lower() for line in lines if line}
    assert names == {"host", "x-custom", "accept-encoding", "connection"}
    assert "accept-encoding: identity" in [line.lower() for line in lines]
    record = proxy.last()
    assert (record["verdict"], record["way"], record["host"]) == ("allowed", "request", HOST)
    assert record["rule"]["id"] == "chat" and record["status"] == 200


def test_secrets_are_masked_both_ways(proxy: Proxy, service: Service) -> None:
    service.answer[:] = [reply(json.dumps({"echo": f"x {SECRET}"}).encode())]
    answer = ask(proxy, body=json.dumps({"text": f"hi {SECRET}"}).encode())
    assert answer.json == {"echo": f"x {MASK}"}
    body = service.seen[0].partition(b"\r\n\r\n")[2]
    assert json.loads(body) == {"text": f"hi {MASK}"}
    assert proxy.last()["redacted"] == {
        "request": {"github-token": 1}, "response": {"github-token": 1},
    }  # fmt: skip


def test_what_is_clean_passes_byte_for_byte(proxy: Proxy, service: Service) -> None:
    body = b'{ "a" :1.10, "b":"\\u00e4" }'
    service.answer[:] = [reply(body)]
    assert ask(proxy, body=body).body == body
    assert service.seen[0].endswith(b"\r\n\r\n" + body)


def test_forms_and_text_are_masked(proxy: Proxy, service: Service) -> None:
    form = f"chat_id=7&text=hello+{SECRET}".encode()
    assert ask(proxy, body=form, kind="application/x-www-form-urlencoded").status == 200
    assert b"text=hello+%5BREDACTED%3Agithub-token%5D" in service.seen[0]
    assert ask(proxy, body=f"see {SECRET}".encode(), kind="text/plain").status == 200
    assert service.seen[1].endswith(f"see {MASK}".encode())


@pytest.mark.parametrize("kind", ["text/plain", "text/event-stream"])
def test_a_secret_split_over_pieces_of_an_answer_is_masked(
    proxy: Proxy, service: Service, kind: str
) -> None:
    text = f"data: {SECRET} end\n\n".encode()
    whole = reply(text, kind)
    service.answer[:] = [bytes([byte]) for byte in whole]
    assert ask(proxy).body == f"data: {MASK} end\n\n".encode()


def test_other_answers_pass_unless_a_key_in_use_is_in_them(proxy: Proxy, service: Service) -> None:
    pixels = bytes(range(256)) * 8
    service.answer[:] = [reply(pixels, "image/png")]
    assert ask(proxy).body == pixels
    service.answer[:] = [reply(pixels + KEY.encode() + pixels, "image/png")]
    with contextlib.suppress(ConnectionResetError):
        assert KEY.encode() not in ask(proxy).body
    assert proxy.last()["verdict"] == "failed"


@pytest.mark.parametrize("size", [1, 7, 20])
def test_a_key_in_pieces_of_an_answer_leaves_no_piece_of_it(
    proxy: Proxy, service: Service, size: int
) -> None:
    whole = reply(b"\0pixels" + KEY.encode() + b"\0more", "image/png")
    service.answer[:] = [whole[at : at + size] for at in range(0, len(whole), size)]
    with contextlib.suppress(ConnectionResetError, ValueError):
        assert KEY[:8].encode() not in ask(proxy).body
    assert proxy.last()["verdict"] == "failed"
    service.answer[:] = [reply(b"\0pixels" + KEY[:9].encode(), "image/png")]
    assert ask(proxy).body == b"\0pixels" + KEY[:9].encode(), "a beginning alone is none"


def test_an_answer_without_a_type_is_text(proxy: Proxy, service: Service) -> None:
    body = f"see {SECRET} there".encode()
    service.answer[:] = [b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body]
    assert ask(proxy).body == f"see {MASK} there".encode()


def test_no_copy_of_a_key_stays_behind(start: Callable[..., Proxy], service: Service) -> None:
    """Of the rules with a key in a header and in the path, over TLS."""
    key = f"sk-{secrets.token_hex(24)}"
    keyed = rule("keyed", methods=["POST"], path="/keyed/**", credential="practice")
    inpath = rule("inpath", path="/bot{credential}/**", credential="practice")
    proxy = start(workload={"net": [keyed, inpath]}, config={"ca_file": str(service.ca)})
    proxy.broker.ports |= {each["target"]: service.port for each in (keyed, inpath)}
    proxy.forward()
    proxy.unlock({"practice": key})
    service.seen.clear()
    service.answer[:] = [reply(b'{"ok": true}')]
    for _ in range(2):
        assert ask(proxy, "/keyed/x", body=b"{}", Authorization=f"Bearer {PLACEHOLDER}").json
        assert ask(proxy, f"/bot{PLACEHOLDER}/send", body=b"{}").json
    seen = b"".join(service.seen).decode()
    assert seen.count(f"Bearer {key}") == 2 and seen.count(f"/bot{key}/send") == 2
    assert PLACEHOLDER not in seen
    found = search(proxy.process.pid, [key, PLACEHOLDER])
    assert any(hit.startswith("secret 1") for hit in found.hits), "the search finds nothing"
    assert not [hit for hit in found.hits if hit.startswith("secret 0")], found.hits


def test_the_key_is_put_in_and_never_comes_back(proxy: Proxy, service: Service) -> None:
    service.answer[:] = [reply(json.dumps({"you": f"sent {KEY}"}).encode())]
    answer = ask(proxy, "/keyed/x", body=b"{}", Authorization=f"Bearer {PLACEHOLDER}")
    assert answer.json == {"you": "sent [REDACTED:live-key]"}
    assert f"authorization: bearer {KEY}".lower() in service.seen[0].decode().lower()
    assert PLACEHOLDER.encode() not in service.seen[0]
    service.answer[:] = [reply(f"no {KEY}".encode(), "text/plain", "401 x", f"x-sent: {KEY}")]
    answer = ask(proxy, f"/bot{PLACEHOLDER}/send?a=b", body=b"{}")
    assert answer.status == 401 and KEY.encode() not in answer.body
    assert KEY not in str(answer.headers)
    assert service.seen[1].startswith(f"POST /bot{KEY}/send?a=b HTTP/1.1".encode())
    assert ask(proxy, "/absent").code == "credential_absent"


@pytest.mark.parametrize(
    ("path", "headers", "body"),
    [
        ("/v1/x", {"X-Token": PLACEHOLDER}, None),
        ("/v1/x", {"Authorization": f"Bearer {PLACEHOLDER}"}, None),
        (f"/v1/{PLACEHOLDER}", {}, None),
        (f"/v1/x?t={PLACEHOLDER}", {}, None),
        (f"/v1/x?t={PLACEHOLDER.replace('-', '%2D')}", {}, None),
        ("/v1/x", {}, json.dumps({"t": PLACEHOLDER}).encode()),
        (f"/bot{PLACEHOLDER}/{PLACEHOLDER}", {}, None),
        ("/keyed/x", {"Cookie": OTHER}, b"{}"),
    ],
)
def test_a_placeholder_anywhere_else_is_refused(
    proxy: Proxy, service: Service, path: str, headers: dict[str, str], body: bytes | None
) -> None:
    answer = ask(proxy, path, body, **{k.replace("-", "_"): v for k, v in headers.items()})
    assert (answer.status, answer.code) == (403, "credential_mismatch")
    assert not service.seen and not proxy.broker.dialled


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/v1/x", {"X_Note": SECRET}),
        (f"/v1/{SECRET}", {}),
        (f"/v1/x?note={SECRET}", {}),
        (f"/v1/x?note={SECRET.replace('_', '%5F')}", {}),
    ],
)
def test_a_secret_in_the_head_is_refused(
    proxy: Proxy, service: Service, path: str, headers: dict[str, str]
) -> None:
    answer = ask(proxy, path, **headers)
    assert (answer.status, answer.code) == (422, "secret_in_head")
    assert not service.seen
    assert ask(proxy, "/v1/x?note=plain", X_Note="plain").status == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [("DELETE", "/v1/x"), ("GET", "/v2/x"), ("GET", "/v11"), ("GET", "/keyed/x"),
     ("GET", "/V1/x"), ("GET", "/bot123/x")],
)  # fmt: skip
def test_other_methods_and_paths_are_refused_with_the_line(
    proxy: Proxy, service: Service, method: str, path: str
) -> None:
    answer = ask(proxy, path, method=method)
    assert (answer.status, answer.code) == (403, "destination_not_allowed")
    assert "executor-main.toml:70 (chat)" in answer.json["error"]["message"]
    assert not proxy.broker.dialled


@pytest.mark.parametrize(
    "raw",
    [
        b"GET /v1/x HTTP/1.1\r\nHost: chat.example\r\n\r\n",
        b"GET http://u:p@chat.example:443/v1/x HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET http://127.0.0.1:443/v1/x HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET http://chat.example:443/v1/../x HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET http://chat.example:443/v1/%2e%2e/x HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET http://chat.example:443/v1/%252e%252e/x HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET http://chat.example:443/v1/..%2fx HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET http://chat.example:443/v1/a%5c..%5cx HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET http://chat.example:443/v1/x#y HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET ftp://chat.example:443/v1/x HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET http://chat.example:443/v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n"
        b"Content-Length: 2\r\n\r\nab",
        b"POST http://chat.example:443/v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST http://chat.example:443/v1/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: x\r\n\r\n",
        b"POST http://chat.example:443/v1/x HTTP/1.1\r\nHost: a\r\n"
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET http://chat.example:443/v1/x HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n",
    ],
)
def test_shapes_that_servers_read_differently_are_refused(proxy: Proxy, raw: bytes) -> None:
    answer = send(proxy, raw.replace(b"Host: a", b"Host: a\r\nConnection: close"))
    assert answer.status in (400, 501) and answer.code == "proxy_request_invalid"
    assert not proxy.broker.dialled


def test_bodies_that_cannot_be_read_are_refused(proxy: Proxy, service: Service) -> None:
    for body, kind, code in (
        (b"{", "application/json", "invalid_json"),
        (b"\xff", "text/plain", "unsupported_type"),
        (b"GIF89a", "image/gif", "unsupported_type"),
        (b"x" * 2001, "text/plain", "body_too_large"),
    ):
        assert ask(proxy, body=body, kind=kind).code == code
    assert ask(proxy, body=b"{}", Content_Encoding="gzip").code == "unsupported_encoding"
    assert ask(proxy, Upgrade="websocket").code == "upgrade_refused"
    assert not service.seen
    assert ask(proxy, body=b"x" * 2000, kind="text/plain").status == 200


@pytest.mark.parametrize(
    ("location", "status"),
    [
        ("/v1/y", 302),
        (f"https://{HOST}/v1/y", 302),
        ("https://evil.example/v1/y", 502),
        ("//evil.example/", 502),
        (f"http://{HOST}/v1/y", 502),
        (f"https://{HOST}:8443/", 502),
    ],
)
def test_a_redirect_stays_at_its_host(
    proxy: Proxy, service: Service, location: str, status: int
) -> None:
    service.answer[:] = [reply(b"", "text/plain", "302 Found", f"location: {location}")]
    assert ask(proxy).status == status


def test_answers_that_cannot_be_read_are_a_502(proxy: Proxy, service: Service) -> None:
    for raw, code in (
        (reply(b"{"), "upstream_invalid"),
        (reply(b"x", "text/plain", "200 OK", "content-encoding: gzip"), "upstream_invalid"),
        (b"nonsense\r\n\r\n", "upstream_disconnected"),
        (b"", "upstream_disconnected"),
    ):
        service.answer[:] = [raw]
        answer = ask(proxy)
        assert (answer.status, answer.code) == (502, code)


def test_a_certificate_for_another_host_is_refused(
    start: Any, upstream: Upstream, service: Service
) -> None:
    proxy = start(
        workload={"net": [rule(host="other.example")]}, config={"ca_file": str(service.ca)}
    )
    proxy.broker.ports[f"net.{WORKLOAD}.chat"] = service.port
    proxy.forward()
    raw = b"GET http://other.example:443/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    answer = send(proxy, raw)
    assert (answer.status, answer.code) == (502, "upstream_disconnected")
    assert "CertVerification" in answer.json["error"]["message"]


def test_two_requests_on_one_connection(proxy: Proxy, service: Service) -> None:
    sock = socket.create_connection(proxy.forwarders[WORKLOAD], timeout=10)
    line = f"GET http://{HOST}:443/v1/x HTTP/1.1\r\nHost: {HOST}\r\n"
    sock.sendall((line + "\r\n").encode())
    got = b""
    while not got.endswith(b'{"ok": true}'):
        got += sock.recv(65536)
    sock.sendall((line + "Connection: close\r\n\r\n").encode())
    assert read_response(sock).status == 200
    assert len(service.seen) == 2


@pytest.mark.parametrize("raw", [b"", b"http://", b"http:///x", b"http://a:0/", b"http://a:70000/"])
def test_odd_targets_are_none(raw: bytes) -> None:
    with pytest.raises(Refusal):
        parse(raw)
    assert parse(b"http://a.example:8443/x?y").authority == "a.example:8443"
