"""Every request that must not reach an adapter, each beside the same request done right."""

from __future__ import annotations

import pytest
from gateway_rig import BODY_MAX, REST, SOCKET, Answer, Gateway, Issuer


def refused(gateway: Gateway, answer: Answer, status: int, code: str) -> None:
    """The client is told, the audit says the same, and nothing was dialled meanwhile."""
    assert (answer.status, answer.code) == (status, code)
    record = gateway.record(answer)
    assert record["verdict"] == "refused"
    assert (record["reason"], record["status"]) == (code, status)
    assert gateway.records(answer.headers["x-request-id"], "admitted") == []


@pytest.fixture(autouse=True)
def adapter_untouched(gateway: Gateway):
    """No refusal in this module may open a connection to the adapter; the right request does."""
    before = gateway.adapter.connections
    yield
    assert gateway.adapter.connections == before
    assert gateway.ask().status == 200  # positive control
    assert gateway.adapter.connections == before + 1


def test_unknown_protocol(gateway: Gateway) -> None:
    answer = gateway.ask("GET", "/irc/hello")
    refused(gateway, answer, 404, "unsupported_protocol")
    assert b"unsupported protocol: irc" in answer.body


@pytest.mark.parametrize("path", ["/REST/echo", "/re%73t/echo", "/%72est", "/rest%2fecho", "/"])
def test_protocol_names_are_compared_byte_by_byte(gateway: Gateway, path: str) -> None:
    refused(gateway, gateway.ask("GET", path), 404, "unsupported_protocol")


def test_no_token(gateway: Gateway) -> None:
    answer = gateway.ask(token=None)
    refused(gateway, answer, 401, "missing_token")
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("value", ["Basic YTpi", "Bearer", "bearertoken", "Token x"])
def test_another_scheme(gateway: Gateway, value: str) -> None:
    answer = gateway.ask("GET", "/rest/echo", f"Authorization: {value}", token=None)
    assert answer.status == 401
    refused(gateway, answer, 401, answer.code)


def test_token_in_the_query_or_a_cookie_is_no_token(gateway: Gateway) -> None:
    token = gateway.issuer.token()
    answer = gateway.ask(
        "GET", f"/rest/echo?access_token={token}", f"Cookie: token={token}", token=None
    )
    refused(gateway, answer, 401, "missing_token")


def test_token_for_another_workload(gateway: Gateway) -> None:
    refused(gateway, gateway.ask(token=gateway.issuer.token(SOCKET)), 403, "wrong_workload")
    assert gateway.ask("GET", "/websocket/", token=gateway.issuer.token(SOCKET)).status == 200
    gateway.adapter.connections -= 1


@pytest.mark.parametrize(
    ("claims", "code"),
    [
        ({"exp": 1_000_000_000, "iat": 999_999_000}, "token_expired"),
        ({"iat": 9_000_000_000, "exp": 9_000_000_600}, "token_from_future"),
        ({"iss": "someone"}, "wrong_issuer"),
        ({"iat": 0, "exp": 9_000_000_000}, "token_lifetime"),
        ({"aud": [REST]}, "token_claims"),
        ({"aud": [REST, SOCKET]}, "token_claims"),
        ({"sub": "a\r\nx: y"}, "token_claims"),
        ({"sub": "é"}, "token_claims"),
        ({"sub": ""}, "token_claims"),
        ({"sub": "a" * 65}, "token_claims"),
        ({"sub": None}, "token_claims"),
        ({"exp": None}, "token_claims"),
        ({"iat": None}, "token_claims"),
        ({"jti": None}, "token_claims"),
        ({"aud": None}, "token_claims"),
        ({"iss": None}, "token_claims"),
        ({"exp": 9e9}, "token_claims"),
        ({"admin": True}, "token_claims"),
    ],
)
def test_claims(gateway: Gateway, claims: dict, code: str) -> None:
    refused(gateway, gateway.ask(token=gateway.issuer.token(**claims)), 401, code)


def test_a_stranger_with_a_known_key_id(gateway: Gateway) -> None:
    refused(gateway, gateway.ask(token=Issuer().token()), 401, "bad_signature")


def test_a_key_that_is_not_known(gateway: Gateway) -> None:
    refused(gateway, gateway.ask(token=Issuer("other").token()), 401, "unknown_key")


@pytest.mark.parametrize(
    ("host", "status"), [("evil.test", 421), ("127.0.0.1", 421), ("localhost:1", 421)]
)
def test_dns_rebinding(gateway: Gateway, host: str, status: int) -> None:
    refused(gateway, gateway.ask(host=host), status, "host_not_served")


def test_two_hosts(gateway: Gateway) -> None:
    answer = gateway.ask("GET", "/rest/echo", "Host: evil.test")
    refused(gateway, answer, 400, answer.code)
    assert answer.code in ("bad_head", "duplicate_header")


def test_no_host(gateway: Gateway) -> None:
    refused(gateway, gateway.ask(host=None), 400, "bad_head")


@pytest.mark.parametrize("origin", ["http://evil.test", "null", "", "http://127.0.0.1"])
def test_foreign_origin(gateway: Gateway, origin: str) -> None:
    answer = gateway.ask("GET", "/rest/echo", f"Origin: {origin}")
    refused(gateway, answer, 403, "origin_not_allowed")


