"""What a request with the right token looks like to the adapter, and its answer to the client."""

from __future__ import annotations

import time

import pytest
from gateway_rig import BODY_MAX, Gateway, read_answer


def test_adapter_sees_only_what_it_should(gateway: Gateway) -> None:
    answer = gateway.ask(
        "POST", "/rest/messages?x=%2F1", "Content-Type: application/json", "Accept: text/plain",
        "Cookie: a=b", "X-Request-Id: 1111111111111111", "X-Anchorhold-Client: root",
        "X-Forwarded-For: 10.0.0.1", "Forwarded: for=x", "User-Agent: probe", "Connection: x-hop",
        "X-Hop: 1", "Proxy-Authorization: Basic x", "Accept-Encoding: gzip", "Referer: http://x/",
        f"Origin: {gateway.origin}", "Content-Length: 5", body=b"hello",
    )  # fmt: skip
    assert answer.status == 200
    seen = gateway.adapter.seen[-1]
    assert (seen.method, seen.target, seen.body) == ("POST", "/messages?x=%2F1", b"hello")
    assert sorted(seen.headers) == [
        ("accept", "text/plain"),
        ("accept-encoding", "identity"),
        ("connection", "close"),
        ("content-length", "5"),
        ("content-type", "application/json"),
        ("host", "127.0.0.1:8080"),
        ("x-anchorhold-client", "alice"),
        ("x-request-id", answer.headers["x-request-id"]),
    ]
    request = answer.headers["x-request-id"]
    assert request != "1" * 16
    assert len(request) == 16
    int(request, 16)


def test_two_records_and_their_figures(gateway: Gateway) -> None:
    answer = gateway.ask("POST", "/rest/echo", "Content-Length: 7", body=b"sealed!")
    record = gateway.record(answer)
    assert list(record) == [
        "time", "hop", "event", "request", "workload", "verdict", "rule", "method", "protocol",
        "client", "peer", "status", "bytes_in", "bytes_out", "ms",
    ]  # fmt: skip
    assert record["hop"] == "gateway"
    assert record["workload"] == "adapter.rest"
    assert record["verdict"] == "allowed"
    assert record["rule"] == {
        "file": "rest.toml", "id": "inbound", "line": 17, "digest": "ab" * 32
    }  # fmt: skip
    assert (record["bytes_in"], record["bytes_out"]) == (7, len(answer.body))
    assert (record["client"], record["method"], record["status"]) == ("alice", "POST", 200)
    assert len(gateway.records(record["request"], "admitted")) == 1
    assert "sealed!" not in gateway.log.read_text()


@pytest.mark.parametrize(
    ("path", "target"), [("/rest", "/"), ("/rest/", "/"), ("/rest?a=b", "/?a=b"),
                         ("/rest/../x", "/../x"), ("/rest/%2e%2e/x", "/%2e%2e/x")],
)  # fmt: skip
def test_targets_are_passed_as_they_are(gateway: Gateway, path: str, target: str) -> None:
    assert gateway.ask("GET", path).status == 200
    assert gateway.adapter.seen[-1].target == target


def test_adapter_headers_that_do_not_return(gateway: Gateway) -> None:
    answer = gateway.ask("GET", "/rest/chatty")
    assert answer.status == 302
    assert sorted(answer.headers) == [
        "cache-control", "connection", "content-length", "content-security-policy", "etag",
        "referrer-policy", "x-content-type-options", "x-request-id",
    ]  # fmt: skip


def test_head_and_an_empty_answer(gateway: Gateway) -> None:
    answer = gateway.ask("HEAD")
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["content-length"] == "0"


def test_chunked_body_is_streamed_and_its_framing_rewritten(gateway: Gateway) -> None:
    head = gateway.head("POST", "/rest/echo", "Transfer-Encoding: chunked")
    answer = gateway.raw(head, b"3;ext=1\r\nabc\r\n", b"2\r\nde\r\n", b"0\r\nX-Trailer: 1\r\n\r\n")
    assert answer.status == 200
    seen = gateway.adapter.seen[-1]
    assert (seen.body, seen.whole) == (b"abcde", True)
    assert seen.header("x-trailer") is None


def test_chunked_body_over_the_limit_never_completes_at_the_adapter(gateway: Gateway) -> None:
    head = gateway.head("POST", "/rest/echo", "Transfer-Encoding: chunked")
    chunk = b"4000\r\n" + b"x" * 0x4000 + b"\r\n"
    assert gateway.raw(head, *[chunk] * 4, b"0\r\n\r\n").status == 200
    assert len(gateway.adapter.seen[-1].body) == BODY_MAX
    before = len(gateway.adapter.seen)
    with gateway.connect() as sock:
        sock.sendall(head)
        gateway.wait_for(lambda: len(gateway.adapter.seen) > before)
        seen = gateway.adapter.seen[-1]
        sock.sendall(chunk * 4 + b"1\r\nx\r\n0\r\n\r\n")
        answer = read_answer(sock)
    assert (answer.status, answer.code) == (413, "body_too_large")
    assert seen.vanished.wait(5)
    assert not seen.whole
    assert gateway.record(answer)["verdict"] == "refused"


