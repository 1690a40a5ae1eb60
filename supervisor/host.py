"""The host file: what is true of this machine, said by its administrator.

Paths, the uid range, the guarantees that are waived by name and why, the gateway's address and the
upstreams. Strict like a policy; a broken host file stops the start.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path

from proxy import providers
from proxy.providers import DEFAULT
from sandbox.addresses import parse_network
from supervisor.policy.document import Document, Table, parse_document, read_document
from supervisor.policy.errors import PolicyErrors
from supervisor.policy.parse import RULE_ID, WORKLOAD
from supervisor.policy.pricing import MONEY, Listed, price

SCHEMA = "anchorhold.host/1"
GUARANTEES = (
    "cgroup:memory", "cgroup:pids", "cgroup:cpu", "cgroup:cpuset", "cgroup:io", "landlock",
    "probes", "seccomp", "userns", "mdwe", "device-filter", "secret-memory", "software-tpm",
    "file-key", "pin-rate-limit", "disk:quota",
)  # fmt: skip
_TABLES = ("paths", "ids", "tpm", "gateway", "probes", "policy")
_ARRAYS = ("waive", "upstream", "price")
_PATH = r"(/[A-Za-z0-9._+@-]+)+"
_HOST = r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?|\[[0-9a-f:]+\]"
_ADDRESS = r"(([0-9]{1,3}\.){3}[0-9]{1,3}|\[[0-9a-f:]+\]):[0-9]{1,5}"
_ORIGIN = r"https?://([a-z0-9.-]+|\[[0-9a-f:]+\])(:[0-9]{1,5})?"
_NETWORK = r"[0-9a-f.:]+(/[0-9]{1,3})?"


@dataclass(frozen=True, slots=True)
class Paths:
    """Directories of the host; `app` holds the packages, `runtime` is a virtual environment."""

    app: str
    runtime: str
    policies: str
    state: str
    run: str


@dataclass(frozen=True, slots=True)
class Waiver:
    """A guarantee that this host gives up, shown as DEGRADED everywhere."""

    guarantee: str
    why: str
    line: int
    owner: str = ""
    expires: date | None = None


@dataclass(frozen=True, slots=True)
class Upstream:
    """A model server: a workload (plain HTTP inside its namespace) or a host (TLS).

    `provider` names its API. `addresses` are the networks that `host` may resolve to although they
    are not public; only a host with such may be spoken to without TLS (`plain`). A `credential` of
    None: it takes no key.
    """

    name: str
    path: str
    credential: str | None
    line: int
    workload: str | None = None
    host: str | None = None
    port: int = 443
    header: str = "authorization"
    prefix: str = "Bearer "
    addresses: tuple[str, ...] = ()
    provider: str = DEFAULT
    plain: bool = False

    @property
    def scheme(self) -> str:
        """http into a workload's namespace and where the host file says so, https elsewhere."""
        return "http" if self.workload or self.plain else "https"


@dataclass(frozen=True, slots=True)
class Tpm:
    """Which TPM, and the PCRs that a new vault is bound to.

    `mode`: "device", "swtpm", or "auto": the device where there is one.
    """

    mode: str = "auto"
    pcrs: tuple[int, ...] = (7,)


@dataclass(frozen=True, slots=True)
class Host:
    """One host file. `denials`: the costlier probe that reports refused calls may be attached.

    `signed`: nothing starts under policies that nobody signed whom the vault trusts.
    """

    file: str
    paths: Paths
    id_base: int
    waivers: tuple[Waiver, ...]
    tpm: Tpm
    listen: str
    origins: tuple[str, ...]
    denials: bool
    signed: bool
    upstreams: tuple[Upstream, ...]
    prices: tuple[Listed, ...] = ()

    def waived(self, today: date) -> frozenset[str]:
        """The guarantees given up and not expired."""
        return frozenset(
            w.guarantee for w in self.waivers if w.expires is None or today <= w.expires
        )

    def upstream(self, name: str) -> Upstream | None:
        """The upstream of that name."""
        return next((u for u in self.upstreams if u.name == name), None)


def load_host(path: Path | str) -> Host:
    """The host file at `path`. Raises PolicyErrors with every mistake and its line."""
    return _host(read_document(Path(path), _TABLES, _ARRAYS))


def parse_host(text: bytes, file: str = "host.toml") -> Host:
    """The host file in `text`. Raises PolicyErrors."""
    return _host(parse_document(text, file, _TABLES, _ARRAYS))


def _host(document: Document) -> Host:
    if document.errors:
        raise PolicyErrors(document.errors)
    top = document.top()
    top.choice("schema", [SCHEMA])
    top.finish()
    host = Host(
        document.file,
        _paths(_need(document, "paths")),
        _ids(document.one("ids")),
        tuple(_waiver(table) for table in document.many("waive")),
        _tpm(document.one("tpm")),
        *_gateway(_need(document, "gateway")),
        _switch(document.one("probes"), "denials"),
        _switch(document.one("policy"), "signed"),
        tuple(_upstream(table) for table in document.many("upstream")),
        tuple(_price(table) for table in document.many("price")),
    )
    for array, key in (("waive", "guarantee"), ("upstream", "name")):
        _unique(document, array, key)
    if document.errors:
        raise PolicyErrors(sorted(document.errors, key=lambda error: error.line))
    return host


