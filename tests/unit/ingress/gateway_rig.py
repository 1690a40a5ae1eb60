"""What the gateway's tests run: the real process, a broker's server side, and a real adapter."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import hashlib
import json
import os
import secrets
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import h11
import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from wsproto import ConnectionType, WSConnection
from wsproto import events as ws

ROOT = Path(__file__).resolve().parents[3]
REST, SOCKET = "adapter.rest", "adapter.websocket"
BODY_MAX = 65536

# Descriptors move to 3.. here, in a fresh process, since a test's own 3.. are in use.
_TRAMPOLINE = """
import os, sys
n = int(sys.argv[1]); given = [int(x) for x in sys.argv[2:2 + n]]
high = [os.dup2(fd, 200 + i) for i, fd in enumerate(given)]
for i, fd in enumerate(high): os.dup2(fd, 3 + i, inheritable=True); os.close(fd)
os.execv(sys.argv[2 + n], sys.argv[2 + n:])
"""


class Issuer:
    """Signs tokens with PyJWT, an implementation independent of the gateway's."""

    def __init__(self, kid: str = "k1", issuer: str = "anchorhold") -> None:
        self.key = Ed25519PrivateKey.generate()
        self.kid, self.issuer = kid, issuer

    @property
    def public(self) -> dict[str, str]:
        raw = self.key.public_key().public_bytes(
            serialization.Encoding.Raw, serialization.PublicFormat.Raw
        )
        return {"kid": self.kid, "x": base64.urlsafe_b64encode(raw).rstrip(b"=").decode()}

    def claims(self, workload: str = REST, **changes: Any) -> dict[str, Any]:
        now = int(time.time())
        claims = {"iss": self.issuer, "sub": "alice", "aud": workload, "iat": now,
                  "exp": now + 600, "jti": secrets.token_hex(8)} | changes  # fmt: skip
        return {key: value for key, value in claims.items() if value is not None}

    def token(self, workload: str = REST, *, header: dict[str, Any] | None = None, **c: Any) -> str:
        pem = self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        headers = {"kid": self.kid} | (header or {})
        return jwt.encode(self.claims(workload, **c), pem, algorithm="EdDSA", headers=headers)


def config(issuer: Issuer, origin: str, **limits: Any) -> dict[str, Any]:
    def route(protocol: str, workload: str, upgrade: bool) -> dict[str, Any]:
        return {"protocol": protocol, "workload": workload, "target": f"workload.{workload}:8080",
                "body_max": BODY_MAX, "upgrade": upgrade, "file": f"{protocol}.toml",
                "rule": "inbound", "line": 17, "digest": "ab" * 32}  # fmt: skip

    return {
        "audience_prefix": "",
        "issuer": issuer.issuer,
        "origins": [origin],
        "keys": [issuer.public],
        "routes": [route("rest", REST, False), route("websocket", SOCKET, True)],
        "limits": {"head_max": 8192, "head_timeout": 1.0, "idle_timeout": 2.0, "connections": 64}
        | limits,
    }


class BrokerEnd(threading.Thread):
    """The broker's side of the wire format; `routes` maps targets to ports or (status, reason)."""

    def __init__(self, routes: dict[str, int | tuple[int, str]]) -> None:
        super().__init__(daemon=True)
        self.client, self._sock = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.routes, self.asked = routes, []
        self.start()

    def run(self) -> None:
        while data := self._sock.recv(256):
            number, op = struct.unpack_from("!IB", data)
            target = data[5:].decode("ascii")
            self.asked.append(target)
            found = self.routes.get(target, (1, "not allowed")) if op == 1 else (1, "unknown op")
            if isinstance(found, tuple):
                self._sock.send(struct.pack("!IB", number, found[0]) + found[1].encode())
                continue
            with socket.socket() as sock:
                sock.setblocking(False)
                sock.connect_ex(("127.0.0.1", found))
                socket.send_fds(self._sock, [struct.pack("!IB", number, 0)], [sock.fileno()])

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self.join(2)
        self._sock.close()
        self.client.close()


