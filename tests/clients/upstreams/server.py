"""A model server for tests: it plays a script, and keeps exactly what it was sent.

The script is the last part of the model's name, so that one server serves any number of clients at
once and keeps no state but its records: `fake-text` answers with a text, `fake-limited` with 429.
What a provider's answers look like is its module's business; what goes wrong is the same for all.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

CREDENTIALS = (b"authorization", b"x-api-key", b"x-goog-api-key")
# Script -> status; `limited-once` is a 429 the first time only.
FAULTS = {"bad": 400, "denied": 401, "limited": 429, "broken": 500, "overloaded": 529}
_SCRIPT = re.compile(rb"fake-([a-z-]+)")
_FOREVER = 60.0


@dataclass(frozen=True)
class Seen:
    """One request as it came: the target as on the wire, headers in order, the body's bytes."""

    method: str
    target: str
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)

    @property
    def script(self) -> str:
        """What the model's name asks for; empty without one."""
        found = _SCRIPT.search(self.target.encode()) or _SCRIPT.search(self.body)
        return found[1].decode() if found else ""

    @property
    def raw(self) -> bytes:
        """All of it, to search for what must not be there."""
        head = b"".join(name + b": " + value + b"\r\n" for name, value in self.headers)
        return self.target.encode() + b"\r\n" + head + self.body

    def credentials(self) -> dict[str, str]:
        """The headers that carry keys."""
        return {k.lower().decode(): v.decode() for k, v in self.headers if k.lower() in CREDENTIALS}


@dataclass
class Reply:
    """What to answer. Pieces are sent one by one, `pause` seconds apart; `reset`: then a RST."""

    body: bytes | list[bytes]
    kind: str = "application/json"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    pause: float = 0.0
    reset: bool = False


# (request, script, a secret to put into the answer) -> answer
Answers = Callable[[Seen, str, str], Reply]
# (status, message) -> the provider's error body
Errors = Callable[[int, str], dict[str, Any]]


@dataclass(frozen=True)
class Provider:
    """How one provider answers."""

    answers: Answers
    errors: Errors


def as_json(document: Any, **more: Any) -> Reply:
    """A complete JSON answer."""
    return Reply(json.dumps(document).encode(), **more)


def pieces(text: str, size: int = 5) -> list[str]:
    """The text in pieces, so that any secret in it is split."""
    return [text[at : at + size] for at in range(0, len(text), size)]


class Upstream:
    """The server, in a thread. `seen` holds the requests, `gone` the scripts whose client left."""

    def __init__(self, provider: Provider, secret: str) -> None:
        self.seen: list[Seen] = []
        self.gone: list[str] = []
        self._provider = provider
        self._secret = secret
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._runner: web.AppRunner = self._do(self._start())
        listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = listener.getsockname()[1]
        self.listen(listener)

    def listen(self, listener: socket.socket) -> None:
        """Serve on this socket too; it may belong to another network namespace."""
        self._do(web.SockSite(self._runner, listener).start())

    def of(self, script: str) -> list[Seen]:
        """The requests of one script."""
        return [seen for seen in self.seen if seen.script == script]

    def forget(self) -> None:
        """Drop the records."""
        self.seen.clear()
        self.gone.clear()

    def close(self) -> None:
        """End it."""
        self._do(self._runner.cleanup())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _do(self, step: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(step, self._loop).result(20)

    async def _start(self) -> web.AppRunner:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_route("*", "/{rest:.*}", self._serve)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        return runner

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        seen = Seen(request.method, request.raw_path, tuple(request.raw_headers), body)
        self.seen.append(seen)
        try:
            return await self._play(request, seen)
        except (asyncio.CancelledError, ConnectionError):
            self.gone.append(seen.script)
            raise

    async def _play(self, request: web.Request, seen: Seen) -> web.StreamResponse:
        reply = self._reply(seen)
        if seen.script == "slow":
            await asyncio.sleep(_FOREVER)
        headers = {"content-type": reply.kind, **reply.headers}
        if isinstance(reply.body, bytes):
            return web.Response(body=reply.body, status=reply.status, headers=headers)
        response = web.StreamResponse(status=reply.status, headers=headers)
        await response.prepare(request)
        for piece in reply.body:
            await response.write(piece)
            await asyncio.sleep(reply.pause)
        if reply.reset and request.transport is not None:
            request.transport.abort()
        return response

    def _reply(self, seen: Seen) -> Reply:
        script = seen.script
        if script == "limited-once" and len(self.of(script)) == 1:
            script = "limited"
        if status := FAULTS.get(script):
            head = {"retry-after": "0"} if status == 429 else {}
            return as_json(
                self._provider.errors(status, f"{script}: {self._echo(seen)}"),
                status=status,
                headers=head,
            )
        if script == "moved" and "elsewhere" not in seen.target:
            path, mark, query = seen.target.partition("?")
            return Reply(b"", status=307, headers={"location": f"{path}/elsewhere{mark}{query}"})
        if script == "echo":
            return self._provider.answers(seen, "text", self._echo(seen))
        reply = self._provider.answers(seen, script, self._secret)
        if script == "endless" and isinstance(reply.body, list):
            reply.body = reply.body[:2] + reply.body[2:3] * 2000
            reply.pause = 0.03
        if script == "reset":
            whole = reply.body if isinstance(reply.body, bytes) else b"".join(reply.body)
            reply.body, reply.reset = [whole[: len(whole) // 2]], True
        return reply

    @staticmethod
    def _echo(seen: Seen) -> str:
        return "you sent " + " and ".join(seen.credentials().values())
