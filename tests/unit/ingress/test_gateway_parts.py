"""Configuration, tokens, heads and frames by themselves, with hostile and random input."""

from __future__ import annotations

import asyncio
import base64
import functools
import json
from typing import Any

import h11
import jwt
import pytest
from gateway_rig import REST, Issuer, config
from hypothesis import given, settings
from hypothesis import strategies as st
from wsproto import events as ws
from wsproto.connection import Connection, ConnectionType

from proxy.errors import ConfigError
from proxy.ingress import head
from proxy.ingress.admission import Admission
from proxy.ingress.config import parse
from proxy.ingress.frames import FrameError, FrameMeter, close_frame
from proxy.ingress.refusal import Refusal
from proxy.ingress.strangers import Strangers
from proxy.ingress.token import Verifier

ISSUER = Issuer()
ORIGIN = "http://127.0.0.1:8443"


def settled(**limits: Any) -> Any:
    return parse(json.dumps(config(ISSUER, ORIGIN, **limits)).encode())


# --- configuration


def test_the_documented_configuration_is_accepted() -> None:
    parsed = settled()
    assert parsed.hosts() == {b"127.0.0.1:8443"}
    assert parsed.routes[0].host == b"127.0.0.1:8080"


def test_default_ports_are_hosts_too() -> None:
    raw = config(ISSUER, "https://chat.example")
    assert parse(json.dumps(raw).encode()).hosts() == {b"chat.example", b"chat.example:443"}


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("surprise",), 1, "surprise"),
        (("limits", "surprise"), 1, "surprise"),
        (("limits", "head_max"), "16384", "head_max"),
        (("limits", "head_max"), 1, "head_max"),
        (("limits", "connections"), 0, "connections"),
        (("origins", 0), "http://x/", "origins[0]"),
        (("origins", 0), "*", "origins[0]"),
        (("routes", 0, "target"), "workload.other:80", "routes[0].target"),
        (("routes", 0, "target"), "workload.adapter.rest:99999", "routes[0].target"),
        (("routes", 0, "target"), "upstream.practice", "routes[0].target"),
        (("routes", 0, "protocol"), "websocket", "websocket"),
        (("routes", 0, "protocol"), "a/b", "protocol"),
        (("routes", 0, "body_max"), -1, "body_max"),
        (("keys", 0, "x"), "AAAA", "k1"),
        (("keys", 0, "x"), "!" * 43, "k1"),
        (("keys",), [ISSUER.public, ISSUER.public], "k1"),
        (("issuer",), "", "issuer"),
    ],
)
def test_configuration_errors_name_the_field(path: Any, value: object, said: str) -> None:
    raw: Any = config(ISSUER, ORIGIN)
    Verifier(parse(json.dumps(raw).encode()))  # positive control
    inner = raw
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    with pytest.raises(ConfigError) as caught:
        Verifier(parse(json.dumps(raw).encode()))
    assert said in str(caught.value)


# --- tokens


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signed(header: object, claims: object, issuer: Issuer = ISSUER) -> str:
    body = ".".join(
        b64(part if isinstance(part, bytes) else json.dumps(part).encode())
        for part in (header, claims)
    )
    return f"{body}.{b64(issuer.key.sign(body.encode()))}"


GOOD = {"alg": "EdDSA", "kid": "k1", "typ": "JWT"}


def code(token: str) -> str:
    with pytest.raises(Refusal) as caught:
        Verifier(settled()).check(token.encode("latin-1"), REST)
    assert caught.value.status == 401
    return caught.value.code


def test_a_good_token() -> None:
    claims = Verifier(settled()).check(signed(GOOD, ISSUER.claims()).encode(), REST)
    assert claims.sub == "alice"