@dataclasses.dataclass
class Seen:
    """One request as the adapter got it."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes = b""
    whole: bool = False
    vanished: threading.Event = dataclasses.field(default_factory=threading.Event)
    arrived: threading.Event = dataclasses.field(default_factory=threading.Event)

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key == name), None)


class Adapter(threading.Thread):
    """A little server on h11 and wsproto; the path chooses how it behaves."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: list[Seen] = []
        self.connections = 0
        self.closes: list[int] = []
        self._loop = asyncio.new_event_loop()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.start()

    def run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(asyncio.start_server(self._serve, sock=self._listener))
        self._loop.run_forever()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    def close(self) -> None:
        if self.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self.join(2)
        self._listener.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        http = h11.Connection(h11.SERVER)

        async def event() -> Any:
            while (got := http.next_event()) is h11.NEED_DATA:
                http.receive_data(await reader.read(65536))
            return got

        def send(*items: Any) -> None:
            for item in items:
                writer.write(http.send(item) or b"")

        try:
            request = await event()
            seen = Seen(request.method.decode(), request.target.decode(),
                        [(k.decode(), v.decode()) for k, v in request.headers])  # fmt: skip
            self.seen.append(seen)
            path = seen.target.partition("?")[0]
            if seen.header("upgrade"):
                await self._websocket(reader, writer, seen)
                return
            if path == "/early":
                send(h11.Response(status_code=409, headers=[("content-length", "3")]),
                     h11.Data(data=b"no!"), h11.EndOfMessage())  # fmt: skip
                await writer.drain()
                return
            try:
                while isinstance(got := await event(), h11.Data):
                    seen.body += got.data
                seen.whole = True
            except (h11.RemoteProtocolError, OSError):
                seen.vanished.set()
                return
            await self._answer(path, seen, reader, writer, send)
        finally:
            with contextlib.suppress(OSError, h11.LocalProtocolError):
                writer.close()

    async def _answer(self, path: str, seen: Seen, reader: Any, writer: Any, send: Any) -> None:
        plain = [("content-type", "text/plain")]
        if path == "/die":
            return
        if path == "/garbage":
            writer.write(b"\x00\x01 not http\r\n\r\n")
        elif path == "/switch":
            writer.write(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n")
        elif path == "/gzip":
            send(h11.Response(status_code=200, headers=[("content-encoding", "gzip")]))
        elif path == "/cut":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this")
        elif path == "/mute":
            await asyncio.sleep(30)
        elif path == "/chatty":
            send(h11.Response(status_code=302, headers=[
                ("set-cookie", "a=b"), ("location", "http://evil.test/"), ("server", "x"),
                ("access-control-allow-origin", "*"), ("etag", '"1"'), ("content-length", "0"),
            ]), h11.EndOfMessage())  # fmt: skip
        elif path == "/vanish":
            send(h11.Response(status_code=200, headers=plain), h11.Data(data=b"first"))
            await writer.drain()
            await reader.read()
            seen.vanished.set()
        elif path == "/big":
            send(h11.Response(status_code=200, headers=plain))
            for _ in range(256):
                send(h11.Data(data=b"x" * 65536))
                await writer.drain()
            send(h11.EndOfMessage())
        elif path == "/drip":
            send(h11.Response(status_code=200, headers=plain))
            send(h11.Data(data=b"one "))
            await writer.drain()
            await asyncio.to_thread(seen.arrived.wait, 20)
            for word in (b"two ", b"three"):
                send(h11.Data(data=word))
                await writer.drain()
            send(h11.EndOfMessage())
        else:
            body = b"" if seen.method == "HEAD" else json.dumps(
                {"target": seen.target, "size": len(seen.body)}).encode()  # fmt: skip
            headers = [("content-type", "application/json"), ("content-length", str(len(body)))]
            send(h11.Response(status_code=200, headers=headers), h11.Data(data=body))
            send(h11.EndOfMessage())
        await writer.drain()

    async def _websocket(self, reader: Any, writer: Any, seen: Seen) -> None:
        if seen.target.startswith("/refuse"):
            writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
            return
        key = (seen.header("sec-websocket-key") or "").encode()
        accept = base64.b64encode(
            hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
        )
        extra = b""
        if seen.target.startswith("/wrong-accept"):
            accept = accept[::-1]
        if seen.target.startswith("/compress"):
            extra = b"Sec-WebSocket-Extensions: permessage-deflate\r\n"
        if seen.target.startswith("/chat"):
            extra = b"Sec-WebSocket-Protocol: chat\r\n"
        writer.write(b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                     b"Sec-WebSocket-Accept: " + accept + b"\r\n" + extra + b"\r\n")  # fmt: skip
        from wsproto.connection import Connection

        wire = Connection(ConnectionType.SERVER)
        while data := await reader.read(65536):
            wire.receive_data(data)
            for got in wire.events():
                if isinstance(got, ws.TextMessage):
                    seen.body += got.data.encode()
                    writer.write(wire.send(ws.TextMessage(got.data, got.frame_finished,
                                                          got.message_finished)))  # fmt: skip
                elif isinstance(got, ws.Ping):
                    writer.write(wire.send(got.response()))
                elif isinstance(got, ws.CloseConnection):
                    self.closes.append(got.code)
                    writer.write(wire.send(got.response()))
                    await writer.drain()
                    seen.vanished.set()
                    return
            await writer.drain()
        seen.vanished.set()


@dataclasses.dataclass
class Answer:
    """A whole answer as a client got it."""

    status: int
    headers: dict[str, str]
    body: bytes
    whole: bool = True

    @property
    def code(self) -> str:
        return str(json.loads(self.body)["error"]["code"])


class Gateway:
    """The gateway as its own process, with everything it is handed at launch."""

    def __init__(
        self, directory: Path, *, python: str = sys.executable, log: str | None = None,
        issuer: Issuer | None = None, routes: dict[str, Any] | None = None, **limits: Any,
    ) -> None:  # fmt: skip
        self.issuer = issuer or Issuer()
        self.adapter = Adapter()
        self.broker = BrokerEnd(
            {f"workload.{name}:8080": self.adapter.port for name in (REST, SOCKET)} | (routes or {})
        )
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        self.origin = f"http://127.0.0.1:{self.port}"
        self.log = Path(log) if log else directory / f"audit-{self.port}.jsonl"
        audit = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        settings = os.memfd_create("config", os.MFD_ALLOW_SEALING)
        os.write(settings, json.dumps(config(self.issuer, self.origin, **limits)).encode())
        handed = [settings, audit, self.broker.client.fileno(), listener.fileno()]
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _TRAMPOLINE, "4", *map(str, handed),
             python, "-I", str(ROOT / "proxy"), "ingress"],
            pass_fds=handed, stderr=subprocess.PIPE, stdout=subprocess.PIPE,
            env={"LISTEN_FDS": "4", "LISTEN_FDNAMES": "config:audit:broker:listen",
                 "LISTEN_PID": "1", "PATH": "/usr/bin:/bin"},
        )  # fmt: skip
        os.close(audit)
        os.close(settings)
        listener.close()

    def close(self) -> str:
        """Stop it; returns what it wrote to stderr (nothing the second time)."""
        if self.process.stderr.closed:
            return ""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            _, errors = self.process.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            _, errors = self.process.communicate()
        self.broker.close()
        self.adapter.close()
        return errors.decode()

    def records(self, request: str | None = None, event: str = "request") -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [r for r in found if r["event"] == event and request in (None, r["request"])]

    def record(self, answer: Answer) -> dict[str, Any]:
        """The one "request" record of an answer, which may be written just after it."""
        return self.wait_for(lambda: self.records(answer.headers["x-request-id"]))[0]

    @staticmethod
    def wait_for(find: Any, seconds: float = 5.0) -> Any:
        end = time.monotonic() + seconds
        while not (found := find()):
            assert time.monotonic() < end, "it did not happen in time"
            time.sleep(0.01)
        return found

    def head(
        self, method: str = "GET", path: str = "/rest/echo", *extra: str, token: str | None = "",
        host: str | None = "", version: str = "1.1",
    ) -> bytes:  # fmt: skip
        """A request head; `token` and `host` are the right ones unless given (None: absent)."""
        lines = [f"{method} {path} HTTP/{version}"]
        if host is not None:
            lines.append(f"Host: {host or self.origin[7:]}")
        if token is not None:
            lines.append(f"Authorization: Bearer {token or self.issuer.token()}")
        return "\r\n".join([*lines, *extra, "", ""]).encode("latin-1")

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def raw(self, data: bytes, *more: bytes) -> Answer:
        """Send bytes as they are, and read one answer to the end of the connection."""
        with self.connect() as sock:
            for part in (data, *more):
                try:
                    sock.sendall(part)
                except (BrokenPipeError, ConnectionResetError):
                    break
            return read_answer(sock, head=data.startswith(b"HEAD"))

    def ask(self, *arguments: Any, body: bytes = b"", **options: Any) -> Answer:
        return self.raw(self.head(*arguments, **options) + body)


