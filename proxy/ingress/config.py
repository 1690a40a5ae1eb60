"""The gateway's configuration: strict JSON from the supervisor, checked once at start."""

from __future__ import annotations

import re
from typing import Annotated

import msgspec

from ..errors import ConfigError

_Positive = Annotated[int, msgspec.Meta(gt=0)]
_Seconds = Annotated[float, msgspec.Meta(gt=0)]
_Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{1,64}\Z")]
_ORIGIN = re.compile(r"(https?)://([a-z0-9.-]+|\[[0-9a-f:]+\])(?::([1-9][0-9]{0,4}))?")
_TARGET = re.compile(r"workload\.(?P<workload>[a-z0-9.-]+):(?P<port>[1-9][0-9]{0,4})")


class Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A public key that may sign tokens: its id and the raw Ed25519 key in base64url."""

    kid: _Name
    x: str


class Route(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One protocol: which workload serves it, its limit, and the policy rule that says so."""

    protocol: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9-]{1,32}\Z")]
    workload: str
    target: str
    body_max: _Positive
    upgrade: bool
    file: str
    rule: str
    line: int
    digest: str

    @property
    def host(self) -> bytes:
        """The Host header the adapter sees: its own loopback address, never the client's."""
        return b"127.0.0.1:" + self.target.rpartition(":")[2].encode("ascii")


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sizes in bytes, times in seconds.

    `head_timeout` is for a whole head, `body_timeout` for a whole request body, `idle_timeout` for
    one silent read or blocked write of a client, `answer_timeout` for one silence of an adapter,
    `websocket_idle` for silence in both directions. `client_rate` is requests per second and client
    (None: no limit), with bursts of `client_burst`; `token_lifetime` is the longest exp - iat.
    In a full gateway an address gives up places held without a token beyond `unproven` (None: half
    of `connections`).
    """

    head_max: Annotated[int, msgspec.Meta(ge=512, le=65536)]
    head_timeout: _Seconds
    idle_timeout: _Seconds
    connections: _Positive
    body_timeout: _Seconds = 120.0
    answer_timeout: _Seconds = 180.0
    websocket_idle: _Seconds = 900.0
    client_concurrent: _Positive = 32
    client_rate: _Seconds | None = None
    client_burst: _Positive = 20
    token_lifetime: _Positive = 366 * 86400
    unproven: _Positive | None = None


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything the gateway knows. It holds no secret."""

    audience_prefix: str
    issuer: Annotated[str, msgspec.Meta(min_length=1)]
    origins: list[str]
    keys: list[Key]
    routes: list[Route]
    limits: Limits

    def hosts(self) -> frozenset[bytes]:
        """The Host headers that mean this gateway: the origins' authorities, in lower case."""
        found = set()
        for origin in self.origins:
            scheme, _, authority = origin.partition("://")
            found.add(authority)
            default = ":443" if scheme == "https" else ":80"
            if not _ORIGIN.fullmatch(origin).group(3):  # type: ignore[union-attr]  # parse() checked
                found.add(authority + default)
        return frozenset(host.encode("ascii") for host in found)


def parse(data: bytes) -> Config:
    """Read and check the configuration; ConfigError says which field is wrong and why."""
    try:
        config = msgspec.json.decode(data, type=Config)
    except msgspec.DecodeError as error:
        raise ConfigError(f"The gateway's configuration is not accepted: {error}.") from None
    for index, origin in enumerate(config.origins):
        if not _ORIGIN.fullmatch(origin):
            raise ConfigError(f"origins[{index}] is not scheme://host[:port] in lower case.")
    for index, route in enumerate(config.routes):
        target = _TARGET.fullmatch(route.target)
        if not target or target["workload"] != route.workload or int(target["port"]) > 65535:
            raise ConfigError(f"routes[{index}].target is not workload.{route.workload}:PORT.")
    _distinct("keys[].kid", [key.kid for key in config.keys])
    _distinct("routes[].protocol", [route.protocol for route in config.routes])
    return config


def _distinct(field: str, names: list[str]) -> None:
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ConfigError(f"{field} has {sorted(twice)[0]!r} more than once.")
