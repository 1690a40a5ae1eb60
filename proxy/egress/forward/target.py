"""The absolute URI of a proxied request (RFC 9112, section 3.2.2), strict where others guess."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

from proxy.egress.errors import Refusal

from .destination import host_name

_FORM = re.compile(rb"(https?)://([A-Za-z0-9.-]{1,253})(?::([0-9]{1,5}))?(/[!-~]*)?", re.ASCII)
_DOTS = re.compile(r"(?:^|[/\\])\.{1,2}(?:[/\\;]|$)")


@dataclass(frozen=True, slots=True)
class Target:
    """Where a request goes; `path` and `query` as written, the query without its mark."""

    host: str
    port: int
    tls: bool
    path: str
    query: str

    @property
    def authority(self) -> str:
        """The Host header."""
        usual = 443 if self.tls else 80
        return self.host if self.port == usual else f"{self.host}:{self.port}"


def parse(raw: bytes) -> Target:
    """Return the target; `http://host:443/` means TLS, which the proxy speaks.

    Raises Refusal for anything but a plain host name, a port and a path without tricks: no user,
    no fragment, no dot segments, however they are escaped, and no backslash.
    """
    match = _FORM.fullmatch(raw)
    host = host_name(match[2].decode("ascii")) if match else None
    if match is None or host is None:
        raise _refused("An absolute URI with a host name is needed.")
    port = int(match[3] or (443 if match[1] == b"https" else 80))
    if not 0 < port < 65536:
        raise _refused("The port is none.")
    path, _, query = (match[4] or b"/").decode("ascii").partition("?")
    plain = path
    for _ in range(3):  # escaped once more than anybody unescapes
        if _DOTS.search(plain) or "\\" in plain or "#" in plain or "\0" in plain:
            raise _refused("The path holds . or .. or a backslash.")
        plain = unquote(plain)
    if "#" in query:
        raise _refused("A fragment is not for servers.")
    return Target(host, port, match[1] == b"https" or port == 443, path, query)


def _refused(message: str) -> Refusal:
    return Refusal("proxy_request_invalid", message)