def read_answer(sock: socket.socket, *, head: bool = False) -> Answer:
    http = h11.Connection(h11.CLIENT)
    http.send(h11.Request(method="HEAD" if head else "GET", target="/", headers=[("host", "x")]))
    http.send(h11.EndOfMessage())
    status, headers, body = 0, {}, bytearray()
    while True:
        try:
            event = http.next_event()
        except h11.RemoteProtocolError:
            return Answer(status, headers, bytes(body), whole=False)
        if event is h11.NEED_DATA:
            try:
                http.receive_data(sock.recv(65536))
            except ConnectionResetError:
                http.receive_data(b"")
        elif isinstance(event, h11.Response):
            status = event.status_code
            headers = {k.decode(): v.decode() for k, v in event.headers}
        elif isinstance(event, h11.Data):
            body += event.data
        elif not isinstance(event, h11.InformationalResponse):
            return Answer(status, headers, bytes(body))


class Client:
    """A WebSocket client on wsproto, as strict as a browser about what it receives."""

    def __init__(
        self, gateway: Gateway, path: str = "/websocket/", *, token: str | None = "",
        origin: str | None = None, protocols: tuple[str, ...] = (), compress: bool = False,
    ) -> None:  # fmt: skip
        from wsproto.extensions import PerMessageDeflate

        self.sock = gateway.connect()
        self.wire = WSConnection(ConnectionType.CLIENT)
        headers = [] if origin is None else [(b"origin", origin.encode())]
        if token is not None:
            token = token or gateway.issuer.token(SOCKET)
            headers.append((b"authorization", f"Bearer {token}".encode()))
        self.sock.sendall(self.wire.send(ws.Request(
            host=gateway.origin[7:], target=path, extra_headers=headers,
            subprotocols=list(protocols),
            extensions=[PerMessageDeflate()] if compress else [],
        )))  # fmt: skip
        self.queue: list[Any] = []
        self.opening = self.next()

    def next(self) -> Any:
        while not self.queue:
            try:
                data = self.sock.recv(65536)
            except ConnectionResetError:
                data = b""
            self.wire.receive_data(data or None)
            self.queue += list(self.wire.events())
            if not data and not self.queue:
                return None
        return self.queue.pop(0)

    def send(self, event: Any) -> None:
        self.sock.sendall(self.wire.send(event))

    def say(self, text: str) -> str:
        self.send(ws.TextMessage(data=text))
        got = ""
        while True:
            event = self.next()
            got += event.data
            if event.message_finished:
                return got

    def close(self) -> None:
        self.sock.close()
