"""What a request must be, and what becomes of it, over real sockets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from .harness import KEY, OTHER, PLACEHOLDER, Proxy, Upstream, chat, completion, reply
from .samples import SECRETS


def test_completion_carries_the_real_key_and_only_our_headers(
    proxy: Proxy, upstream: Upstream
) -> None:
    answer = proxy.request(chat("hello"), headers={"cookie": "a=b", "x-request-id": "0" * 16})
    assert answer.status == 200
    assert answer.json == completion("ok")
    assert answer.headers["x-request-id"] == "0" * 16
    (seen,) = upstream.seen
    assert seen.line == "POST /v1/chat/completions HTTP/1.1"
    assert seen.headers["authorization"] == f"Bearer {KEY}"
    assert seen.json == chat("hello")
    assert set(seen.headers) == {
        "host", "content-type", "content-length", "accept", "accept-encoding", "user-agent",
        "authorization", "x-request-id",
    }  # fmt: skip
    assert seen.headers["accept-encoding"] == "identity"
    assert PLACEHOLDER.encode() not in seen.raw
    record = proxy.last()
    assert record["request"] == "0" * 16
    assert record["verdict"] == "allowed"
    assert record["rule"] == {
        "file": "executor-main.toml", "id": "models", "line": 42, "digest": "d" * 64,
    }  # fmt: skip
    assert record["tokens"] == {"input": 3, "output": 2}
    assert record["status"] == 200 and record["stream"] is False
    assert 0 < record["admission_ms"] + record["upstream_ms"] <= record["ms"] + 0.002  # rounded
    assert list(record)[:6] == ["time", "hop", "event", "request", "workload", "verdict"]


def test_unchanged_bytes_pass_unchanged(proxy: Proxy, upstream: Upstream) -> None:
    body = b'{ "model":"llm-v1",\t"messages":[ ], "x": 1.10, "n": 1e400, "s": "\\u00e4\\/" }'
    assert proxy.request(body).status == 200
    assert upstream.seen[0].body == body


def test_models_lists_the_workloads_own_without_an_upstream(
    proxy: Proxy, upstream: Upstream
) -> None:
    answer = proxy.request(method="GET", path="/v1/models")
    assert [model["id"] for model in answer.json["data"]] == ["llm-v1", "llm-s"]
    assert not upstream.seen
    assert proxy.request(method="GET", path="/v1/models", token=OTHER).status == 403


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/chat/completions"),
        ("POST", "/v1/chat/completions/"),
        ("POST", "/v1/chat/completions?key=1"),
        ("POST", "/v1/chat%2fcompletions"),
        ("POST", "/v1/./chat/completions"),
        ("POST", "//v1/chat/completions"),
        ("POST", "/v1/realtime"),
        ("GET", "/v1/files"),
        ("POST", "/practice/chat/completions"),
        ("POST", "/other/v1/chat/completions"),
        ("DELETE", "/v1/models"),
        ("GET", "/"),
    ],
)
def test_undeclared_route_is_refused(
    proxy: Proxy, upstream: Upstream, method: str, path: str
) -> None:
    answer = proxy.request(chat("x"), method=method, path=path)
    assert (answer.status, answer.code) == (403, "route_not_allowed")
    assert not upstream.seen
    assert proxy.records("route")[-1]["verdict"] == "refused"


@pytest.mark.parametrize(
    ("token", "status"), [(None, 401), ("wrong", 403), (OTHER, 403), (PLACEHOLDER + "0", 403)]
)
def test_wrong_credential_is_refused(
    proxy: Proxy, upstream: Upstream, token: str | None, status: int
) -> None:
    answer = proxy.request(chat("x"), token=token)
    assert answer.status == status
    assert answer.code == ("credential_missing" if token is None else "credential_mismatch")
    assert not upstream.seen
    assert proxy.last()["verdict"] == "refused"


def test_placeholder_is_valid_on_its_own_socket_only(proxy: Proxy) -> None:
    assert proxy.request(chat("x"), workload="other", token=PLACEHOLDER).status == 403
    assert proxy.request(chat("x"), workload="other", token=OTHER).status == 200


@pytest.mark.parametrize("token", [PLACEHOLDER, OTHER])
def test_placeholder_elsewhere_is_refused_and_recorded(
    proxy: Proxy, upstream: Upstream, token: str
) -> None:
    escaped = "".join(f"\\u{ord(c):04x}" for c in token)
    bodies: list[Any] = [
        chat(f"my key is {token}"),
        chat("x", **{token: 1}),
        b'{"model": "llm-v1", "messages": ["' + escaped.encode() + b'"]}',
    ]
    for body in bodies:
        answer = proxy.request(body)
        assert (answer.status, answer.code) == (403, "credential_endpoint_mismatch")
    for where in ({"headers": {"x-api-key": token}}, {"path": f"/v1/chat/completions?key={token}"}):
        answer = proxy.request(chat("x"), **where)  # type: ignore[arg-type]  # either of them
        assert (answer.status, answer.code) == (403, "credential_endpoint_mismatch")
    assert proxy.request(path=f"/v1/models/{token}", method="GET").status == 403
    assert not upstream.seen
    assert proxy.last()["reason"] == "credential_endpoint_mismatch"


def test_model_not_allowed_names_the_policy_line(proxy: Proxy, upstream: Upstream) -> None:
    answer = proxy.request({**chat("x"), "model": "gpt-x"})
    assert (answer.status, answer.code) == (403, "model_not_allowed")
    assert "executor-main.toml:42" in answer.json["error"]["message"]
    assert "gpt-x" in answer.json["error"]["message"]
    assert proxy.last()["rule"]["line"] == 42
    assert not upstream.seen


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "invalid_json"),
        (b"", 400, "invalid_json"),
        (b"[]", 400, "invalid_json"),
        (b'{"model": "llm-v1"}', 400, "invalid_json"),
        (b'{"model": 1, "messages": []}', 400, "invalid_json"),
        (b'{"model": "llm-v1", "messages": [], "stream": "yes"}', 400, "invalid_json"),
        (b'{"model": "llm-v1", "model": "llm-v1", "messages": []}', 400, "invalid_json"),
        (b'{"model": "llm-v1", "messages": [{"a": 1, "a": 2}]}', 400, "invalid_json"),
        (b'{"model": "llm-v1", "messages": [], "x": NaN}', 400, "invalid_json"),
        (b'{"model": "llm-v1", "messages": [], "x": ' + b"9" * 5000 + b"}", 400, "invalid_json"),
        (b'{"model": "\xff", "messages": []}', 400, "invalid_json"),
        (b'{"messages": ' + b"[" * 70 + b"]" * 70 + b"}", 413, "body_too_deep"),
        (b'{"messages": ' + b"[" * 40_000, 413, "body_too_deep"),
        (b" " * 100_001, 413, "body_too_large"),
    ],
)
def test_bad_body_is_refused(
    proxy: Proxy, upstream: Upstream, body: bytes, status: int, code: str
) -> None:
    answer = proxy.request(body)
    assert (answer.status, answer.code) == (status, code)
    assert not upstream.seen


def test_chunked_body_over_the_limit_is_refused(proxy: Proxy) -> None:
    with proxy.connect() as sock:
        sock.sendall(
            f"POST /v1/chat/completions HTTP/1.1\r\nauthorization: Bearer {PLACEHOLDER}\r\n"
            "content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n".encode()
        )
        answer = b""
        try:
            for _ in range(200):
                sock.sendall(b"1000\r\n" + b" " * 4096 + b"\r\n")
        except ConnectionError:
            pass
        try:
            answer = sock.recv(4096)
        except ConnectionError:
            pytest.fail("closed without an answer")
    assert b" 413 " in answer.split(b"\r\n")[0]


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"content-type": "text/plain"}, "unsupported_type"),
        ({"content-type": "application/json; charset=utf-16"}, "unsupported_type"),
        ({"content-encoding": "gzip"}, "unsupported_encoding"),
        ({"content-encoding": "identity, br"}, "unsupported_encoding"),
    ],
)
def test_other_types_and_encodings_are_refused(
    proxy: Proxy, headers: dict[str, str], code: str
) -> None:
    answer = proxy.request(chat("x"), headers=headers)
    assert (answer.status, answer.code) == (415, code)
    assert proxy.request(chat("x"), headers={"content-encoding": "identity"}).status == 200


def test_head_without_end_is_cut_off(proxy: Proxy) -> None:
    with proxy.connect() as sock:
        sock.sendall(b"GET /v1/models HTTP/1.1\r\n")
        answer = b""
        try:
            for _ in range(100):
                sock.sendall(b"x-a: " + b"b" * 1000 + b"\r\n")
            answer = sock.recv(100)
        except ConnectionError:
            return
    assert b" 431 " in answer


def test_vault_locked_until_the_keys_arrive(
    start: Callable[..., Proxy], upstream: Upstream
) -> None:
    proxy = start()
    proxy.listen()
    answer = proxy.ask("x")
    assert (answer.status, answer.code) == (503, "vault_locked")
    assert not upstream.seen
    proxy.unlock({"another": KEY})
    assert proxy.ask("x").code == "credential_absent"
    proxy.unlock()
    assert proxy.ask("x").status == 200
    assert proxy.records("keys")[-1]["keys"] == 1


def test_unwritable_audit_refuses_before_anything_is_sent(
    start: Callable[..., Proxy], upstream: Upstream
) -> None:
    import os

    proxy = start(audit=os.open("/dev/full", os.O_WRONLY))
    proxy.listen()
    ours_records = proxy.records  # /dev/full keeps none, so the keys cannot be waited for
    assert ours_records() == []
    import socket

    from .harness import secret_memory

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    assert proxy.command({"op": "keys"}, theirs.fileno()) == 0
    fd = secret_memory({"practice": KEY})
    socket.send_fds(ours, [b"k"], [fd])
    os.close(fd)
    proxy.wait_for(lambda: proxy.ask("x").code != "vault_locked")
    answer = proxy.ask("x")
    assert (answer.status, answer.code) == (503, "audit_unwritable")
    assert proxy.request(method="GET", path="/v1/models").status == 503
    assert not upstream.seen


def test_only_so_many_requests_at_once(start: Callable[..., Proxy], upstream: Upstream) -> None:
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    async def slow(request: Any, writer: Any) -> None:
        await asyncio.sleep(0.5)
        await reply(completion("ok"))(request, writer)

    upstream.answer = slow
    proxy = start(workload={"concurrent": 2})
    proxy.listen()
    proxy.unlock()
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda _: proxy.ask("x"), range(3)))
    assert sorted(answer.status for answer in answers) == [200, 200, 429]
    assert proxy.ask("x").status == 200


def test_sigterm_ends_cleanly_within_two_seconds(
    start: Callable[..., Proxy], upstream: Upstream
) -> None:
    import asyncio
    import threading

    async def never(_request: Any, _writer: Any) -> None:
        await asyncio.sleep(30)

    proxy = start()
    proxy.listen()
    proxy.unlock()
    upstream.answer = never
    waiting = threading.Thread(target=lambda: proxy.ask("x"), daemon=True)
    waiting.start()
    proxy.wait_for(lambda: bool(upstream.seen))
    code, seconds = proxy.stop()
    assert code == 0
    assert seconds < 2.0
    assert proxy.close() == b""


@pytest.mark.parametrize("asked", [{"logprobs": True}, {"top_logprobs": 3}, {"logprobs": "yes"}])
def test_logprobs_are_refused_for_they_cannot_be_masked(
    proxy: Proxy, upstream: Upstream, asked: dict[str, Any]
) -> None:
    answer = proxy.ask("x", **asked)
    assert (answer.status, answer.code) == (400, "logprobs_not_allowed")
    assert not upstream.seen
    assert proxy.ask("x", logprobs=False, top_logprobs=None).status == 200


def test_logprobs_of_an_answer_are_dropped(proxy: Proxy, upstream: Upstream) -> None:
    document = completion("fine \ud800")
    secret = SECRETS["openai-key"]
    pieces = [{"token": c, "bytes": [ord(c)], "logprob": -0.1} for c in secret]
    document["choices"][0]["logprobs"] = {"content": pieces}
    upstream.answer = reply(document)
    answer = proxy.ask("x").json
    assert answer["choices"][0].pop("logprobs") is None
    document["choices"][0].pop("logprobs")
    assert answer == document, "all else is as it was"


def test_request_id_goes_to_the_upstream(proxy: Proxy, upstream: Upstream) -> None:
    given = "0123456789abcdef"
    proxy.request(chat("x"), headers={"x-request-id": given})
    assert upstream.seen[-1].headers["x-request-id"] == given
    proxy.request(chat("x"), headers={"x-request-id": "anything else"})
    assert upstream.seen[-1].headers["x-request-id"] == proxy.last()["request"] != given


@pytest.mark.parametrize("used", [True, False])
def test_lost_broker_ends_the_process_so_that_it_is_started_again(
    start: Callable[..., Proxy], used: bool
) -> None:
    proxy = start()
    proxy.listen()
    proxy.unlock()
    if used:
        assert proxy.ask("with a broker").status == 200
    assert proxy.process.poll() is None
    proxy.broker.die()
    assert proxy.process.wait(5) == 1
    assert b"broker_lost" in proxy.close()


def test_broken_configuration_stops_the_start_and_names_the_field(
    start: Callable[..., Proxy],
) -> None:
    proxy = start(workload={"body_max": "many"})
    assert proxy.process.wait(10) == 1
    assert b"workloads.executor.main.body_max" in proxy.close()
