"""Connections to the model servers: aiohttp over sockets that the broker made, one pool each."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import BaseConnector
from yarl import URL

from proxy.dial import Broker, DialError, Status

from .config import Config, Upstream
from .errors import Refusal
from .tls import client_context

if TYPE_CHECKING:
    import ssl

    from aiohttp.client import ClientTimeout
    from aiohttp.client_reqrep import ClientRequest
    from aiohttp.tracing import Trace

_POOL, _KEEPALIVE = 1024, 15.0
# Nothing was sent yet, and a second try may find the server up.
_AGAIN = frozenset({Status.CONNECT_FAILED, Status.RESOLVE_FAILED, Status.UNKNOWN})
_PAUSE = 0.05
_HEAD_MAX = 16384


class _NotDialled(aiohttp.ClientError):
    """Carries the broker's answer through aiohttp."""

    def __init__(self, cause: DialError) -> None:
        super().__init__(cause.reason)
        self.cause = cause


class _BrokerConnector(BaseConnector):
    """As aiohttp's UnixConnector, but each connection is one that the broker made."""

    allowed_protocol_schema_set = frozenset({"http", "https"})

    def __init__(self, broker: Broker, upstream: Upstream, tls: ssl.SSLContext | None) -> None:
        super().__init__(limit=_POOL, keepalive_timeout=_KEEPALIVE)
        self._broker = broker
        self._upstream = upstream
        self._tls = tls

    async def _create_connection(
        self, req: ClientRequest, traces: list[Trace], timeout: ClientTimeout
    ) -> ResponseHandler:
        try:
            sock = await self._broker.dial(self._upstream.target)
        except DialError as error:
            raise _NotDialled(error) from None
        try:
            _, protocol = await self._loop.create_connection(
                self._factory,
                sock=sock,
                ssl=self._tls,
                server_hostname=self._upstream.host if self._tls else None,
            )
        except BaseException:
            sock.close()
            raise
        return protocol


class Upstreams:
    """All declared upstreams, each with its own pool, so that a key never meets another host."""

    def __init__(self, config: Config, broker: Broker) -> None:
        self._sessions: dict[str, aiohttp.ClientSession] = {}
        self._urls: dict[str, URL] = {}
        tls = client_context(config.ca_file) if _any_tls(config) else None
        for name, upstream in config.upstreams.items():
            context = tls if upstream.scheme == "https" else None
            self._sessions[name] = aiohttp.ClientSession(
                connector=_BrokerConnector(broker, upstream, context),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
                max_line_size=_HEAD_MAX,
                max_field_size=_HEAD_MAX,
            )
            self._urls[name] = URL.build(
                scheme=upstream.scheme,
                host=upstream.host,
                port=upstream.port,
                path=f"{upstream.path}/chat/completions",
            )

    async def post(
        self, upstream: Upstream, headers: dict[str, str], body: bytes, timeout: float
    ) -> aiohttp.ClientResponse:
        """Send one completion request; return the response with its body unread.

        Tried twice when no connection came about, for then no byte was sent. The caller closes
        the response. Raises Refusal; its cause is cut off, as aiohttp's errors hold the headers.
        """
        limits = aiohttp.ClientTimeout(total=None, sock_read=timeout)
        for last in (False, True):
            try:
                return await self._sessions[upstream.name].post(
                    self._urls[upstream.name],
                    data=body,
                    headers=headers,
                    allow_redirects=False,
                    timeout=limits,
                )
            except _NotDialled as error:
                if last or error.cause.status not in _AGAIN:
                    raise Refusal(
                        "upstream_unreachable",
                        f"No connection to {upstream.name}: {error.cause.reason}.",
                    ) from None
            except (aiohttp.ClientError, OSError) as error:
                raise broken(upstream, error) from None
            await asyncio.sleep(_PAUSE)
        raise AssertionError

    async def close(self) -> None:
        """Close every pool."""
        for session in self._sessions.values():
            with contextlib.suppress(Exception):
                await session.close()


def broken(upstream: Upstream, error: BaseException) -> Refusal:
    """Return the refusal for what went wrong between us and `upstream`; names only its type."""
    if isinstance(error, TimeoutError):
        return Refusal("upstream_timeout", f"{upstream.name} did not answer in time.")
    return Refusal("upstream_disconnected", f"{upstream.name} broke off ({type(error).__name__}).")


def _any_tls(config: Config) -> bool:
    return any(upstream.scheme == "https" for upstream in config.upstreams.values())
