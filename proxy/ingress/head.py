"""The head of a client's request: read with limits, parsed strictly, judged before anything else.

h11 is strict, and tolerant in a few places where RFC 9112 lets it be (bare LF, folded lines, equal
Content-Length twice, Content-Length beside Transfer-Encoding). Each of those is a known way to make
two parsers disagree, so the raw bytes are checked first.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass

import h11

from .config import Config, Route
from .refusal import Refusal

_END = b"\r\n\r\n"
_BARE_LF = re.compile(rb"(?<!\r)\n")
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n)|\n[ \t]")
_START = re.compile(rb"[A-Z]{1,16}(?: |\Z)")
_TARGET = re.compile(rb"/([^/?#]*)((?:[/?][^#]*)?)")
_HEADERS_MAX = 100
_METHODS = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE"})
_ONCE = frozenset(
    b"host origin authorization content-length transfer-encoding content-type content-encoding"
    b" expect upgrade sec-websocket-key sec-websocket-version".split()
)
# Everything else stays here: cookies, credentials, forwarding and hop-by-hop headers.
_FORWARDED = frozenset(
    b"accept accept-language content-type idempotency-key last-event-id if-none-match".split()
)


@dataclass(frozen=True, slots=True)
class Head:
    """A parsed head; header names are in lower case, `target` is the raw request target."""

    method: bytes
    target: bytes
    headers: tuple[tuple[bytes, bytes], ...]

    def one(self, name: bytes) -> bytes | None:
        """The value of a header that occurs at most once (checked for those that matter)."""
        return next((value for key, value in self.headers if key == name), None)

    def tokens(self, name: bytes) -> list[bytes]:
        """The comma-separated values of a list header, as sent, over all its lines."""
        lines = b",".join(value for key, value in self.headers if key == name)
        return [token for part in lines.split(b",") if (token := part.strip())]

    def forwarded(self) -> list[tuple[bytes, bytes]]:
        """The client's headers that an adapter may see."""
        return [(name, value) for name, value in self.headers if name in _FORWARDED]


async def read(reader: asyncio.StreamReader, limit: int, seconds: float) -> bytes:
    """Read until the head is whole; returns all bytes so far (a body may have begun).

    Empty when the client left, or stayed silent for `seconds`, without sending a byte. Refusals:
    431 above `limit` bytes, 408 after `seconds`, 400 for bytes that cannot begin a request.
    """
    data = bytearray()
    try:
        async with asyncio.timeout(seconds):
            while part := await reader.read(4096):
                seen = len(data)
                data += part
                end = data.find(_END, max(0, seen - 3))
                if (end if end >= 0 else len(data)) > limit:
                    raise Refusal(431, "head_too_large", f"A head has at most {limit} bytes.")
                if not _START.match(data):
                    raise _bad("not_http", "This port speaks HTTP/1.1 without TLS.")
                if end >= 0:
                    return bytes(data)
                if _BARE_LF.search(data, max(0, seen - 1)):
                    raise _bad("bare_lf", "Lines of a head end with CR LF.")
    except TimeoutError:
        if data:
            raise Refusal(408, "head_timeout", f"Send the head within {seconds:g} s.") from None
    if data:
        raise _bad("truncated_head", "The head ended early; send it whole.")
    return b""


