"""What goes back to the workload: JSON, a stream, or a refusal; masked, with our own headers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from typing import TYPE_CHECKING, Any

import aiohttp
from starlette.types import Receive, Send

from .config import Upstream
from .errors import Refusal
from .redaction.actions import Blocked
from .redaction.json_walk import JsonInvalid, parse
from .redaction.scan import ScanFailed
from .redaction.text import Masker
from .sse import PLACES, EventReader, StreamInvalid, StreamMasker
from .upstream import broken

if TYPE_CHECKING:
    from .exchange import Exchange

RESPONSE_MAX = 16 * 1024 * 1024
STREAM_MAX = 64 * 1024 * 1024
STREAM_TIMES = 10  # a stream may last this many of the workload's timeouts
_ERROR_READ = 64 * 1024
_DRAIN_MAX, _DRAIN_TIME = 1024 * 1024, 1.0
_BACK = re.compile(r"retry-after|x-ratelimit-[a-z-]{1,40}|openai-processing-ms")
_TYPE = re.compile(r"[a-z_]{1,48}")


async def relay(
    exchange: Exchange,
    masker: Masker,
    upstream: Upstream,
    response: aiohttp.ClientResponse,
    send: Send,
) -> None:
    """Answer with the upstream's response. Raises Refusal, StreamInvalid, ScanFailed."""
    if 300 <= response.status < 400:
        raise Refusal("redirect_refused", f"{upstream.name} answered with a redirect.")
    headers = _headers(response, masker)
    if response.status >= 400 or response.status < 200:
        await _refuse(upstream, response, masker)
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Refusal("upstream_invalid", f"{upstream.name} compressed what it must not.")
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    exchange.status = response.status
    headers.append((b"x-request-id", exchange.id.encode("ascii")))
    try:
        # The type decides, not what was asked for: no stream slips through as JSON.
        if kind == "text/event-stream":
            async with asyncio.timeout(exchange.workload.timeout * STREAM_TIMES):
                await _stream(exchange, masker, upstream, response, headers, send)
        elif kind == "application/json":
            async with asyncio.timeout(exchange.workload.timeout):
                body = await _json(exchange, upstream, response, masker)
            exchange.finish()
            await _send(send, response.status, headers, b"application/json", body)
        else:
            raise Refusal("upstream_invalid", f"{upstream.name} sent neither JSON nor a stream.")
    except (aiohttp.ClientError, OSError) as error:
        raise broken(upstream, error) from None


async def send_refusal(
    send: Send, refusal: Refusal, request: str, unread: Receive | None = None
) -> None:
    """Answer with an error. `unread` is where the rest of the request's body still comes from.

    It is read for a moment and thrown away: closing a socket with unread data resets the
    connection, and the client might never see the answer (RFC 9112, section 9.6).
    """
    if unread is not None:
        await _drain(unread)
    headers = [(b"x-request-id", request.encode("ascii"))]
    if refusal.code in ("body_too_large", "body_slow"):
        headers.append((b"connection", b"close"))
    if refusal.retry_after is not None:
        headers.append((b"retry-after", str(refusal.retry_after).encode("ascii")))
    await _send(send, refusal.status, headers, b"application/json", refusal.body())


async def _drain(receive: Receive) -> None:
    size = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DRAIN_TIME):
            while size < _DRAIN_MAX:
                message = await receive()
                size += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return


async def send_json(send: Send, body: bytes, request: str) -> None:
    """Answer 200 with JSON of our own."""
    await _send(send, 200, [(b"x-request-id", request.encode("ascii"))], b"application/json", body)


async def send_stream_error(send: Send, refusal: Refusal) -> None:
    """End a stream that has begun with an error event; what was held is never sent."""
    data = json.dumps({"error": refusal.payload()}).encode("ascii")
    await send({"type": "http.response.body", "body": b"data: " + data + b"\n\n"})


