"""What goes back to the workload: JSON, a stream, or a refusal; masked, with our own headers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from typing import TYPE_CHECKING

from . import shapes, sse
from .bodies.content_encoding import ENCODINGS, Decoder, EncodingWrong, TooLarge
from .bodies.files import FileRefused, masked_file
from .bodies.media import Lifted
from .deltas import Event, StreamInvalid, StreamMasker
from .errors import Refusal
from .http_client import Broken, Response
from .http_server import ClientGone, Headers
from .redaction.actions import Blocked
from .redaction.json_walk import JsonInvalid, Untouchable, read, without
from .redaction.scan import ScanFailed
from .redaction.text import Masker
from .redaction.views import DecodeLimit
from .routes import Target
from .upstream import broken
from .usage import reported

if TYPE_CHECKING:
    from .exchange import Exchange

RESPONSE_MAX = 16 * 1024 * 1024
STREAM_MAX = 64 * 1024 * 1024
STREAM_TIMES = 10  # a stream may last this many of the workload's timeouts
_ALIVE = 1.0
_ERROR_READ = 64 * 1024
_DRAIN_MAX, _DRAIN_TIME = 1024 * 1024, 1.0
_TYPE = re.compile(r"[A-Za-z_]{1,48}")
_RETRY = re.compile(r"[\x20-\x7e]{1,64}")
_SSE, _LINES, _JSON = "text/event-stream", "application/x-ndjson", "application/json"


async def relay(
    exchange: Exchange,
    target: Target,
    masker: Masker,
    response: Response,
) -> None:
    """Answer with the upstream's response. Raises Refusal, StreamInvalid, ScanFailed, Blocked."""
    upstream = target.upstream
    if 300 <= response.status < 400:
        raise Refusal("redirect_refused", f"{upstream.name} answered with a redirect.")
    headers = _headers(target, response, masker)
    if response.status >= 400 or response.status < 200:
        await _refuse(target, response, masker, headers)
    encoding = response.header("content-encoding", "identity").strip().lower()
    if encoding not in ENCODINGS:
        raise Refusal("upstream_invalid", f"{upstream.name} sent an unknown Content-Encoding.")
    kind = response.header("content-type").partition(";")[0].strip().lower()
    exchange.status = response.status
    # The type decides, not what was asked for: no stream slips through as JSON.
    responses = target.route.responses
    if kind not in responses and f"{kind.partition('/')[0]}/*" not in responses:
        expected = " nor ".join(sorted(responses))
        raise Refusal("upstream_invalid", f"{upstream.name} did not send {expected}.")
    try:
        if kind in (_SSE, _LINES):
            exchange.stream = True
            async with asyncio.timeout(exchange.workload.timeout * STREAM_TIMES):
                stream = _Stream(exchange, target, masker, Decoder(encoding, STREAM_MAX))
                await stream.run(response, kind, headers)
        else:
            response.end_within(exchange.workload.timeout)
            body = await _whole(response, Decoder(encoding, RESPONSE_MAX))
            if kind == _JSON:
                body = _json(exchange, target, body, masker)
            else:
                body = _file(target, body, masker)
            exchange.size_out = len(body)
            exchange.finish()
            send(exchange, response.status, headers, kind.encode("ascii"), body)
    except (Broken, OSError) as error:
        raise broken(upstream, error) from None
    except (EncodingWrong, TooLarge) as error:
        raise Refusal("upstream_invalid", f"{upstream.name}'s answer: {error}.") from None


def send(exchange: Exchange, status: int, headers: Headers, kind: bytes, body: bytes) -> None:
    """Answer with a whole body of that type."""
    ours = [(b"x-request-id", exchange.id.encode("ascii")), (b"content-type", kind)]
    exchange.request.answer(status, [*headers, *ours], body)


async def send_refusal(refusal: Refusal, exchange: Exchange) -> None:
    """Answer with an error.

    The rest of the request's body is read for a moment and thrown away: closing a socket with
    unread data resets the connection, and the client might never see the answer (RFC 9112,
    section 9.6).
    """
    if not exchange.request.whole:
        await _drain(exchange)
    headers = list(refusal.headers)
    if refusal.code in ("body_too_large", "body_slow"):
        headers.append((b"connection", b"close"))
    body = shapes.error(exchange.shape, refusal)
    send(exchange, refusal.status, headers, b"application/json", body)


async def _drain(exchange: Exchange) -> None:
    size = 0
    with contextlib.suppress(TimeoutError, ClientGone):
        async with asyncio.timeout(_DRAIN_TIME):
            while size < _DRAIN_MAX and (part := await exchange.request.read()):
                size += len(part)


def send_stream_error(refusal: Refusal, exchange: Exchange) -> None:
    """End a stream that has begun with an error event; what was held is never sent."""
    event = Event(json.dumps(shapes.error_document(exchange.shape, refusal)), None)
    if exchange.shape == "anthropic":
        event = Event(event.data, "error")
    frame = sse.frame_line if exchange.shape == "ollama" else sse.frame_event
    exchange.request.end(frame(event))


async def _whole(response: Response, decoder: Decoder) -> bytes:
    body = bytearray()
    while chunk := await response.read():
        body += decoder.feed(chunk)
    decoder.finish()
    return bytes(body)


