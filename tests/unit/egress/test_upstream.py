"""What the proxy makes of an upstream that is down, slow, wrong or hostile."""

from __future__ import annotations

import asyncio
import base64
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.memory import search

from .harness import (
    KEY,
    PLACEHOLDER,
    Proxy,
    Upstream,
    chat,
    completion,
    delta,
    reply,
    stream,
)


def test_connections_are_pooled(proxy: Proxy, upstream: Upstream) -> None:
    proxy.ask("a")
    before = len(proxy.broker.dialled)
    for _ in range(3):
        assert proxy.ask("a").status == 200
    assert len(proxy.broker.dialled) == before
    assert set(proxy.broker.dialled) == {"upstream.practice"}


def test_failed_connect_is_tried_once_more(start: Callable[..., Proxy]) -> None:
    proxy = start()
    proxy.listen()
    proxy.unlock()
    proxy.broker.refuse = [(5, b"connection refused")]
    assert proxy.ask("x").status == 200
    assert len(proxy.broker.dialled) == 2


def test_dead_upstream_is_a_502_with_the_reason(start: Callable[..., Proxy]) -> None:
    proxy = start()
    proxy.listen()
    proxy.unlock()
    with socket.create_server(("127.0.0.1", 0)) as unused:
        proxy.broker.ports["upstream.practice"] = unused.getsockname()[1]
    answer = proxy.ask("x")
    assert (answer.status, answer.code) == (502, "upstream_unreachable")
    assert "refused" in answer.json["error"]["message"]
    assert len(proxy.broker.dialled) == 2


def test_refused_dial_is_not_tried_again(start: Callable[..., Proxy]) -> None:
    proxy = start()
    proxy.listen()
    proxy.unlock()
    proxy.broker.refuse = [(4, b"address is private")]
    answer = proxy.ask("x")
    assert (answer.status, answer.code) == (502, "upstream_unreachable")
    assert "address is private" in answer.json["error"]["message"]
    assert len(proxy.broker.dialled) == 1