async def _json(
    exchange: Exchange, upstream: Upstream, response: aiohttp.ClientResponse, masker: Masker
) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > RESPONSE_MAX:
            raise Refusal("upstream_invalid", f"{upstream.name} sent over {RESPONSE_MAX} bytes.")
    try:
        text = body.decode("utf-8")
        document = parse(text)
    except (UnicodeDecodeError, JsonInvalid):
        raise Refusal("upstream_invalid", f"{upstream.name} sent invalid JSON.") from None
    if isinstance(document, dict) and isinstance(document.get("usage"), dict):
        exchange.usage = document["usage"]
    if _without_logprobs(document):
        text = json.dumps(document)
    masked = masker.document(text, places=PLACES).encode("utf-8")
    exchange.size_out = len(masked)
    return masked


def _without_logprobs(document: Any) -> bool:
    """Empty `logprobs` of every choice; True where there was one.

    They hold the answer once more, token by token and in bytes, where nothing can be masked.
    """
    choices = document.get("choices") if isinstance(document, dict) else None
    found = False
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict) and choice.get("logprobs") is not None:
            choice["logprobs"] = None
            found = True
    return found


async def _stream(
    exchange: Exchange,
    incoming: Masker,
    upstream: Upstream,
    response: aiohttp.ClientResponse,
    headers: list[tuple[bytes, bytes]],
    send: Send,
) -> None:
    masker = StreamMasker(incoming, exchange.services.hold)
    reader = EventReader()
    headers += [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]
    start = {"type": "http.response.start", "status": response.status, "headers": headers}
    await send(start)
    exchange.started = True
    received = 0
    try:
        async for chunk in response.content.iter_any():
            received += len(chunk)
            if received > STREAM_MAX:
                raise Refusal("upstream_invalid", f"{upstream.name} sends without end.")
            out, wrong = _masked(masker, reader, chunk)
            if out:
                exchange.size_out += len(out)
                await send({"type": "http.response.body", "body": out, "more_body": True})
            if wrong:
                raise wrong
        rest = b"".join(map(masker.event, reader.close())) + masker.end()
    except BaseException:
        masker.drop()
        raise
    finally:
        exchange.usage = masker.usage
    exchange.size_out += len(rest)
    exchange.finish()
    await send({"type": "http.response.body", "body": rest})


def _masked(
    masker: StreamMasker, reader: EventReader, chunk: bytes
) -> tuple[bytes, StreamInvalid | ScanFailed | Blocked | None]:
    """Return what the chunk's events gave before the first that is wrong, and what is wrong."""
    out = bytearray()
    try:
        for data in reader.feed(chunk):
            out += masker.event(data)
    except (StreamInvalid, ScanFailed, Blocked) as error:
        return bytes(out), error
    return bytes(out), None


async def _refuse(upstream: Upstream, response: aiohttp.ClientResponse, masker: Masker) -> None:
    """Raise the upstream's error as our own: of its body only the error's type is repeated."""
    try:
        async with asyncio.timeout(5):
            body = await response.content.read(_ERROR_READ)
    except (aiohttp.ClientError, OSError):
        body = b""
    text = body.decode("utf-8", "replace")
    masker.keys(text)  # an upstream that echoes the key is an incident, though nothing passes
    kind = ""
    try:
        found = json.loads(text)["error"]["type"]
        if isinstance(found, str) and _TYPE.fullmatch(found):
            kind = f" ({masker.text(found)})"
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    status = response.status if response.status >= 400 else 502
    raise Refusal(
        "upstream_error", f"{upstream.name} answered {response.status}{kind}.", status=status
    )


def _headers(response: aiohttp.ClientResponse, masker: Masker) -> list[tuple[bytes, bytes]]:
    """The few response headers that pass; all are searched for keys in use."""
    passed = []
    for name, value in response.headers.items():
        masked = masker.keys(value)
        if _BACK.fullmatch(name.lower()):
            masked = masker.text(masked)
            passed.append((name.lower().encode("ascii"), masked.encode("latin-1", "replace")))
    return passed


async def _send(
    send: Send, status: int, headers: list[tuple[bytes, bytes]], kind: bytes, body: bytes
) -> None:
    headers += [(b"content-type", kind), (b"content-length", str(len(body)).encode("ascii"))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