@pytest.mark.parametrize(
    "change",
    [
        {"alg": "none"}, {"alg": "HS256"}, {"alg": "eddsa"}, {"alg": "Ed25519"}, {"alg": None},
        {"kid": None}, {"kid": 1}, {"kid": ["k1"]}, {"typ": "at+jwt"}, {"typ": None},
        {"crit": ["b64"], "b64": False}, {"jwk": ISSUER.public}, {"jku": "http://x"},
        {"cty": "JWT"},
    ],
)  # fmt: skip
def test_headers_other_than_the_one(change: dict[str, Any]) -> None:
    header = {key: value for key, value in (GOOD | change).items() if value is not None}
    assert code(signed(header, ISSUER.claims())) == "token_header"


def test_an_hmac_made_with_the_public_key() -> None:
    token = jwt.encode(ISSUER.claims(), ISSUER.public["x"], "HS256", headers={"kid": "k1"})
    assert code(token) == "token_header"


def test_every_single_changed_character_is_noticed() -> None:
    token = signed(GOOD, ISSUER.claims())
    for at in range(len(token)):
        if token[at] != ".":
            changed = token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :]
            assert code(changed) in ("token_header", "unknown_key", "bad_signature")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda t: t + "=", lambda t: t + ".", lambda t: t + "\n", lambda t: " " + t,
        lambda t: t.replace(".", "..", 1), lambda t: t.rsplit(".", 1)[0], lambda t: "",
        lambda t: t.rsplit(".", 1)[0] + ".", lambda t: "\xe9" + t, lambda t: t + "A" * 5000,
    ],
)  # fmt: skip
def test_other_spellings(spoil: Any) -> None:
    assert code(spoil(signed(GOOD, ISSUER.claims()))) == "malformed_token"


def test_bits_beyond_the_signature_do_not_count_as_the_same_token() -> None:
    token = signed(GOOD, ISSUER.claims())
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    other = alphabet[alphabet.index(token[-1]) ^ 1]  # 86 characters hold four bits too many
    assert code(token[:-1] + other) == "token_header"


@pytest.mark.parametrize("claims", [b"null", b"[]", b"{}", b"\xff", b"1" * 500, b'{"sub":"a"'])
def test_claims_that_are_none(claims: bytes) -> None:
    assert code(signed(GOOD, claims)) == "token_claims"


@pytest.mark.parametrize("when", ["1e9", "true", "-1", '"5"', "99999999999999999999"])
def test_times_are_whole_numbers(when: str) -> None:
    raw = json.dumps(ISSUER.claims() | {"iat": 777}).replace("777", when).encode()
    assert code(signed(GOOD, raw)) == "token_claims"


@pytest.mark.parametrize(("now", "expected"), [(999, "token_from_future"), (2000, "token_expired")])
def test_the_moments_of_a_token(now: float, expected: str) -> None:
    token = signed(GOOD, ISSUER.claims(iat=1000, exp=2000)).encode()
    for moment in (1000, 1999.9):
        assert Verifier(settled(), lambda m=moment: m).check(token, REST)
    with pytest.raises(Refusal) as caught:
        Verifier(settled(), lambda: now).check(token, REST)
    assert caught.value.code == expected


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_random_tokens_are_refused_in_good_order(data: bytes) -> None:
    verifier = Verifier(settled())
    for token in (data, signed(GOOD, data).encode(), signed(data, ISSUER.claims()).encode()):
        with pytest.raises(Refusal):
            verifier.check(token, REST)


# --- heads

HEADS = st.lists(
    st.sampled_from(
        [b"GET", b"POST", b" ", b"/rest/", b"/", b"HTTP/1.1", b"\r\n", b"\n", b"\r", b"Host: h",
         b"Content-Length", b": ", b"5", b"Transfer-Encoding: chunked", b"\0", b"\t", b"a", b"\xff"]
    )
    | st.binary(max_size=5),
    max_size=30,
).map(b"".join)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(HEADS)
def test_random_heads_are_parsed_or_refused(data: bytes) -> None:
    connection = h11.Connection(h11.SERVER)
    try:
        parsed = head.parse(data + b"\r\n\r\n", connection)
    except Refusal as no:
        assert 400 <= no.status < 506
        return
    assert not (parsed.one(b"content-length") and parsed.one(b"transfer-encoding"))
    for name, value in parsed.headers:
        assert b"\r" not in name + value
        assert b"\n" not in name + value