def _json(exchange: Exchange, target: Target, body: bytes, masker: Masker) -> bytes:
    provider = target.provider
    try:
        lifted = Lifted(body.decode("utf-8"))
        document = read(lifted.text)
    except (UnicodeDecodeError, JsonInvalid):
        name = target.upstream.name
        raise Refusal("upstream_invalid", f"{name} sent invalid JSON.") from None
    if isinstance(document.value, dict):
        exchange.usage |= reported(document.value, provider.usage)
    if any(f'"{name}"' in document.text for name in provider.dropped):
        # They hold the answer once more, token by token and in bytes: nothing can be masked there.
        kept = without(document.value, provider.dropped)
        document = document if kept is document.value else read(json.dumps(kept))
    text = masker.document(document, provider.opaque, provider.signed, provider.places)
    return lifted.put_back(text, masker).encode("utf-8")


def _file(target: Target, body: bytes, masker: Masker) -> bytes:
    try:
        return masked_file(body, masker, target.provider)
    except FileRefused as error:
        name = target.upstream.name
        raise Refusal("upstream_invalid", f"{name} sent a file: {error}.") from None


class _Stream:
    """One answer in pieces: events in, masked events out, until either side ends."""

    def __init__(
        self, exchange: Exchange, target: Target, masker: Masker, decoder: Decoder
    ) -> None:
        kind, provider = target.route.stream, target.provider
        if kind is None:
            raise StreamInvalid("this route has no stream")
        self._exchange = exchange
        self._target = target
        self._masker = StreamMasker(kind, provider, masker, exchange.services.hold)
        self._decoder = decoder
        self._reader: sse.EventReader | sse.LineReader = sse.EventReader()
        self._frame = sse.frame_event
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, response: Response, kind: str, headers: Headers) -> None:
        """Pass the stream on. Raises Refusal, StreamInvalid, ScanFailed, Blocked."""
        exchange, request = self._exchange, self._exchange.request
        if kind == _LINES:
            self._reader, self._frame = sse.LineReader(), sse.frame_line
        else:
            self._keep_alive()
        headers += [
            (b"x-request-id", exchange.id.encode("ascii")),
            (b"content-type", kind.encode("ascii")),
            (b"cache-control", b"no-store"),
        ]
        request.start(response.status, headers)
        try:
            while chunk := await response.read():
                out, wrong = self._masked(self._decoder.feed(chunk))
                if out:
                    exchange.size_out += len(out)
                    await request.write(out)
                if wrong:
                    raise wrong
            self._decoder.finish()
            rest = b"".join(map(self._event, self._reader.close())) + self._ended()
        except BaseException:
            self._masker.drop()
            raise
        finally:
            if self._timer:
                self._timer.cancel()
        exchange.size_out += len(rest)
        exchange.finish()
        request.end(rest)

    def _masked(self, chunk: bytes) -> tuple[bytes, Exception | None]:
        """Return what the chunk's events gave before the first that is wrong, and what is wrong."""
        out = bytearray()
        try:
            for data in self._reader.feed(chunk):
                out += self._event(data)
        except (StreamInvalid, ScanFailed, DecodeLimit, Untouchable, Blocked) as error:
            return bytes(out), error
        return bytes(out), None

    def _event(self, data: str) -> bytes:
        if data == "[DONE]":
            return self._ended() + sse.DONE
        event, sent = self._masker.event(data)
        self._exchange.usage |= reported(event, self._target.provider.usage)
        return b"".join(map(self._frame, sent))

    def _ended(self) -> bytes:
        return b"".join(map(self._frame, self._masker.end()))

    def _keep_alive(self) -> None:
        """A comment a second while text is held, so that no client takes the stream for dead."""
        loop = asyncio.get_running_loop()

        def tick() -> None:
            if self._masker.pending:
                task = loop.create_task(self._exchange.request.write(sse.ALIVE))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            self._timer = loop.call_later(_ALIVE, tick)

        self._timer = loop.call_later(_ALIVE, tick)


async def _refuse(
    target: Target,
    response: Response,
    masker: Masker,
    headers: Headers,
) -> None:
    """Raise the upstream's error as our own: of its body only the error's type is repeated."""
    upstream, body = target.upstream, b""
    try:
        async with asyncio.timeout(5):
            while len(body) < _ERROR_READ and (chunk := await response.read()):
                body += chunk
    except (Broken, OSError):
        body = b""
    text = body.decode("utf-8", "replace")
    masker.keys(text)  # an upstream that echoes the key is an incident, though nothing passes
    kind = ""
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
        error = json.loads(text)["error"]
        # Ollama's is a sentence alone, which is not repeated.
        found = error.get("type", error.get("status")) if isinstance(error, dict) else None
        if isinstance(found, str) and _TYPE.fullmatch(found):
            kind = f" ({masker.text(found)})"
    status = response.status if response.status >= 400 else 502
    raise Refusal(
        "upstream_error",
        f"{upstream.name} answered {response.status}{kind}.",
        status=status,
        headers=headers,
    )


def _headers(target: Target, response: Response, masker: Masker) -> Headers:
    """The few response headers that pass; all are searched for keys in use."""
    passed = []
    masker.keys("\n".join([value for _, value in response.headers]))
    for name, value in response.headers:
        if target.provider.passed.fullmatch(name) and _RETRY.fullmatch(value):
            passed.append((name.encode("ascii"), masker.text(value).encode("latin-1", "replace")))
    return passed