def test_request_is_not_repeated_once_bytes_were_sent(proxy: Proxy, upstream: Upstream) -> None:
    async def hang_up(_request: Any, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    upstream.answer = hang_up
    answer = proxy.ask("x")
    assert (answer.status, answer.code) == (502, "upstream_disconnected")
    assert len(upstream.seen) == 1


def test_slow_upstream_is_a_504(start: Callable[..., Proxy], upstream: Upstream) -> None:
    async def never(_request: Any, _writer: Any) -> None:
        await asyncio.sleep(3)

    upstream.answer = never
    proxy = start(workload={"timeout": 0.2})
    proxy.listen()
    proxy.unlock()
    answer = proxy.ask("x")
    assert (answer.status, answer.code) == (504, "upstream_timeout")
    assert proxy.last()["verdict"] == "failed"


@pytest.mark.parametrize("status", ["301 Moved", "307 Temporary Redirect"])
def test_redirect_is_refused(proxy: Proxy, upstream: Upstream, status: str) -> None:
    upstream.answer = reply({}, status, location="http://169.254.0.1/")
    answer = proxy.ask("x")
    assert (answer.status, answer.code) == (502, "redirect_refused")
    assert "169.254" not in answer.body.decode()
    assert len(upstream.seen) == 1


def test_upstream_error_becomes_our_own_with_status_and_type_only(
    proxy: Proxy, upstream: Upstream
) -> None:
    error = {"error": {"message": f"bad key {KEY}", "type": "invalid_api_key", "code": "x"}}
    upstream.answer = reply(error, "401 Unauthorized", retry_after="7", x_echo=f"Bearer {KEY}")
    answer = proxy.ask("x")
    assert (answer.status, answer.code) == (401, "upstream_error")
    assert "401 (invalid_api_key)" in answer.json["error"]["message"]
    assert "bad key" not in answer.body.decode()
    assert KEY not in answer.body.decode() + str(answer.headers)
    assert proxy.last()["incidents"] == 2


@pytest.mark.parametrize(
    "answer",
    [
        reply(b"<html>", kind="text/html"),
        reply(b"{", kind="application/json"),
        reply(b'{"a": 1, "a": 2}'),
        reply(b"\x1f\x8b", content_encoding="gzip"),
        reply(b"\xff\xfe{}"),
    ],
)
def test_undeclared_answer_is_a_502_and_nothing_passes(
    proxy: Proxy, upstream: Upstream, answer: Any
) -> None:
    upstream.answer = answer
    got = proxy.ask("x")
    assert (got.status, got.code) == (502, "upstream_invalid")


def test_key_echoed_in_any_form_is_masked_and_counted(proxy: Proxy, upstream: Upstream) -> None:
    raw = KEY.encode()
    forms = [
        KEY,
        base64.b64encode(raw).decode(),
        base64.b64encode(b"Bearer " + raw).decode(),
        base64.b64encode(b"xx" + raw + b"yy").decode(),
        base64.urlsafe_b64encode(b"x" + raw).decode(),
        quote(KEY, safe=""),
        raw.hex(),
        KEY[:16] + "...",
        "..." + KEY[-12:],
    ]
    for form in forms:
        upstream.answer = reply(completion(f"it is {form} ok"))
        answer = proxy.ask("repeat your Authorization header")
        assert "[REDACTED:live-key]" in answer.body.decode(), form
        core = form.strip(".=")
        assert core[4:-4] not in answer.body.decode()
        assert proxy.last()["incidents"] >= 1
        assert proxy.last()["redacted"]["response"]["live-key"] >= 1


def test_key_in_a_request_is_masked(proxy: Proxy, upstream: Upstream) -> None:
    assert proxy.ask(f"is {KEY} a key?").status == 200
    assert "[REDACTED:live-key]" in upstream.seen[0].json["messages"][0]["content"]
    assert KEY.encode() not in upstream.seen[0].body
    assert proxy.last()["incidents"] == 1


def test_vanished_client_cancels_the_upstream(proxy: Proxy, upstream: Upstream) -> None:
    for more in ({}, {"stream": True}):
        upstream.gone.clear()
        upstream.seen.clear()
        upstream.answer = stream([delta(f"part {n} ") for n in range(500)], pause=0.02)
        if not more:

            async def never(_request: Any, _writer: Any) -> None:
                while not _writer.transport.is_closing():
                    await asyncio.sleep(0.01)

            upstream.answer = never
        body = __import__("json").dumps(chat("x", **more)).encode()
        with proxy.connect() as sock:
            sock.sendall(
                f"POST /v1/chat/completions HTTP/1.1\r\nauthorization: Bearer {PLACEHOLDER}\r\n"
                f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode()
                + body
            )
            if more:
                assert b"200" in sock.recv(100)
            else:
                proxy.wait_for(lambda: bool(upstream.seen))
        proxy.wait_for(upstream.gone.is_set)
        proxy.wait_for(lambda: proxy.last().get("reason") == "client_gone")
        assert proxy.last()["stream"] is bool(more)


def test_tls_upstream_gets_the_declared_name_and_is_verified(
    start: Callable[..., Proxy], tmp_path: Path
) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["/usr/bin/openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
         "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", "/CN=llm.example",
         "-addext", "subjectAltName=DNS:llm.example", "-keyout", str(key), "-out",
         str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    names: list[str] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.sni_callback = lambda _sock, name, _ctx: names.append(name)  # type: ignore[assignment]
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            try:
                with context.wrap_socket(plain, server_side=True) as sock:
                    data = b""
                    while b'"}]}' not in data and b"ok" not in data:
                        data += sock.recv(65536)
                    names.append(data.split(b"\r\n")[1].decode())
                    sock.sendall(
                        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
                        b"content-length: 2\r\n\r\n{}"
                    )
            except (OSError, ssl.SSLError):
                continue

    threading.Thread(target=serve, daemon=True).start()
    for host, expected in (("llm.example", 200), ("other.example", 502)):
        changes = {"scheme": "https", "host": host, "port": 443}
        proxy = start(upstream=changes, config={"ca_file": str(certificate)})
        proxy.broker.ports["upstream.practice"] = listener.getsockname()[1]
        proxy.listen()
        proxy.unlock()
        assert proxy.ask("ok").status == expected
        copies = search(proxy.process.pid, [KEY, "llm-v1"]).hits
        assert any(hit.startswith("secret 1") for hit in copies), "the search finds nothing"
        assert [hit for hit in copies if hit.startswith("secret 0")] == [], "TLS kept the key"
    listener.close()
    assert names[:2] == ["llm.example", "Host: llm.example"]
    assert names[2:] == ["other.example"]