def test_own_origin_passes(gateway: Gateway) -> None:
    assert gateway.ask("GET", "/rest/echo", f"Origin: {gateway.origin}").status == 200
    gateway.adapter.connections -= 1


def test_announced_body_over_the_limit(gateway: Gateway) -> None:
    answer = gateway.ask("POST", "/rest/echo", f"Content-Length: {BODY_MAX + 1}", body=b"x")
    refused(gateway, answer, 413, "body_too_large")
    assert b"rest.toml:17" in answer.body
    assert gateway.record(answer)["rule"]["line"] == 17


def test_announced_body_over_the_limit_is_not_drowned_by_a_reset(gateway: Gateway) -> None:
    size = 300_000
    answer = gateway.ask("POST", "/rest/echo", f"Content-Length: {size}", body=b"x" * size)
    refused(gateway, answer, 413, "body_too_large")


def test_head_over_the_limit(gateway: Gateway) -> None:
    answer = gateway.ask("GET", "/rest/echo", "X-Pad: " + "a" * 9000)
    refused(gateway, answer, 431, "head_too_large")
    answer = gateway.ask("GET", "/rest/echo", *[f"A{n}: b" for n in range(120)])
    refused(gateway, answer, 431, "too_many_headers")


@pytest.mark.parametrize(
    ("extra", "code"),
    [
        (("Content-Length: 5", "Transfer-Encoding: chunked"), "ambiguous_length"),
        (("Content-Length: 5", "Content-Length: 5"), "duplicate_header"),
        (("Content-Length: 5", "Content-Length: 6"), "bad_head"),
        (("Content-Length: 5, 5",), "bad_head"),
        (("Content-Length: +5",), "bad_head"),
        (("Content-Length: 0x5",), "bad_head"),
        (("Content-Length : 5",), "bad_head"),
        (("Transfer-Encoding: gzip, chunked",), "bad_head"),
        (("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"), "bad_head"),
        (("Transfer-Encoding: xchunked",), "bad_head"),
        (("Transfer-Encoding:\x0bchunked",), "bad_head"),
        (("X-Fold: a\r\n b",), "bad_head"),
        (("X-Fold: a\r\n\tContent-Length: 5",), "bad_head"),
        (("X-Lf: a\nContent-Length: 5",), "bare_lf"),
        (("X-Cr: a\rContent-Length: 5",), "bad_head"),
        (("X-Nul: a\0",), "bad_head"),
        (("No colon",), "bad_head"),
        ((": no name",), "bad_head"),
        (("Content-Type: a/b", "Content-Type: c/d"), "duplicate_header"),
        (("Accept: caf\xe9",), "header_value"),
        (("Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings"), "bad_upgrade"),
    ],
)
def test_request_smuggling(gateway: Gateway, extra: tuple[str, ...], code: str) -> None:
    refused(gateway, gateway.ask("POST", "/rest/echo", *extra, body=b"0\r\n\r\n"), 400, code)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "http://127.0.0.1/rest/echo", 400, "bad_target"),
        ("GET", "*", 400, "bad_target"),
        ("GET", "rest/echo", 400, "bad_target"),
        ("GET", "/rest//evil.test/x", 400, "bad_target"),
        ("GET", "/rest/a#b", 400, "bad_target"),
        ("CONNECT", "127.0.0.1:80", 405, "method_not_allowed"),
        ("TRACE", "/rest/echo", 405, "method_not_allowed"),
        ("OPTIONS", "/rest/echo", 405, "method_not_allowed"),
        ("BREW", "/rest/echo", 405, "method_not_allowed"),
        ("get", "/rest/echo", 400, "not_http"),
    ],
)
def test_methods_and_targets(
    gateway: Gateway, method: str, path: str, status: int, code: str
) -> None:
    refused(gateway, gateway.ask(method, path), status, code)


def test_versions(gateway: Gateway) -> None:
    refused(gateway, gateway.ask(version="1.0"), 505, "http_version")
    refused(gateway, gateway.raw(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), 505, "http_version")


@pytest.mark.parametrize("data", [b"\x16\x03\x01\x02\x00\x01\x00\x01", b"\r\n\r\n", b" GET / "])
def test_bytes_that_are_not_http(gateway: Gateway, data: bytes) -> None:
    refused(gateway, gateway.raw(data), 400, "not_http")


def test_encoded_bodies_and_expectations(gateway: Gateway) -> None:
    answer = gateway.ask("POST", "/rest/echo", "Content-Encoding: gzip", "Content-Length: 1")
    refused(gateway, answer, 415, "content_encoding")
    refused(gateway, gateway.ask("GET", "/rest/echo", "Expect: 200-ok"), 417, "expectation")


def test_a_refused_head_request_gets_no_body(gateway: Gateway) -> None:
    answer = gateway.ask("HEAD", token=None)
    assert (answer.status, answer.body) == (401, b"")


def test_records_hold_no_token(gateway: Gateway) -> None:
    token = gateway.issuer.token(iss="someone")
    answer = gateway.ask(token=token)
    gateway.record(answer)
    log = gateway.log.read_text()
    assert all(part not in log for part in token.split("."))
    assert token.encode() not in answer.body