def parse(data: bytes, http: h11.Connection) -> Head:
    """Check the raw head at the start of `data`, feed all of it to `http`, return the head.

    Raises Refusal (400, 405, 415, 417, 505) for every shape two parsers might read differently.
    """
    raw = data[: data.index(_END)]
    if _BARE_LF.search(raw):
        raise _bad("bare_lf", "Lines of a head end with CR LF.")
    if _CONTROL.search(raw):
        raise _bad("bad_head", "A head holds no control characters and no folded lines.")
    if raw.count(b"\r\n") > _HEADERS_MAX:
        raise Refusal(431, "too_many_headers", f"A head has at most {_HEADERS_MAX} headers.")
    http.receive_data(data)
    try:
        event = http.next_event()
    except h11.RemoteProtocolError:
        # h11's own text may quote header values, so it is not passed on.
        raise _bad("bad_head", "The head is not HTTP/1.1 as RFC 9112 defines it.") from None
    if not isinstance(event, h11.Request):
        raise _bad("bad_head", "The head is not HTTP/1.1 as RFC 9112 defines it.")
    if event.http_version != b"1.1":
        raise Refusal(505, "http_version", "This gateway speaks HTTP/1.1 only.")
    names = [name for name, _ in event.headers]
    if raw.lower().count(b"\r\ncontent-length:") > 1:  # h11 merges equal ones
        raise _bad("duplicate_header", "The header content-length may occur once.")
    for name in names:
        if name in _ONCE and names.count(name) > 1:
            raise _bad("duplicate_header", f"The header {name.decode()} may occur once.")
    for name, value in event.headers:
        if not value.isascii() and (name in _FORWARDED or name == b"sec-websocket-protocol"):
            raise _bad("header_value", f"The header {name.decode()} holds bytes outside ASCII.")
    head = Head(event.method, event.target, tuple(event.headers))
    _framing(head, raw)
    return head


def _framing(head: Head, raw: bytes) -> None:
    if head.method not in _METHODS:
        allowed = b", ".join(sorted(_METHODS)).decode()
        raise Refusal(405, "method_not_allowed", f"Allowed methods: {allowed}.")
    coding, length = head.one(b"transfer-encoding"), head.one(b"content-length")
    if coding is not None and length is not None:
        raise _bad("ambiguous_length", "Send either Content-Length or Transfer-Encoding.")
    # h11 takes "5, 5" as 5.
    if re.search(rb"\r\ncontent-length:[^\r]*,", raw, re.IGNORECASE):
        raise _bad("bad_head", "Content-Length is one number.")
    if head.one(b"content-encoding") not in (None, b"identity"):
        raise Refusal(415, "content_encoding", "Send the body without Content-Encoding.")
    expect = head.one(b"expect")
    if expect is not None and expect.lower() != b"100-continue":
        raise Refusal(417, "expectation", "Only `Expect: 100-continue` is understood.")


def where_from(head: Head, config: Config, hosts: frozenset[bytes]) -> None:
    """Refuse a Host that is not ours (DNS rebinding, 421) and a foreign Origin (403).

    A browser always sends Origin with a WebSocket or a cross-site write. Its absence therefore
    means another kind of client, which the token alone has to convince.
    """
    host = head.one(b"host")
    if host is None or host.lower() not in hosts:
        raise Refusal(
            421,
            "host_not_served",
            "Use one of the gateway's origins as the address, see [gateway].",
        )
    origin = head.one(b"origin")
    if origin is not None and origin.decode("latin-1") not in config.origins:
        raise Refusal(
            403,
            "origin_not_allowed",
            "Pages of this origin are not allowed; see [gateway] origins.",
        )


def route(head: Head, routes: dict[bytes, Route]) -> tuple[Route, bytes]:
    """Return the route of ``/<protocol>/<rest>`` and the target the adapter sees, ``/<rest>``.

    The raw bytes are compared, nothing is decoded or normalised. Refusals: 400 for another form of
    target, 404 for an unknown protocol.
    """
    match = _TARGET.fullmatch(head.target)
    if match is None:
        raise _bad("bad_target", "The request target is a path: /<protocol>/<rest>.")
    found = routes.get(match[1])
    if found is None:
        name = match[1][:64].decode("ascii", "replace")
        raise Refusal(404, "unsupported_protocol", f"unsupported protocol: {name}")
    rest = match[2]
    if rest.startswith(b"//"):  # an adapter might read it as //host/path
        raise _bad("bad_target", "The path after the protocol begins with one slash.")
    return found, rest if rest.startswith(b"/") else b"/" + rest


def _bad(code: str, message: str) -> Refusal:
    return Refusal(400, code, message)