@settings(max_examples=100, deadline=None)
@given(HEADS, st.lists(st.integers(1, 40), max_size=8))
def test_random_bytes_are_read_or_refused(data: bytes, cuts: list[int]) -> None:
    async def run() -> bytes:
        reader = asyncio.StreamReader()
        at = 0
        for cut in [*cuts, len(data)]:
            reader.feed_data(data[at : at + cut])
            at += cut
        reader.feed_eof()
        return await head.read(reader, 200, 5.0)

    try:
        got = asyncio.run(run())
    except Refusal as no:
        assert no.status in (400, 431)
        return
    assert got == b"" or b"\r\n\r\n" in got


# --- frames


def test_a_close_frame_is_what_others_read() -> None:
    for masked, kind in ((True, ConnectionType.SERVER), (False, ConnectionType.CLIENT)):
        wire = Connection(kind)
        wire.receive_data(close_frame(1009, "too much", masked=masked))
        event = next(iter(wire.events()))
        assert isinstance(event, ws.CloseConnection)
        assert (event.code, event.reason) == (1009, "too much")


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400), st.lists(st.integers(1, 50), max_size=10))
def test_random_frames_pass_the_same_however_they_are_cut(data: bytes, cuts: list[int]) -> None:
    def run(sizes: list[int]) -> tuple[bytes, str | None]:
        meter, passed, at = FrameMeter(masked=True, message_max=64), b"", 0
        for size in sizes:
            part, error = meter.feed(data[at : at + size])
            at += size
            passed += part
            if error is not None:
                assert isinstance(error, FrameError)
                assert error.close in (1002, 1009)
                return passed, error.code
        return passed, None

    whole = run([len(data)])
    assert run([*cuts, len(data)]) == whole
    assert run([1] * len(data)) == whole
    assert data.startswith(whole[0])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=80), st.booleans()), max_size=6))
def test_what_a_real_client_sends_passes_unchanged(messages: list[tuple[str, bool]]) -> None:
    wire = Connection(ConnectionType.CLIENT)
    sent = b""
    for text, split in messages:
        if split:
            sent += wire.send(ws.TextMessage(text, message_finished=False))
            sent += wire.send(ws.Ping(b"p"))
            sent += wire.send(ws.TextMessage(text))
        else:
            sent += wire.send(ws.TextMessage(text))
    sent += wire.send(ws.CloseConnection(1000))
    meter = FrameMeter(masked=True, message_max=1000)
    assert meter.feed(sent) == (sent, None)
    assert meter.closed
    assert meter.between_frames


# --- admission


def test_full_buckets_are_forgotten() -> None:
    clock = [0.0]
    admission = Admission(settled(client_rate=10.0).limits, lambda: clock[0])
    for number in range(5000):
        clock[0] += 0.2
        with admission.hold(f"client-{number}"):
            pass
    assert len(admission._buckets) <= 1025
    assert not admission._open


def test_strangers_give_up_places_only_where_one_address_holds_too_many() -> None:
    clock, dropped = [0.0], []
    strangers = Strangers(2, lambda: clock[0])
    drops = {name: functools.partial(dropped.append, name) for name in ("a1", "a2", "a3", "b1")}
    assert not strangers.make_room()
    for name, drop in drops.items():
        strangers.arrive(name[0], drop)
    assert not strangers.make_room(), "all of them are young"
    clock[0] = 1.0
    assert strangers.make_room() and dropped == ["a1"]
    assert not strangers.make_room(), "two are not too many"
    strangers.arrive("a", drops["a1"])
    strangers.leave("a", drops["a2"])
    strangers.leave("a", drops["a2"])
    assert not strangers.make_room() and dropped == ["a1"]