@pytest.mark.parametrize("chunk", [b"zz\r\n", b"-1\r\n", b"2\r\nabc\r\n", b"1" * 21 + b"\r\n"])
def test_broken_chunks(gateway: Gateway, chunk: bytes) -> None:
    head = gateway.head("POST", "/rest/echo", "Transfer-Encoding: chunked")
    answer = gateway.raw(head, chunk, b"0\r\n\r\n")
    assert (answer.status, answer.code) == (400, "bad_body")
    assert gateway.adapter.seen[-1].vanished.wait(5)


def test_a_second_request_on_the_connection_is_not_read(gateway: Gateway) -> None:
    answer = gateway.raw(gateway.head() + gateway.head("GET", "/rest/second"))
    assert answer.status == 200
    assert answer.headers["connection"] == "close"
    time.sleep(0.1)
    assert "/second" not in {seen.target for seen in gateway.adapter.seen}
    assert gateway.ask("GET", "/rest/second").status == 200  # positive control
    assert gateway.adapter.seen[-1].target == "/second"


def test_a_head_in_single_bytes(gateway: Gateway) -> None:
    data = gateway.head("POST", "/rest/echo", "Content-Length: 2") + b"ok"
    with gateway.connect() as sock:
        for at in range(len(data)):
            sock.sendall(data[at : at + 1])
        assert read_answer(sock).status == 200


def test_expect_continue(gateway: Gateway) -> None:
    head = gateway.head("POST", "/rest/echo", "Expect: 100-continue", "Content-Length: 2")
    with gateway.connect() as sock:
        sock.sendall(head)
        assert sock.recv(100).startswith(b"HTTP/1.1 100")
        sock.sendall(b"ok")
        assert read_answer(sock).status == 200
    refused = gateway.raw(head.replace(b"Bearer ", b"Bearer x"))
    assert refused.status == 401  # before the client sends its body


def test_answers_are_streamed(gateway: Gateway) -> None:
    with gateway.connect() as sock:
        sock.sendall(gateway.head("GET", "/rest/drip"))
        got = b""
        while b"one " not in got:
            got += sock.recv(4096)
        assert b"two " not in got  # which the adapter only sends once this has arrived
        gateway.adapter.seen[-1].arrived.set()
        while part := sock.recv(4096):
            got += part
    assert b"two " in got
    assert got.endswith(b"0\r\n\r\n")


def resident(pid: int) -> int:
    """Resident memory in KiB."""
    with open(f"/proc/{pid}/status") as status:  # noqa: PTH123  # procfs
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))


def test_a_client_that_reads_slowly_holds_the_adapter_back(gateway: Gateway) -> None:
    before = resident(gateway.process.pid)
    with gateway.connect() as sock:
        sock.sendall(gateway.head("GET", "/rest/big"))
        time.sleep(0.5)
        assert resident(gateway.process.pid) - before < 4096  # of 16 MiB that are on offer
        assert len(read_answer(sock).body) == 256 * 65536


def test_a_client_that_vanishes_cancels_the_adapter(gateway: Gateway) -> None:
    with gateway.connect() as sock:
        sock.sendall(gateway.head("GET", "/rest/vanish"))
        while b"first" not in sock.recv(4096):
            pass
        seen = gateway.adapter.seen[-1]
        assert not seen.vanished.is_set()
    assert seen.vanished.wait(5)
    request = seen.header("x-request-id")
    record = gateway.wait_for(lambda: gateway.records(request))[0]
    assert (record["verdict"], record["reason"]) == ("failed", "client_gone")


def test_a_client_that_vanishes_within_its_body(gateway: Gateway) -> None:
    before = len(gateway.adapter.seen)
    with gateway.connect() as sock:
        sock.sendall(gateway.head("POST", "/rest/echo", "Content-Length: 10") + b"half")
        gateway.wait_for(lambda: len(gateway.adapter.seen) > before)
    seen = gateway.adapter.seen[-1]
    assert seen.vanished.wait(5)
    assert not seen.whole


@pytest.mark.parametrize(
    ("path", "code"),
    [("/rest/die", "adapter_gone"), ("/rest/garbage", "adapter_bad_answer"),
     ("/rest/gzip", "adapter_bad_answer"), ("/rest/switch", "adapter_bad_answer")],
)  # fmt: skip
def test_an_adapter_that_fails(gateway: Gateway, path: str, code: str) -> None:
    answer = gateway.ask("GET", path)
    assert (answer.status, answer.code) == (502, code)
    record = gateway.record(answer)
    assert (record["verdict"], record["reason"], record["status"]) == ("failed", code, 502)


def test_a_cut_answer_is_not_passed_off_as_whole(gateway: Gateway) -> None:
    answer = gateway.ask("GET", "/rest/cut")
    assert (answer.status, answer.whole) == (200, False)
    assert gateway.record(answer)["reason"] == "adapter_gone"


def test_an_answer_before_the_body_is_passed_on(gateway: Gateway) -> None:
    answer = gateway.ask("POST", "/rest/early", f"Content-Length: {BODY_MAX}", body=b"x" * 1000)
    assert (answer.status, answer.body) == (409, b"no!")


def test_the_token_goes_nowhere(gateway: Gateway) -> None:
    token = gateway.issuer.token()
    assert gateway.ask(token=token).status == 200
    assert token not in str(gateway.adapter.seen)
    assert token not in gateway.log.read_text()