def _need(document: Document, name: str) -> Table:
    table = document.one(name)
    if table is None:
        document.fail("missing-key", 1, name, f"[{name}] is missing", f"add a [{name}] table")
        return Table(document, name, {}, 1, {})
    return table


def _paths(table: Table) -> Paths:
    def path(key: str, default: str | None = None) -> str:
        found = table.string(key, _PATH, default, "an absolute path")
        if {".", ".."} & set(found.split("/")):
            table.fail("bad-value", key, f"{found} holds . or ..", "write the plain path")
        return found

    paths = Paths(
        path("app"),
        path("runtime"),
        path("policies"),
        path("state", "/var/lib/anchorhold"),
        path("run", "/run/anchorhold"),
    )
    table.finish()
    return paths


def _ids(table: Table | None) -> int:
    if table is None:
        return 1879050000
    base = table.integer("base", 65536, 0x7FFF_0000)
    table.finish()
    return base


def _waiver(table: Table) -> Waiver:
    guarantee = table.rule = table.choice("guarantee", GUARANTEES)
    waiver = Waiver(
        guarantee,
        table.string("why"),
        table.line,
        table.string("owner", default=""),
        table.day("expires", required=False),
    )
    table.finish()
    return waiver


def _tpm(table: Table | None) -> Tpm:
    if table is None:
        return Tpm()
    mode = table.choice("mode", ("auto", "device", "swtpm"))
    pcrs = table.integers("pcrs", 0, 23, Tpm().pcrs)
    table.finish()
    return Tpm(mode, pcrs)


def _gateway(table: Table) -> tuple[str, tuple[str, ...]]:
    listen = table.string("listen", _ADDRESS, what='an address such as "127.0.0.1:8443"')
    if listen:
        address, _, port = listen.rpartition(":")
        try:
            parse_network(address.strip("[]"))
            valid = 0 < int(port) < 65536
        except ValueError:
            valid = False
        if not valid:
            table.fail("bad-value", "listen", f"{listen} is no address", "write ADDRESS:PORT")
    origins = table.strings("origins", _ORIGIN, what='an origin such as "https://host:8443"')
    table.finish()
    return listen, origins


def _switch(table: Table | None, name: str) -> bool:
    """A table with one key, which is false where it is left out."""
    if table is None:
        return False
    value = table.boolean(name, False)
    table.finish()
    return value


def _upstream(table: Table) -> Upstream:
    name = table.rule = table.string("name", RULE_ID, what="a name in a-z, 0-9 and -")
    if table.has("workload") == table.has("host"):
        table.fail("one-target", "workload", "not one target", "give either workload or host")
    inside = table.has("workload")
    known = providers.load()
    provider = known.get(table.choice("provider", known, providers.DEFAULT)) or known[DEFAULT]
    near = inside or table.has("addresses")
    keyless = near or not provider.header
    credential = table.string(
        "credential", RULE_ID, "" if keyless else None, "the name of a key in the vault"
    )
    scheme = table.choice("scheme", ("http", "https"), "http" if inside else "https")
    if (scheme == "http") != inside and not (scheme == "http" and near):
        fix = "use https, or name the private network in addresses"
        table.fail("bad-value", "scheme", f"{scheme} is not for this upstream", fix)
    upstream = Upstream(
        name,
        table.string("path", r"(/[A-Za-z0-9._-]+)*", provider.base, 'a path such as "/v1"'),
        credential or None,
        table.line,
        table.string("workload", WORKLOAD, what="a workload id") if inside else None,
        None if inside else table.string("host", _HOST, what="a host name"),
        table.integer("port", 1, 65535, None if inside else 443),
        table.string("header", r"[a-z][a-z0-9-]*", provider.header, "a lower-case header name"),
        table.string("prefix", r"([A-Za-z]+ )?", provider.prefix, 'such as "Bearer "'),
        ()
        if inside
        else table.strings("addresses", _NETWORK, False, 'a network such as "192.168.1.0/24"'),
        provider.name,
        scheme == "http" and not inside,
    )
    table.finish()
    return upstream


def _price(table: Table) -> Listed:
    """What models cost at an upstream, per million tokens; goes before our own tables."""
    upstream = table.string("upstream", RULE_ID, what="the name of an [[upstream]]")
    models = table.strings(
        "models", r"[A-Za-z0-9][A-Za-z0-9._:/-]*\*?", what="a name, or its start"
    )
    currency = table.string("currency", r"[A-Z]{3}", what='a currency such as "USD"')
    amounts = {"input": "0", "output": "0"}
    for kind in ("input", "output", "cached", "cache_write"):
        needed = None if kind in amounts else ""
        if amount := table.string(kind, MONEY.pattern, needed, 'an amount such as "0.15"'):
            amounts[kind] = amount
    table.finish()
    return Listed((upstream,), models, price(currency, amounts))


def _unique(document: Document, array: str, key: str) -> None:
    seen: dict[object, int] = {}
    for table in document.many(array):
        value = table.values.get(key)
        if isinstance(value, str) and seen.setdefault(value, table.at(key)) != table.at(key):
            table.fail("duplicate-id", key, f"{value} stands twice", f"first at line {seen[value]}")
