"""The practice model's HTTP side: chat completions, plain and streamed, and what it has seen."""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections import deque
from typing import Literal

import msgspec

from assistant import log
from assistant.errors import AssistantError
from assistant.http.exchange import Exchange, Request
from assistant.http.server import Limits, Routes, Server
from assistant.practice import rules

MODELS = ("llm-v1", "llm-v2")
FINGERPRINT = "practice"
_SEEN = (50, 4 << 20)  # requests, bytes


class Part(msgspec.Struct):
    """One part of a message that is not plain text; only text parts are understood."""

    type: Literal["text"]
    text: str


class Turn(msgspec.Struct):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part]

    def text(self) -> str:
        """The content as one text."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content)


class StreamOptions(msgspec.Struct):
    """Whether the stream ends with a chunk about usage."""

    include_usage: bool = False


class Chat(msgspec.Struct):
    """A chat completion request; parameters that rules have no use for are ignored."""

    model: str
    messages: list[Turn]
    stream: bool = False
    stream_options: StreamOptions | None = None


class Seen(msgspec.Struct):
    """One request as it arrived: raw body and header names; the token only as its SHA-256.

    The hash is safe to show because the token is a random key: compare it, it cannot be guessed.
    """

    request: str
    bearer_sha256: str
    headers: list[str]
    body: str


class PracticeModel:
    """The server; `pace` seconds pass between two words of a stream."""

    def __init__(self, pace: float = 0.0) -> None:
        self._pace = pace
        self._seen: deque[Seen] = deque(maxlen=_SEEN[0])
        self._count = 0

    async def serve(self, port: int) -> None:
        """Listen on 127.0.0.1:`port` until cancelled."""
        routes: Routes = {
            "/v1/chat/completions": {"POST": self._chat},
            "/v1/models": {"GET": self._models},
            "/healthz": {"GET": self._healthy},
            "/practice/requests": {"GET": self._requests},
        }
        server = Server(routes, Limits(body=2 << 20))
        log.line("listening", protocol="practice-model", port=await server.start(port))
        await server.serve_forever()

    async def _healthy(self, exchange: Exchange) -> None:
        await exchange.reply(200, {"status": "ok", "model": "practice"})

    async def _models(self, exchange: Exchange) -> None:
        _bearer(exchange.request)
        listed = [{"id": name, "object": "model", "owned_by": "practice"} for name in MODELS]
        await exchange.reply(200, {"object": "list", "data": listed})

    async def _requests(self, exchange: Exchange) -> None:
        await exchange.reply(200, {"requests": list(self._seen)})

    async def _chat(self, exchange: Exchange) -> None:
        token = _bearer(exchange.request)
        self._remember(exchange.request, token)
        chat = _read(exchange.request.body)
        system = next((turn.text() for turn in chat.messages if turn.role == "system"), "")
        user = next((turn.text() for turn in chat.messages if turn.role == "user"), "")
        text = rules.answer(system, user)
        prompt = sum(rules.tokens(turn.text()) for turn in chat.messages)
        completion = rules.tokens(text)
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }
        self._count += 1
        head = {
            "id": f"practice-{self._count}",
            "created": int(time.time()),
            "model": chat.model,
            "system_fingerprint": FINGERPRINT,
        }
        log.line(
            "completion", request=exchange.request.header("x-request-id")[:64], model=chat.model
        )
        if chat.stream:
            with_usage = chat.stream_options is not None and chat.stream_options.include_usage
            await self._stream(exchange, head, text, usage if with_usage else None)
            return
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": "stop",
        }
        await exchange.reply(
            200, {**head, "object": "chat.completion", "choices": [choice], "usage": usage}
        )

    async def _stream(
        self, exchange: Exchange, head: dict[str, object], text: str, usage: dict[str, int] | None
    ) -> None:
        async def send(delta: dict[str, str], finish: str | None = None) -> None:
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            await exchange.write(_event({**head, "choices": [choice]}))

        head = {**head, "object": "chat.completion.chunk"}
        await exchange.start(200, "text/event-stream")
        await send({"role": "assistant", "content": ""})
        for word in re.findall(r"\s*\S+", text):
            if self._pace:
                await asyncio.sleep(self._pace)
            await send({"content": word})
        await send({}, "stop")
        if usage is not None:
            await exchange.write(_event({**head, "choices": [], "usage": usage}))
        await exchange.write(b"data: [DONE]\n\n")
        await exchange.end()

    def _remember(self, request: Request, token: str) -> None:
        self._seen.append(
            Seen(
                request=request.header("x-request-id")[:64],
                bearer_sha256=hashlib.sha256(token.encode("latin-1")).hexdigest(),
                headers=[name for name, _ in request.headers],
                body=request.body.decode("utf-8", "backslashreplace"),
            )
        )
        while len(self._seen) > 1 and sum(len(seen.body) for seen in self._seen) > _SEEN[1]:
            self._seen.popleft()


def _bearer(request: Request) -> str:
    scheme, _, token = request.header("authorization").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise AssistantError(
            "invalid_api_key", "no API key", "send Authorization: Bearer", status=401
        )
    return token.strip()


def _read(body: bytes) -> Chat:
    try:
        chat = msgspec.json.decode(body, type=Chat)
    except msgspec.ValidationError as error:
        raise AssistantError("invalid_request", f"the request is malformed: {error}") from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise AssistantError("invalid_json", "the request is not valid JSON") from error
    if chat.model not in MODELS:
        raise AssistantError(
            "model_not_found",
            "there is no such model",
            f"it has {', '.join(MODELS)}",
            status=404,
        )
    if not chat.messages:
        raise AssistantError("invalid_request", "`messages` is empty")
    return chat


def _event(value: object) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"
