"""A real egress proxy process, with a stand-in broker and a small real upstream."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import mmap
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from proxy import providers

PROVIDERS = providers.load()
ROOT = Path(__file__).resolve().parents[3]
WORKLOAD = "executor.main"
PLACEHOLDER = "anchorhold-placeholder-" + "0123456789abcdef" * 2
OTHER = "anchorhold-placeholder-" + "fedcba9876543210" * 2
# Made up at run time, so that no file of the project looks like it holds a key.
KEY = "sk-" + "live" + "".join(chr(97 + i * 7 % 26) + str(i % 10) for i in range(22))
MEMFD_SECRET = 447  # memfd_secret(2), the same number on every architecture


def memfd(data: bytes) -> int:
    fd = os.memfd_create("config")
    os.write(fd, data)
    return fd


def secret_memory(keys: dict[str, str]) -> int:
    """A memfd_secret with the key table of the contract."""
    table = struct.pack("!I", len(keys))
    for name, value in keys.items():
        for part in (name.encode(), value.encode()):
            table += struct.pack("!H", len(part)) + part
    fd = ctypes.CDLL(None, use_errno=True).syscall(MEMFD_SECRET, 0)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "memfd_secret")
    os.ftruncate(fd, mmap.PAGESIZE)
    with mmap.mmap(fd, mmap.PAGESIZE) as view:
        view[: len(table)] = table
    return fd


class Request:
    """What the upstream saw of one request."""

    def __init__(self, head: bytes, body: bytes) -> None:
        line, *fields = head.decode("latin-1").split("\r\n")
        self.line = line
        self.headers = {k.lower(): v for k, _, v in (f.partition(": ") for f in fields if f)}
        self.raw = head + body
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)


Answer = Callable[[Request, asyncio.StreamWriter], Awaitable[None]]


def reply(
    body: Any, status: str = "200 OK", kind: str = "application/json", **headers: str
) -> Answer:
    """An upstream that answers with one complete body."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    extra = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())

    async def answer(_request: Request, writer: asyncio.StreamWriter) -> None:
        head = f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\n{extra}"
        writer.write(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
        await writer.drain()

    return answer


def stream(chunks: list[bytes], *, abort: bool = False, pause: float = 0.0) -> Answer:
    """An upstream that sends the chunks one by one as an event stream."""

    async def answer(_request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        for chunk in chunks:
            writer.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            await writer.drain()
            await asyncio.sleep(pause)
        if abort:
            writer.transport.abort()
        else:
            writer.write(b"0\r\n\r\n")

    return answer


def delta(text: str | None = None, index: int = 0, **choice: Any) -> bytes:
    inner = {} if text is None else {"content": text}
    event = {
        "id": "c1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "llm-v1",
        "choices": [{"index": index, "delta": inner, "finish_reason": None, **choice}],
    }
    return b"data: " + json.dumps(event).encode() + b"\n\n"


def completion(text: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {
        "id": "c1",
        "object": "chat.completion",
        "created": 1,
        "model": "llm-v1",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }


class Upstream:
    """A real HTTP server on loopback in a thread; set `answer` before each request."""

    def __init__(self) -> None:
        self.answer: Answer = reply(completion("ok"))
        self.seen: list[Request] = []
        self.connections = 0
        self.gone = threading.Event()
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()
        self.port = 0

        async def serve() -> None:
            server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
            self.port = server.sockets[0].getsockname()[1]
            ready.set()

        def run() -> None:
            asyncio.set_event_loop(self._loop)
            self._loop.create_task(serve())
            self._loop.run_forever()

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()
        ready.wait(5)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                request = Request(head[:-4], b"")
                body = await reader.readexactly(int(request.headers.get("content-length", "0")))
                request = Request(head[:-4], body)
                self.seen.append(request)
                await self.answer(request, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.gone.set()
        finally:
            writer.close()

    def close(self) -> None:
        async def end() -> None:
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._loop.stop()

        asyncio.run_coroutine_threadsafe(end(), self._loop)
        self._thread.join(5)


class StandInBroker:
    """Speaks the broker's wire format; dials loopback. `refuse` is a list of (status, reason)."""

    def __init__(self, ports: dict[str, int]) -> None:
        self.client, self._server = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ports = ports
        self.refuse: list[tuple[int, bytes]] = []
        self.dialled: list[str] = []
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        head = struct.Struct("!IB")
        while True:
            try:
                data = self._server.recv(1024)
            except OSError:
                return
            if not data:
                return
            number, _op = head.unpack_from(data)
            target = data[head.size :].decode()
            self.dialled.append(target)
            if self.refuse:
                status, reason = self.refuse.pop(0)
                self._server.send(head.pack(number, status) + reason)
            elif target not in self.ports:
                self._server.send(head.pack(number, 2) + b"unknown target")
            else:
                sock = socket.socket()
                sock.setblocking(False)
                sock.connect_ex(("127.0.0.1", self.ports[target]))
                socket.send_fds(self._server, [head.pack(number, 0)], [sock.fileno()])
                sock.close()

    def die(self) -> None:
        """End the connection, as the kernel does for a process that is gone."""
        self._server.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._server.close()


class Response:
    """An HTTP response as a client reads it."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return str(self.json["error"]["code"])

    def events(self) -> list[Any]:
        found = []
        for block in self.body.decode().split("\n\n"):
            if block.startswith("data: "):
                data = block[6:]
                found.append(data if data == "[DONE]" else json.loads(data))
        return found

    def text(self, index: int = 0) -> str:
        return "".join(
            choice["delta"].get("content") or ""
            for event in self.events()
            if isinstance(event, dict)
            for choice in event.get("choices", ())
            if choice["index"] == index and "delta" in choice
        )


def declared(name: str, port: int) -> dict[str, Any]:
    """An upstream of the provider called `name`, as the supervisor declares it."""
    provider = PROVIDERS[name]
    return {
        "scheme": "http", "host": "127.0.0.1", "port": port, "path": provider.base,
        "target": f"upstream.{name}", "credential": name if provider.header else None,
        "header": provider.header, "prefix": provider.prefix, "provider": name,
    }  # fmt: skip


class Proxy:
    """The proxy under test, started as the launcher starts it, and a client on its socket."""

    def __init__(self, folder: Path, server: Upstream, /, **changes: Any) -> None:
        self.folder = folder
        self.audit_path = folder / "audit.jsonl"
        more = changes.pop("providers", ())
        models = changes.pop("models", [])
        names = ("practice", *more)
        self.keys = dict.fromkeys(names, KEY)
        self.broker = StandInBroker({f"upstream.{name}": server.port for name in names})
        self.control, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.settimeout(40)  # the first answer waits for the rules to compile
        workload = {
            "placeholder": PLACEHOLDER,
            "digest": "d" * 64,
            "file": "executor-main.toml",
            "models": [
                {"name": name, "upstream": "practice", "rule": rule, "line": line, "redact": redact}
                for name, rule, line, redact in (
                    ("llm-v1", "models", 42, "standard"),
                    ("llm-s", "strict", 50, "strict"),
                )
            ]
            + [
                {"name": f"{name}-1", "upstream": name, "rule": "more", "line": 60,
                 "redact": "standard"}
                for name in more
            ]
            + models,
            "body_max": 100_000,
            "concurrent": 4,
            "timeout": 5.0,
        } | changes.pop("workload", {})  # fmt: skip
        config = {
            "upstreams": {
                "practice": {
                    "scheme": "http", "host": "127.0.0.1", "port": server.port, "path": "/v1",
                    "target": "upstream.practice", "credential": "practice",
                    "header": "authorization", "prefix": "Bearer ",
                } | changes.pop("upstream", {}),
            } | {name: declared(name, server.port) for name in more},
            "workloads": {WORKLOAD: workload, "other": {**workload, "placeholder": OTHER}},
        } | changes.pop("config", {})  # fmt: skip
        audit = changes.pop("audit", None) or os.open(
            self.audit_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600
        )
        handed = {
            "config": memfd(json.dumps(config).encode()),
            "audit": audit,
            "control": control.detach(),
            "broker": self.broker.client.detach(),
        }
        # Placed from 3 on by a small shell-free trampoline, as the launcher does it with dup2.
        code = (
            "import os,sys;"
            "f=[int(x) for x in sys.argv[2].split(',')];"
            "g=[os.dup2(x,100+i) for i,x in enumerate(f)];"
            "[os.dup2(x,3+i) for i,x in enumerate(g)];[os.close(x) for x in g];"
            "os.execv(sys.executable,[sys.executable,'-I',sys.argv[1],'egress'])"
        )
        env = {"LISTEN_FDS": "4", "LISTEN_FDNAMES": ":".join(handed), "LISTEN_PID": "1"}
        env |= {"HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
        self.process = subprocess.Popen(
            [
                changes.pop("python", sys.executable), "-I", "-c", code,
                str(ROOT / "proxy"), ",".join(map(str, handed.values())),
            ],
            pass_fds=list(handed.values()),
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        for fd in handed.values():
            os.close(fd)
        self.listeners: dict[str, tuple[str, int]] = {}
        self.forwarders: dict[str, tuple[str, int]] = {}

    def command(self, message: Any, *fds: int) -> int:
        data = message if isinstance(message, bytes) else json.dumps(message).encode()
        socket.send_fds(self.control, [data], list(fds))
        answer = self.control.recv(16)
        assert len(answer) == 1
        return answer[0]

    def listen(self, workload: str = WORKLOAD) -> None:
        sock = socket.create_server(("127.0.0.1", 0))
        self.listeners[workload] = sock.getsockname()
        assert self.command({"op": "listen", "workload": workload}, sock.fileno()) == 0
        sock.close()

    def forward(self, workload: str = WORKLOAD) -> None:
        sock = socket.create_server(("127.0.0.1", 0))
        self.forwarders[workload] = sock.getsockname()
        assert self.command({"op": "forward", "workload": workload}, sock.fileno()) == 0
        sock.close()

    def unlock(self, keys: dict[str, str] | None = None) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        assert self.command({"op": "keys"}, theirs.fileno()) == 0
        theirs.close()
        before = len(self.records("keys"))
        fd = secret_memory(self.keys if keys is None else keys)
        socket.send_fds(ours, [b"k"], [fd])
        os.close(fd)
        ours.close()
        self.wait_for(lambda: len(self.records("keys")) > before)

    def records(self, event: str | None = None) -> list[Any]:
        if not self.audit_path.exists():
            return []
        lines = [json.loads(line) for line in self.audit_path.read_text().splitlines()]
        return [line for line in lines if event in (None, line["event"])]

    def last(self) -> Any:
        return self.records("completion")[-1]

    @staticmethod
    def wait_for(condition: Callable[[], bool], timeout: float = 5.0) -> None:
        end = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < end, "it did not happen in time"
            time.sleep(0.01)

    def connect(self, workload: str = WORKLOAD) -> socket.socket:
        sock = socket.create_connection(self.listeners[workload], timeout=10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def request(
        self,
        body: Any = None,
        *,
        method: str = "POST",
        path: str = "/v1/chat/completions",
        token: str | None = PLACEHOLDER,
        workload: str = WORKLOAD,
        headers: dict[str, str] | None = None,
    ) -> Response:
        data = (
            body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        )
        fields = {"host": "x", "content-type": "application/json", "content-length": str(len(data))}
        if token is not None:
            fields["authorization"] = f"Bearer {token}"
        fields |= headers or {}
        head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in fields.items())
        with self.connect(workload) as sock:
            sock.sendall(head.encode("latin-1") + b"connection: close\r\n\r\n")
            with contextlib.suppress(ConnectionError):  # refused early; the answer is there
                sock.sendall(data)
            return read_response(sock)

    def ask(self, text: str, **more: Any) -> Response:
        return self.request(chat(text, **more))

    def stop(self) -> tuple[int, float]:
        """SIGTERM; returns exit status and seconds it took."""
        began = time.monotonic()
        self.process.terminate()
        code = self.process.wait(10)
        return code, time.monotonic() - began

    def close(self) -> bytes:
        if self.process.poll() is None:
            self.process.kill()
        output, _ = self.process.communicate(timeout=10)
        self.control.close()
        self.broker.close()
        return output


def chat(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "llm-v1", "messages": [{"role": "user", "content": text}], **more}


def read_response(sock: socket.socket) -> Response:
    data = b""
    while chunk := sock.recv(65536):
        data += chunk
    head, _, rest = data.partition(b"\r\n\r\n")
    line, *fields = head.decode("latin-1").split("\r\n")
    headers = {k.lower(): v for k, _, v in (f.partition(": ") for f in fields)}
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            length = int(size, 16)
            if not length:
                break
            body, rest = body + rest[:length], rest[length + 2 :]
        rest = body
    return Response(int(line.split(" ")[1]), headers, rest)
