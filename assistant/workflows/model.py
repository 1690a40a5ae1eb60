"""Chat completions over the OpenAI-compatible HTTP interface, plain and streamed."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager

import msgspec

from assistant.errors import AssistantError
from assistant.http.client import Client, Response

Messages = list[dict[str, str]]


class ModelError(AssistantError):
    """The proxy or the model refused or failed; code, message and status are theirs."""


class _Text(msgspec.Struct, frozen=True):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Text = _Text()
    delta: _Text = _Text()


class _Problem(msgspec.Struct):
    message: str = ""
    code: str | int | None = None


class _Answer(msgspec.Struct):
    """A completion, a chunk of one, or an error; what is not used here is ignored."""

    choices: list[_Choice] = []
    error: _Problem | None = None


class Model:
    """Calls the models behind one base URL with one token, which is only a placeholder here."""

    def __init__(self, base: str, token: str) -> None:
        self._client = Client(base)
        self._authorization = ("authorization", f"Bearer {token}")

    async def complete(self, request: str, model: str, messages: Messages) -> str:
        """The whole answer. Raises ModelError or ClientError."""
        body = {"model": model, "messages": messages}
        async with self._post(request, body) as response:
            answer = _decode(await response.read())
            if response.status != 200 or answer.error:
                raise _refused(response.status, answer)
            if not answer.choices or answer.choices[0].message.content is None:
                raise _unreadable()
            return answer.choices[0].message.content

    async def stream(
        self, request: str, model: str, messages: Messages
    ) -> AsyncGenerator[str, None]:
        """The answer in pieces. Raises ModelError or ClientError, also in the middle."""
        body = {"model": model, "messages": messages, "stream": True}
        async with self._post(request, body) as response:
            if response.status != 200:
                raise _refused(response.status, _decode(await response.read()))
            async for text in _pieces(response):
                yield text

    def _post(self, request: str, body: object) -> AbstractAsyncContextManager[Response]:
        headers = [self._authorization, ("x-request-id", request)]
        return self._client.post("/chat/completions", headers, msgspec.json.encode(body))

    def close(self) -> None:
        """Close idle connections."""
        self._client.close()


async def _pieces(response: Response) -> AsyncGenerator[str, None]:
    async for data in response.events():
        if data == b"[DONE]":
            async for _ in response.chunks():
                pass  # reach the end of the body, so that the connection can be used again
            return
        answer = _decode(data)
        if answer.error:
            raise _refused(502, answer)
        for choice in answer.choices[:1]:
            if choice.delta.content:
                yield choice.delta.content
    raise ModelError("model_failed", "the model's answer broke off", status=502)


def _decode(data: bytes) -> _Answer:
    try:
        return msgspec.json.decode(data, type=_Answer)
    except (msgspec.DecodeError, RecursionError) as error:
        raise _unreadable() from error


def _refused(status: int, answer: _Answer) -> ModelError:
    problem = answer.error or _Problem()
    code = str(problem.code or "")
    if not re.fullmatch(r"[a-z0-9_]{1,64}", code):
        code = "model_failed"
    message = problem.message[:500] or f"the model answered with HTTP status {status}"
    return ModelError(code, message, status=status if 400 <= status <= 599 else 502)


def _unreadable() -> ModelError:
    return ModelError("model_failed", "the model's answer is not a chat completion", status=502)
