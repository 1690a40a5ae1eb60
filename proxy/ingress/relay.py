"""Carrying one HTTP exchange: the request's body up, the answer down, both as streams."""

from __future__ import annotations

import asyncio

import h11

from .config import Limits, Route
from .head import Head
from .ledger import Ledger
from .peer import Peer
from .refusal import ClientGone, Refusal, common_headers, failed

# What an adapter may say about its answer. Cookies, redirects and CORS grants are not among it.
_RETURNED = frozenset(
    b"content-type content-length content-language content-disposition cache-control etag"
    b" last-modified retry-after".split()
)
_AFTER_MAX = 65536


def request_headers(head: Head, route: Route, ledger: Ledger) -> list[tuple[bytes, bytes]]:
    """The headers every request to an adapter has: allow-listed ones and the gateway's own."""
    return [
        (b"host", route.host),
        *head.forwarded(),
        (b"accept-encoding", b"identity"),
        (b"x-request-id", ledger.request.encode("ascii")),
        (b"x-anchorhold-client", (ledger.client or "").encode("ascii")),
    ]


async def exchange(
    client: Peer,
    adapter: Peer,
    head: Head,
    target: bytes,
    route: Route,
    limits: Limits,
    ledger: Ledger,
) -> None:
    """Carry one request to the adapter and its answer back, neither ever whole in memory.

    Raises Refusal (408, 413, 502, 504) or ClientGone; `ledger.status` says whether an answer had
    begun. The caller closes both peers, which is what cancels the adapter's work.
    """
    headers = request_headers(head, route, ledger)
    for name in (b"content-length", b"transfer-encoding"):
        if (value := head.one(name)) is not None:
            headers.append((name, value))
    headers.append((b"connection", b"close"))
    try:
        await adapter.send(h11.Request(method=head.method, target=target, headers=headers))
    except OSError:
        raise adapter_silent() from None
    upload = asyncio.create_task(_upload(client, adapter, route, limits, ledger))
    download = asyncio.create_task(_download(client, adapter, limits, ledger))
    try:
        await asyncio.wait({upload, download}, return_when=asyncio.FIRST_COMPLETED)
        # The upload ends by an exception only: after the body it waits for the client to leave.
        await (download if download.done() else upload)
    finally:
        upload.cancel()
        download.cancel()
        await asyncio.gather(upload, download, return_exceptions=True)


async def _upload(
    client: Peer, adapter: Peer, route: Route, limits: Limits, ledger: Ledger
) -> None:
    try:
        async with asyncio.timeout(limits.body_timeout) as whole:
            if client.http.they_are_waiting_for_100_continue:
                await client.send(h11.InformationalResponse(status_code=100, headers=[]))
            taking = True
            while isinstance(event := await _client_event(client, limits), h11.Data):
                ledger.bytes_in += len(event.data)
                if ledger.bytes_in > route.body_max:
                    raise too_large(route)
                taking = taking and await _offer(adapter, event)
            if taking:
                await _offer(adapter, h11.EndOfMessage())
    except TimeoutError:
        if not whole.expired():
            raise ClientGone from None  # it takes no more bytes
        message = f"Send a body within {limits.body_timeout:g} s."
        raise Refusal(408, "body_timeout", message) from None
    except OSError:
        raise ClientGone from None
    left = _AFTER_MAX
    while left > 0 and (data := await client.read()):
        left -= len(data)
    raise ClientGone


async def _client_event(client: Peer, limits: Limits) -> object:
    try:
        async with asyncio.timeout(limits.idle_timeout):
            return await client.event()
    except TimeoutError:
        message = f"A body may pause for {limits.idle_timeout:g} s at most."
        raise Refusal(408, "body_timeout", message) from None
    except h11.RemoteProtocolError:
        if client.gone:
            raise ClientGone from None
        raise Refusal(400, "bad_body", "The body's framing is not HTTP/1.1.") from None


async def _offer(adapter: Peer, event: h11.Event) -> bool:
    """Send to the adapter; False when it takes no more (it may have answered already)."""
    try:
        await adapter.send(event)
    except OSError:
        return False
    return True


async def _download(client: Peer, adapter: Peer, limits: Limits, ledger: Ledger) -> None:
    await answer(client, await answer_head(adapter, limits), adapter, limits, ledger)


async def answer_head(adapter: Peer, limits: Limits) -> h11.Response | h11.InformationalResponse:
    """The head of the adapter's answer; informational ones except 101 are dropped."""
    while True:
        event = await _adapter_event(adapter, limits)
        if isinstance(event, h11.Response):
            return event
        if not isinstance(event, h11.InformationalResponse):
            raise adapter_silent()
        if event.status_code == 101:
            return event


async def answer(
    client: Peer,
    head: h11.Response | h11.InformationalResponse,
    adapter: Peer,
    limits: Limits,
    ledger: Ledger,
) -> None:
    """Send the adapter's answer, whose head has come, on to the client."""
    coding = [value for name, value in head.headers if name == b"content-encoding"]
    if not isinstance(head, h11.Response) or coding not in ([], [b"identity"]):
        raise bad_answer()
    headers = [(name, value) for name, value in head.headers if name in _RETURNED]
    if not any(name == b"cache-control" for name, _ in headers):
        headers.append((b"cache-control", b"no-store"))
    headers += common_headers(ledger.request)
    try:
        down = h11.Response(status_code=head.status_code, headers=headers)
        ledger.status = head.status_code
        await client.send(down)
        while isinstance(event := await _adapter_event(adapter, limits), h11.Data):
            await client.send(event)
            ledger.bytes_out += len(event.data)
        await client.send(h11.EndOfMessage())
    except h11.LocalProtocolError:
        raise bad_answer() from None
    except OSError:
        raise ClientGone from None


async def _adapter_event(adapter: Peer, limits: Limits) -> object:
    try:
        async with asyncio.timeout(limits.answer_timeout):
            return await adapter.event()
    except TimeoutError:
        message = f"The workload said nothing for {limits.answer_timeout:g} s; try again later."
        raise failed(504, "adapter_timeout", message) from None
    except h11.RemoteProtocolError:
        raise (adapter_silent() if adapter.gone else bad_answer()) from None


def too_large(route: Route) -> Refusal:
    """413: the policy's limit for this protocol."""
    message = f"A body has at most {route.body_max} bytes ({route.file}:{route.line})."
    return Refusal(413, "body_too_large", message)


def adapter_silent() -> Refusal:
    """502: the connection to the adapter ended before its answer did."""
    message = "The workload closed the connection before answering; try again, or see its log."
    return failed(502, "adapter_gone", message)


def bad_answer() -> Refusal:
    """502: the adapter's answer is not what it may send."""
    message = "The workload's answer is not plain HTTP/1.1; see its log."
    return failed(502, "adapter_bad_answer", message)
