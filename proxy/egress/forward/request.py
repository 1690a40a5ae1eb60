"""One request with an absolute URI, opened: checked, masked, sent on over TLS, and back again."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import h11
from wsproto import ConnectionType

from proxy.egress.errors import Refusal, vault_locked
from proxy.egress.redaction.stream import Channel
from proxy.egress.redaction.text import Masker

from . import body as bodies
from .destination import CREDENTIAL
from .keyed import key_of, stand_in, written
from .opaque import Opaque
from .peer import next_event
from .target import Target, parse
from .websocket import Side, WebSocketRefused, accepts, relay, valid_key

if TYPE_CHECKING:
    from .connection import Call, Forward

BODY_TIME, OPENING_TIME, ANSWER_TIME = 30.0, 15.0, 120.0
RESPONSE_MAX = 16 * 1024 * 1024
_MARK = "anchorhold-placeholder-"
# What belongs to one connection (RFC 9110, section 7.6.1), what is ours to say, and who asks.
_NOT_ON = frozenset(
    b"connection keep-alive proxy-connection te trailer transfer-encoding upgrade host via"
    b" proxy-authorization proxy-authenticate content-length accept-encoding expect forwarded"
    b" x-forwarded-for x-forwarded-host x-forwarded-proto x-real-ip x-request-id"
    b" sec-websocket-extensions".split()
)
# A changed body has another length, digest and tag; other ways to the same service are not ours.
_NOT_BACK = _NOT_ON | frozenset(b"content-encoding etag digest content-md5 alt-svc".split())
Headers = list[tuple[bytes, bytes]]


class Exchange:
    """One request of a workload and its answer."""

    def __init__(
        self,
        forward: Forward,
        call: Call,
        request: h11.Request,
        client: h11.Connection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._forward, self._call, self._request = forward, call, request
        self._client, self._reader, self._writer = client, reader, writer
        services = forward.services
        treatment = services.treatments[forward.workload.id].of("standard")
        call.outgoing = self._out = Masker(services.scanner, services.guard, treatment, sent=True)
        call.incoming = self._in = Masker(services.scanner, services.guard, treatment)
        self._stand_in = stand_in()  # for the key

    async def run(self) -> None:
        """Answer the request. Raises Refusal before the answer has begun, OSError after."""
        call, forward = self._call, self._forward
        target = parse(self._request.target)
        call.host, call.port = target.host, target.port
        method = self._request.method.decode("ascii")
        placeholder = forward.workload.placeholder
        call.rule = await forward.permitted(
            call, lambda rule: rule.allows(method, target.path, placeholder)
        )
        switching = self._switching()
        headers = self._headers(target)
        path = self._path(target)
        body = await self._body()
        if forward.services.ring.locked and call.rule.credential:
            raise vault_locked(forward.services.ring.why_locked)
        forward.record(call, "admission", "allowed", None)
        sock = await forward.dial(call)
        if switching:
            await self._switch(path, headers, sock, target)
            return
        try:
            async with asyncio.timeout(ANSWER_TIME):
                reader, writer = await self._connected(sock, target)
                try:
                    await self._answer(method, path, headers, body, target, reader, writer)
                finally:
                    writer.close()
        except TimeoutError:
            raise Refusal("upstream_timeout", "The host did not answer in time.") from None
        except (OSError, h11.RemoteProtocolError) as error:
            # Neither message nor cause: both may quote what was sent.
            kind = type(error).__name__
            raise Refusal("upstream_disconnected", f"The host broke off ({kind}).") from None

    def _switching(self) -> bool:
        """Whether a WebSocket is asked for. Raises Refusal where none may be, or it is odd."""
        head = dict(self._request.headers)
        if b"upgrade" not in head:
            return False
        rule = self._call.rule
        if rule is None or not rule.websocket or head[b"upgrade"].lower() != b"websocket":
            raise Refusal("upgrade_refused", "No other protocol is spoken here.", by_rule=True)
        key, version = head.get(b"sec-websocket-key", b""), head.get(b"sec-websocket-version")
        if self._request.method != b"GET" or version != b"13" or not valid_key(key):
            raise Refusal("proxy_request_invalid", "The WebSocket's opening is not RFC 6455's.")
        return True

    async def _switch(self, path: bytes, headers: Headers, sock: Any, target: Target) -> None:
        """Open the WebSocket on both sides and carry its messages until it is closed."""
        try:
            async with asyncio.timeout(OPENING_TIME):
                reader, writer = await self._connected(sock, target)
        except (OSError, TimeoutError) as error:
            raise Refusal("upstream_disconnected", f"{type(error).__name__}.") from None
        try:
            early = await self._opened(path, headers, reader, writer)
            client = Side(
                self._reader, self._writer, ConnectionType.SERVER, self._client.trailing_data[0]
            )
            server = Side(reader, writer, ConnectionType.CLIENT, early)
            await relay(client, server, (self._out, self._in), self._count)
        except WebSocketRefused as error:
            self._done("refused", str(error))
            raise
        finally:
            writer.close()
        self._done()

    async def _opened(
        self,
        path: bytes,
        headers: Headers,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bytes:
        """The opening handshakes; what the host sent right behind its own."""
        server = h11.Connection(h11.CLIENT)
        opening = h11.Request(method="GET", target=path, headers=headers), h11.EndOfMessage()
        try:
            with written(server, writer, opening, self._stand_in, self._key):
                async with asyncio.timeout(OPENING_TIME):
                    await writer.drain()
                    answer = await next_event(server, reader)
        except (OSError, h11.RemoteProtocolError) as error:
            raise Refusal("upstream_disconnected", f"{type(error).__name__}.") from None
        given = dict(answer.headers) if isinstance(answer, h11.InformationalResponse) else {}
        key = dict(self._request.headers)[b"sec-websocket-key"]
        right = (
            given.get(b"upgrade", b"").lower() == b"websocket"
            and accepts(key, given.get(b"sec-websocket-accept", b""))
            and b"sec-websocket-extensions" not in given
        )
        if not right or answer.status_code != 101:
            raise Refusal("upstream_invalid", "The host did not open a WebSocket.")
        back = [(b"upgrade", b"websocket"), (b"connection", b"upgrade")]
        for name in (b"sec-websocket-accept", b"sec-websocket-protocol"):
            if name in given:
                back.append((name, self._in.text(given[name].decode("latin-1")).encode("latin-1")))
        await self._send(h11.InformationalResponse(status_code=101, headers=back))
        self._call.status = 101
        return bytes(server.trailing_data[0])

    def _count(self, sent: int, received: int) -> None:
        self._call.sent += sent
        self._call.received += received

    async def _connected(self, sock: Any, target: Target) -> Any:
        if not target.tls:
            return await asyncio.open_connection(sock=sock)
        return await asyncio.open_connection(
            sock=sock, ssl=self._forward.tls, server_hostname=target.host
        )

    def _headers(self, target: Target) -> Headers:
        """The headers to send: those that pass, scanned; then ours."""
        rule, named = self._call.rule, set()
        assert rule is not None  # noqa: S101 - permitted() gave it
        given = list(self._request.headers)
        for name, value in given:
            if name == b"connection":
                named |= {word.strip().lower() for word in value.split(b",")}
        names = {name for name, _ in given}
        if b"content-length" in names and b"transfer-encoding" in names:
            raise Refusal("proxy_request_invalid", "The body has two lengths.")
        passed: Headers = [(b"host", target.authority.encode("ascii"))]
        own = rule.header.encode("ascii") if rule.credential else b""
        for name, value in given:
            if name == own or name in _NOT_ON or name in named:
                continue
            text = value.decode("latin-1")
            if _MARK in text and self._placeholder_in(text):
                raise Refusal("credential_mismatch", "A placeholder was found in a header.")
            if self._out.text(text, f"{name.decode('ascii')}: ") != text:
                raise Refusal("secret_in_head", "A header holds a value that must be masked.")
            passed.append((name, value))
        if b"upgrade" in names:
            passed += [(b"upgrade", b"websocket"), (b"connection", b"upgrade")]
        else:
            passed += [(b"accept-encoding", b"identity"), (b"connection", b"close")]
        if rule.credential and CREDENTIAL not in rule.path:
            self._key()  # absent: refused before a connection is made
            passed.append((own, (rule.prefix + self._stand_in).encode("ascii")))
        return passed

    def _path(self, target: Target) -> bytes:
        """Path and query to send: scanned, with the key in the place that the rule names."""
        rule, placeholder = self._call.rule, self._forward.workload.placeholder
        assert rule is not None  # noqa: S101 - permitted() gave it
        path, keyed = target.path, rule.credential and CREDENTIAL in rule.path
        plain = path.replace(placeholder, "", 1) if keyed else path
        query = target.query
        if self._placeholder_in(f"{unquote(plain)} {unquote(query)}"):
            raise Refusal("credential_mismatch", "A placeholder was found in the address.")
        if self._out.text(unquote(plain)) != unquote(plain) or (
            query and bodies.masked_form(query, self._out) is not query
        ):
            raise Refusal("secret_in_head", "The address holds a value that must be masked.")
        if keyed and rule.credential:
            self._key()
            path = path.replace(placeholder, self._stand_in, 1)
        return (f"{path}?{query}" if query else path).encode("ascii")

    def _placeholder_in(self, text: str) -> bool:
        return any(mark in text for mark in self._forward.services.placeholders)

    def _key(self) -> memoryview:
        rule = self._call.rule
        assert rule is not None and rule.credential  # noqa: S101 - else nothing stands in for it
        return key_of(self._forward.services.ring, rule.credential)

    async def _body(self) -> bytes:
        """The whole body, masked."""
        most, data = self._forward.workload.body_max, bytearray()
        head = dict(self._request.headers)
        if head.get(b"content-encoding", b"identity").lower() != b"identity":
            raise Refusal("unsupported_encoding", "The body is compressed.")
        if self._client.they_are_waiting_for_100_continue:
            self._writer.write(
                self._client.send(h11.InformationalResponse(status_code=100, headers=[])) or b""
            )
        try:
            async with asyncio.timeout(BODY_TIME):
                while not isinstance(
                    event := await next_event(self._client, self._reader), h11.EndOfMessage
                ):
                    if not isinstance(event, h11.Data):
                        raise ConnectionError("the client is gone")
                    data += event.data
                    if len(data) > most:
                        raise Refusal("body_too_large", f"The body is larger than {most} bytes.")
        except TimeoutError:
            raise Refusal("body_slow", f"The body took longer than {BODY_TIME:g} s.") from None
        except h11.RemoteProtocolError:
            raise Refusal("proxy_request_invalid", "The body is not HTTP/1.1.") from None
        kind = bodies.media_type(head.get(b"content-type", b"").decode("latin-1"))
        if self._placeholder_in(data.decode("latin-1")):
            raise Refusal("credential_mismatch", "A placeholder was found in the body.")
        self._call.sent = len(data)
        return bodies.masked_request(bytes(data), kind, self._out)

    async def _answer(
        self,
        method: str,
        path: bytes,
        headers: Headers,
        body: bytes,
        target: Target,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        """Send the request and pass its answer on."""
        server = h11.Connection(h11.CLIENT)
        if body or method in ("POST", "PUT", "PATCH"):
            headers = [*headers, (b"content-length", str(len(body)).encode("ascii"))]
        request = h11.Request(method=method, target=path, headers=headers)
        events = request, h11.Data(data=body), h11.EndOfMessage()
        with written(server, writer, events, self._stand_in, self._key):
            await writer.drain()
            while not isinstance(response := await next_event(server, reader), h11.Response):
                if not isinstance(response, h11.InformationalResponse):
                    raise ConnectionError("no response")
        await self._pass_back(target, response, server, reader)

    async def _pass_back(
        self,
        target: Target,
        response: h11.Response,
        server: h11.Connection,
        reader: asyncio.StreamReader,
    ) -> None:
        head = {name: value.decode("latin-1") for name, value in response.headers}
        if head.get(b"content-encoding", "identity").lower() != "identity":
            raise Refusal("upstream_invalid", "The host compressed what it must not.")
        if 300 <= response.status_code < 400 and b"location" in head:
            _check_redirect(target, head[b"location"])
        headers = [
            (name, self._in.text(value.decode("latin-1")).encode("latin-1", "replace"))
            for name, value in response.headers
            if name not in _NOT_BACK
        ]
        kind = bodies.media_type(head.get(b"content-type", "text/plain"))
        self._call.status = response.status_code
        pieces = _pieces(server, reader)
        if bodies.is_json(kind):
            await self._whole(response.status_code, headers, pieces)
        else:
            await self._stream(response.status_code, headers, pieces, text=bodies.is_text(kind))

    async def _whole(self, status: int, headers: Headers, pieces: Any) -> None:
        data = bytearray()
        async for piece in pieces:
            data += piece
            if len(data) > RESPONSE_MAX:
                raise Refusal("upstream_invalid", f"The host sent over {RESPONSE_MAX} bytes.")
        try:
            body = bodies.masked_request(bytes(data), "application/json", self._in)
        except Refusal:
            raise Refusal("upstream_invalid", "The host sent invalid JSON.") from None
        headers = [*headers, (b"content-length", str(len(body)).encode("ascii"))]
        await self._send(h11.Response(status_code=status, headers=headers, reason=b""))
        self._call.received = len(body)
        self._done()
        await self._send(h11.Data(data=body), h11.EndOfMessage())

    async def _stream(self, status: int, headers: Headers, pieces: Any, *, text: bool) -> None:
        """Pass on text as it comes, masked; and what is no text, if no key in use is in it."""
        channel = Channel(self._in, self._forward.services.hold) if text else Opaque(self._in)
        coding = "utf-8" if text else "latin-1"
        decoder = codecs.getincrementaldecoder(coding)("replace")
        await self._send(h11.Response(status_code=status, headers=headers, reason=b""))
        total = 0
        try:
            async for piece in pieces:
                total += len(piece)
                if total > RESPONSE_MAX:
                    raise ConnectionError("the host sends without end")
                data = channel.feed(decoder.decode(piece)).encode(coding, "surrogatepass")
                self._call.received += len(data)
                if data:
                    await self._send(h11.Data(data=data))
            rest = channel.flush().encode(coding, "surrogatepass")
        except BaseException:
            channel.drop()
            raise
        self._call.received += len(rest)
        self._done()
        await self._send(h11.Data(data=rest), h11.EndOfMessage())

    def _done(self, verdict: str = "allowed", reason: str | None = None) -> None:
        """The outcome is on record before the last byte goes out."""
        self._call.ended = True
        self._forward.record(self._call, "completion", verdict, reason)

    async def _send(self, *events: Any) -> None:
        for event in events:
            self._writer.write(self._client.send(event) or b"")
        await self._writer.drain()


async def _pieces(server: h11.Connection, reader: asyncio.StreamReader) -> Any:
    while not isinstance(event := await next_event(server, reader), h11.EndOfMessage):
        if not isinstance(event, h11.Data):
            raise ConnectionError("the host broke off")
        yield bytes(event.data)


def _check_redirect(target: Target, location: str) -> None:
    """A redirect stays at its host and port; elsewhere it would carry what was sent to it."""
    with contextlib.suppress(ValueError):
        there = urlsplit(location)
        usual = {"https": 443, "http": 80}.get(there.scheme or ("https" if target.tls else "http"))
        if not there.scheme and not there.netloc and not location.startswith(("//", "\\", "/\\")):
            return
        if there.hostname == target.host and (there.port or usual) == target.port:
            return
    raise Refusal("redirect_refused", "The host redirects elsewhere.")
