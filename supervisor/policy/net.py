"""`net` rules: hosts outside that a workload reaches through the egress proxy, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from supervisor.policy.document import Table
from supervisor.policy.model import Net, Policy, Rule

if TYPE_CHECKING:
    from supervisor.host import Host
    from supervisor.policy.plans import CompiledPolicy

MODEL_PORT, PORT = 8100, 8101  # of the proxy in the workload's namespace
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_NAME = r"([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])?"
HOST_NAME = re.compile(rf"(?=.{{1,253}}\Z){_NAME}")
_HOST = rf"\*|(\*\.)?{_NAME}"
_PATH = r"/([A-Za-z0-9._~:@+-]|\{credential\}|/)*(/\*\*)?"
_SECONDS = {"s": 1, "m": 60, "h": 3600}
_ASKED = {"time": ("5m", 86_400), "hold": ("60s", 600)}  # default, and seconds at most


def parse_net(table: Table) -> Net | None:
    """The rule's table; mistakes are recorded in its document."""
    if (inner := table.table("net")) is None:
        return None
    what = 'a host name, "*.domain", or "*" with ask = true'
    host = inner.string("host", _HOST, what=what)
    path = inner.string("path", _PATH, "", 'a path, or one that ends in "/**"')
    credential = inner.string("credential", r"[a-z][a-z0-9-]{0,62}", "", "a key of the vault")
    ask = inner.boolean("ask", False)
    seconds = {key: _seconds(inner, key) for key in _ASKED if ask}
    net = Net(
        host,
        inner.integer("port", 1, 65535, 443),
        tuple(sorted(inner.words("methods", METHODS, required=False))),
        path,
        credential,
        inner.string("header", r"[a-z][a-z0-9-]{0,63}", "authorization", "a lower-case header"),
        inner.string("prefix", r"([A-Za-z]+ )?", "Bearer ", 'such as "Bearer "'),
        inner.choice("websocket", ("inspect", "refuse"), "refuse"),
        ask,
        seconds.get("hold", 0),
        seconds.get("time", 0),
    )
    inner.finish()
    if net.host == "*" and not ask:
        inner.fail("bad-value", "host", "every host is allowed", "add ask = true, or name hosts")
    if ask and (credential or path or net.methods):
        fix = "give methods, path and credential to rules that name their host"
        inner.fail("bad-value", "ask", "what is asked for is a host and a port only", fix)
    if "{credential}" in path and not credential:
        fix = 'add credential = "NAME", the name of the key in the vault'
        inner.fail("bad-value", "path", "the path has {credential}, the rule has none", fix)
    if path.count("{credential}") > 1 or ".." in path.split("/") or "." in path.split("/"):
        inner.fail("bad-value", "path", f"{path!r} is no plain path", "write it without . or ..")
    if credential and net.port != 443:
        inner.fail("bad-value", "port", "a key goes over TLS only", "use port 443")
    if net.websocket == "inspect" and net.methods and "GET" not in net.methods:
        inner.fail("bad-value", "methods", "a WebSocket begins with GET", "add GET")
    return net


def net_entries(
    policy: Policy,
    rules: Iterable[tuple[Rule, Net]],
    host: Host,
    fail: Callable[[Rule, str, str, str], None],
) -> list[dict[str, Any]]:
    """What the egress proxy is told of the rules.

    A model's host has its own way, on which it is counted and redacted: no net rule leads there.
    """
    entries = []
    for rule, net in rules:
        for upstream in host.upstreams:
            if upstream.host and net.host != "*" and reaches(net.host, upstream.host):
                message = f"{net.host} reaches {upstream.host}, host of upstream {upstream.name}"
                fail(rule, "model-host", message, "use a model rule for it")
        entries.append(_entry(policy, rule, net))
    return entries


def net_environment(egress: dict[str, Any] | None) -> tuple[tuple[str, str], ...]:
    """What tells clients of the proxy; some know one way of writing it, some the other."""
    if not egress or not egress["net"]:
        return ()
    proxy, direct = f"http://127.0.0.1:{PORT}", "127.0.0.1,localhost"
    names = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")
    return (*((name, proxy) for name in names), ("NO_PROXY", direct), ("no_proxy", direct))


def egress_ports(egress: dict[str, Any] | None) -> tuple[int, ...]:
    """The proxy's ports that a workload may connect to."""
    ways = ((MODEL_PORT, "models"), (PORT, "net"))
    return tuple(port for port, way in ways if egress and egress[way])


def _entry(policy: Policy, rule: Rule, net: Net) -> dict[str, Any]:
    return {
        "rule": rule.id,
        "line": rule.line,
        "host": net.host,
        "port": net.port,
        "methods": list(net.methods),
        "path": net.path,
        "credential": net.credential or None,
        "header": net.header,
        "prefix": net.prefix,
        "redact": "standard",
        "websocket": net.websocket == "inspect",
        "ask": net.ask,
        "hold": net.hold,
        "time": net.time,
        "target": f"net.{policy.id}.{rule.id}",
    }


def asked(compiled: CompiledPolicy, host: str, port: int) -> dict[str, Any] | None:
    """The entry of the rule by which the operator may allow `host`; None where there is none."""
    for entry in (compiled.egress or {}).get("net", ()):
        if entry["ask"] and entry["port"] == port and reaches(entry["host"], host):
            return dict(entry)
    return None


def reaches(pattern: str, host: str) -> bool:
    """Whether the host of a net rule, which may be a pattern, holds `host`."""
    return pattern == "*" or host == pattern or (pattern[:2] == "*." and host.endswith(pattern[1:]))


def _seconds(table: Table, key: str) -> int:
    default, most = _ASKED[key]
    text = table.string(key, r"[1-9][0-9]{0,4}[smh]", default, f'a time such as "{default}"')
    seconds = int(text[:-1]) * _SECONDS[text[-1]] if text else 0
    if seconds > most:
        table.fail("out-of-range", key, f"{text} is too long", f"use at most {most} s")
    return seconds
