"""Connections to the model servers: over sockets that the broker made, one pool each."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from proxy.dial import Broker, DialError, Status

from .config import Config, Upstream
from .errors import Refusal
from .http_client import Broken, Connection, Response
from .keys import KeyRing
from .tls import client_context

if TYPE_CHECKING:
    import ssl

_IDLE_MAX, _IDLE_TIME = 64, 15.0
# Nothing was sent yet, and a second try may find the server up.
_AGAIN = frozenset({Status.CONNECT_FAILED, Status.RESOLVE_FAILED, Status.UNKNOWN})
_PAUSE = 0.05
_DEFAULT_PORTS = {"http": 80, "https": 443}


class _Pool:
    """The connections to one upstream, so that a key never meets another host."""

    def __init__(self, broker: Broker, upstream: Upstream, tls: ssl.SSLContext | None) -> None:
        self._broker = broker
        self._upstream = upstream
        self._tls = tls
        self._idle: list[tuple[float, Connection]] = []  # the one used last comes last
        default = _DEFAULT_PORTS[upstream.scheme] == upstream.port
        host = f"[{upstream.host}]" if ":" in upstream.host else upstream.host
        self.host = host if default else f"{host}:{upstream.port}"

    async def connection(self) -> Connection:
        """Return an open connection. Raises DialError and OSError (also of TLS)."""
        loop = asyncio.get_running_loop()
        while self._idle:
            since, connection = self._idle.pop()
            if connection.usable and loop.time() - since < _IDLE_TIME:
                return connection
            connection.close()
        sock = await self._broker.dial(self._upstream.target)
        try:
            _, made = await loop.create_connection(
                lambda: Connection(self._keep),
                sock=sock,
                ssl=self._tls,
                server_hostname=self._upstream.host if self._tls else None,
            )
        except BaseException:
            sock.close()
            raise
        return made

    def _keep(self, connection: Connection) -> None:
        now = asyncio.get_running_loop().time()
        stale = [c for since, c in self._idle if now - since >= _IDLE_TIME or not c.usable]
        if stale or len(self._idle) >= _IDLE_MAX:
            self._idle = [(since, c) for since, c in self._idle if c not in stale]
            for one in stale:
                one.close()
        if len(self._idle) < _IDLE_MAX:
            self._idle.append((now, connection))
        else:
            connection.close()

    def close(self) -> None:
        """Close what is idle."""
        for _, connection in self._idle:
            connection.close()
        self._idle.clear()


class Upstreams:
    """All declared upstreams, with the keys of `ring`."""

    def __init__(self, config: Config, broker: Broker, ring: KeyRing) -> None:
        self._ring = ring
        tls = client_context(config.ca_file) if _any_tls(config) else None
        self._pools = {
            name: _Pool(broker, upstream, tls if upstream.scheme == "https" else None)
            for name, upstream in config.upstreams.items()
        }

    async def send(
        self,
        upstream: Upstream,
        method: str,
        path: str,
        headers: list[tuple[str, str]],
        body: bytes,
        timeout: float,
    ) -> Response:
        """Send one request with the upstream's key; return the response with its body unread.

        Tried twice when no connection came about, for then no byte was sent. The caller closes
        the response. Raises Refusal without a cause, as that might hold the headers.
        """
        pool = self._pools[upstream.name]
        head = _head(method, path, pool.host, headers, body)
        self._key(upstream)  # absent: refused before a connection is made
        for last in (False, True):
            try:
                connection = await pool.connection()
                return await self._ask(connection, upstream, head, body, timeout)
            except DialError as error:
                if last or error.status not in _AGAIN:
                    raise Refusal(
                        "upstream_unreachable",
                        f"No connection to {upstream.name}: {error.reason}.",
                    ) from None
            except (Broken, OSError) as error:
                raise broken(upstream, error) from None
            await asyncio.sleep(_PAUSE)
        raise AssertionError

    async def _ask(
        self, connection: Connection, upstream: Upstream, head: bytes, body: bytes, timeout: float
    ) -> Response:
        """Send the request. It holds the one copy of the key, which is overwritten afterwards."""
        key = self._key(upstream)
        before = f"{upstream.header}: {upstream.prefix}".encode("latin-1") if key else b""
        parts = head, before, key or b"", b"\r\n" if key else b"", b"\r\n", body
        request = bytearray().join(parts)  # allocated once, at its full size
        start, length = len(head) + len(before), len(key or b"")
        del key, parts  # no view of the old keys outlives a new table
        try:
            return await connection.ask(request, timeout)
        finally:
            request[start : start + length] = bytes(length)

    def _key(self, upstream: Upstream) -> memoryview | None:
        name = upstream.credential
        if name is None:
            return None
        if name not in self._ring:
            raise Refusal("credential_absent", f"The vault has no key {name}.")
        if not self._ring.sendable(name):
            raise Refusal("credential_absent", f"{name} cannot be a header.")
        return self._ring.value(name)

    def close(self) -> None:
        """Close every pool."""
        for pool in self._pools.values():
            pool.close()


def broken(upstream: Upstream, error: BaseException) -> Refusal:
    """Return the refusal for what went wrong between us and `upstream`; names only its type."""
    if isinstance(error, TimeoutError):
        return Refusal("upstream_timeout", f"{upstream.name} did not answer in time.")
    return Refusal("upstream_disconnected", f"{upstream.name} broke off ({type(error).__name__}).")


def _head(method: str, path: str, host: str, headers: list[tuple[str, str]], body: bytes) -> bytes:
    """The head but for the key and the empty line that ends it."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}"]
    lines += [f"{name}: {value}" for name, value in headers]
    if body or method == "POST":
        lines.append(f"Content-Length: {len(body)}")
    head = "\r\n".join(lines)
    if head.count("\n") != len(lines) - 1 or head.count("\r") != len(lines) - 1:
        raise ValueError("a header would end its line")
    return f"{head}\r\n".encode("latin-1")


def _any_tls(config: Config) -> bool:
    return any(upstream.scheme == "https" for upstream in config.upstreams.values())
