"""The egress proxy's configuration: strict JSON from the policy compiler, as frozen data."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal, TypeVar, get_args

from proxy.errors import ConfigError
from proxy.providers import DEFAULT, FAMILIES, Place, names

from .budget import UNITS, WINDOWS, Budget
from .forward.destination import Destination
from .usage import Price

CA_FILE = "/etc/ssl/certs/ca-certificates.crt"
_PLACEHOLDER = re.compile(r"anchorhold-placeholder-[0-9a-f]{32}")
_HOST = re.compile(r"[A-Za-z0-9.:-]{1,253}")
_PATH = re.compile(r"(?:/[A-Za-z0-9._~-]+)*")
_HEADER = re.compile(r"[a-z0-9-]{1,64}")
_T = TypeVar("_T")
Action = Literal["allow", "pseudonymise", "mask", "block"]  # from the mildest to the strictest


@dataclass(frozen=True, slots=True)
class Upstream:
    """One declared model server. `target` is what the broker is asked to dial."""

    name: str
    scheme: str
    host: str
    port: int
    path: str
    target: str
    credential: str | None
    header: str
    prefix: str
    provider: str = DEFAULT


@dataclass(frozen=True, slots=True)
class Grant:
    """The permission to use one model: which upstream, and the policy rule that says so.

    `routes`: families of routes without a model that go with it, such as "files".
    """

    name: str
    upstream: str
    rule: str
    line: int
    redact: str
    price: Price | None = None
    routes: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Redaction:
    """One [[redact]] block: what becomes of a class (`group`) of rules, or of one `rule`.

    `restore`: where placeholders are put back; after the day `expires` the block has no effect.
    """

    id: str
    line: int
    group: str | None
    rule: str | None
    action: Action
    restore: frozenset[Place]
    expires: date | None


@dataclass(frozen=True, slots=True)
class Workload:
    """What one workload may do. Sizes in bytes, `timeout` in seconds."""

    id: str
    placeholder: str
    digest: str
    file: str
    models: dict[str, Grant]
    body_max: int
    concurrent: int
    timeout: float
    redact: tuple[Redaction, ...] = ()
    budgets: tuple[Budget, ...] = ()
    net: tuple[Destination, ...] = ()

    def rule(self, grant: Grant | Destination | None) -> dict[str, object] | None:
        """Return the audit record's `rule` object, None where no rule decided."""
        if grant is None:
            return None
        return {"file": self.file, "id": grant.rule, "line": grant.line, "digest": self.digest}


@dataclass(frozen=True, slots=True)
class Config:
    """Everything the proxy is told at launch. `ca_file` holds the trust anchors for TLS.

    `state` is the directory that outlives the process, None where it has none.
    """

    upstreams: dict[str, Upstream]
    workloads: dict[str, Workload]
    ca_file: str = CA_FILE
    state: str | None = None


def own_rules(data: bytes) -> dict[str, str]:
    """Return the texts of the host's own rule files by name, out of the configuration."""
    texts: dict[str, Any] = _is(_top(data).get("rules", {}), dict, "rules")
    return {name: _is(text, str, f"rules.{name}") for name, text in texts.items()}


def parse(data: bytes, redact_classes: frozenset[str]) -> Config:
    """Parse and check the configuration; ConfigError names the field that is wrong."""
    top = _top(data)
    upstreams = _each(top["upstreams"], "upstreams", _upstream)
    workloads = _each(top["workloads"], "workloads", _workload)
    for workload in workloads.values():
        for grant in workload.models.values():
            where = f"workloads.{workload.id}.models.{grant.name}"
            if grant.upstream not in upstreams:
                raise ConfigError(f"{where}: no upstream is called {grant.upstream}.")
            if grant.redact not in redact_classes:
                known = ", ".join(sorted(redact_classes))
                raise ConfigError(f"{where}: redact is one of {known}, not {grant.redact}.")
    placeholders = [workload.placeholder for workload in workloads.values()]
    if len(set(placeholders)) != len(placeholders):
        raise ConfigError("workloads: two workloads share one placeholder.")
    ca_file = top.get("ca_file", CA_FILE)
    state = top.get("state")
    if state is not None:
        _is(state, str, "state")
    return Config(upstreams, workloads, _is(ca_file, str, "ca_file"), state)


def _top(data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except ValueError as error:
        raise ConfigError(f"The configuration is not JSON: {error}.") from None
    return _fields(document, "", {"upstreams", "workloads"}, {"ca_file", "state", "rules"})


def _upstream(name: str, value: object, at: str) -> Upstream:
    needed = {"scheme", "host", "port", "path", "target", "credential", "header", "prefix"}
    field = _fields(value, at, needed, {"provider"})
    provider = field.get("provider", DEFAULT)
    if provider not in names():
        raise ConfigError(f"{at}.provider is one of {', '.join(names())}.")
    if field["scheme"] not in ("http", "https"):
        raise ConfigError(f"{at}.scheme is http or https.")
    credential = field["credential"]
    if credential is not None:
        _is(credential, str, f"{at}.credential")
    prefix = _is(field["prefix"], str, f"{at}.prefix")
    if not prefix.isascii() or (prefix and not prefix.isprintable()):
        raise ConfigError(f"{at}.prefix is not printable ASCII.")
    return Upstream(
        name=name,
        scheme=field["scheme"],
        host=_like(field["host"], _HOST, f"{at}.host"),
        port=_between(field["port"], 1, 65535, f"{at}.port"),
        path=_like(field["path"], _PATH, f"{at}.path"),
        target=_is(field["target"], str, f"{at}.target"),
        credential=credential,
        header=_like(field["header"], _HEADER, f"{at}.header") if credential else "",
        prefix=prefix,
        provider=provider,
    )


def _workload(name: str, value: object, at: str) -> Workload:
    needed = {"placeholder", "digest", "file", "models", "body_max", "concurrent", "timeout"}
    field = _fields(value, at, needed, {"redact", "budgets", "net"})
    grants: dict[str, Grant] = {}
    for index, item in enumerate(_is(field["models"], list, f"{at}.models")):
        grant = _grant(item, f"{at}.models[{index}]")
        if grant.name in grants:
            raise ConfigError(f"{at}.models names {grant.name} twice.")
        grants[grant.name] = grant
    timeout = field["timeout"]
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout <= 3600:
        raise ConfigError(f"{at}.timeout is a number of seconds up to 3600.")
    return Workload(
        id=name,
        placeholder=_like(field["placeholder"], _PLACEHOLDER, f"{at}.placeholder"),
        digest=_is(field["digest"], str, f"{at}.digest"),
        file=_is(field["file"], str, f"{at}.file"),
        models=grants,
        body_max=_between(field["body_max"], 1, 64 * 1024 * 1024, f"{at}.body_max"),
        concurrent=_between(field["concurrent"], 1, 1024, f"{at}.concurrent"),
        timeout=float(timeout),
        redact=tuple(
            _redaction(item, f"{at}.redact[{index}]")
            for index, item in enumerate(_is(field.get("redact", []), list, f"{at}.redact"))
        ),
        budgets=_budgets(field.get("budgets", []), f"{at}.budgets", grants),
        net=tuple(
            _destination(item, f"{at}.net[{index}]")
            for index, item in enumerate(_is(field.get("net", []), list, f"{at}.net"))
        ),
    )


def _destination(value: object, at: str) -> Destination:
    texts = ("rule", "host", "path", "prefix", "redact", "target")
    needed = {"line", "port", "methods", "credential", "header", "websocket", "ask", "hold", "time"}
    field = _fields(value, at, {*texts, *needed})
    methods: list[Any] = _is(field["methods"], list, f"{at}.methods")
    credential = field["credential"]
    for flag in ("websocket", "ask"):
        if not isinstance(field[flag], bool):
            raise ConfigError(f"{at}.{flag} is true or false.")
    return Destination(
        **{name: _is(field[name], str, f"{at}.{name}") for name in texts},
        line=_between(field["line"], 1, 1_000_000, f"{at}.line"),
        port=_between(field["port"], 1, 65535, f"{at}.port"),
        methods=frozenset(_is(method, str, f"{at}.methods") for method in methods),
        credential=None if credential is None else _is(credential, str, f"{at}.credential"),
        header=_like(field["header"], _HEADER, f"{at}.header"),
        websocket=field["websocket"],
        ask=field["ask"],
        hold=float(_between(field["hold"], 0, 600, f"{at}.hold")),
        time=float(_between(field["time"], 0, 86_400, f"{at}.time")),
    )


def _budgets(value: object, at: str, grants: dict[str, Grant]) -> tuple[Budget, ...]:
    items: list[object] = _is(value, list, at)
    found = tuple(_budget(item, f"{at}[{number}]") for number, item in enumerate(items))
    for number, budget in enumerate(found):
        where = f"{at}[{number}]"
        if unknown := budget.models - grants.keys():
            raise ConfigError(f"{where}: no model is called {min(unknown)}.")
        for grant in grants.values():
            counted = budget.unit == "money" and budget.covers(grant.name)
            if counted and (grant.price is None or grant.price.currency != budget.currency):
                raise ConfigError(f"{where}: {grant.name} has no price in {budget.currency}.")
    if len({(budget.id, budget.unit) for budget in found}) != len(found):
        raise ConfigError(f"{at}: two budgets of one id count the same unit.")
    return found


def _budget(value: object, at: str) -> Budget:
    needed = {"id", "line", "unit", "limit", "window", "models", "currency"}
    field = _fields(value, at, needed)
    for name, known in (("unit", UNITS), ("window", WINDOWS)):
        if field[name] not in known:
            raise ConfigError(f"{at}.{name} is one of {', '.join(known)}.")
    models: list[Any] = _is(field["models"], list, f"{at}.models")
    return Budget(
        id=_is(field["id"], str, f"{at}.id"),
        line=_between(field["line"], 1, 1_000_000, f"{at}.line"),
        unit=field["unit"],
        limit=_between(field["limit"], 0, 1 << 62, f"{at}.limit"),
        window=field["window"],
        models=frozenset(_is(name, str, f"{at}.models") for name in models),
        currency=_is(field["currency"], str, f"{at}.currency"),
    )


def _price(value: object, at: str) -> Price:
    kinds = ("input", "output", "cached", "cache_write")
    field = _fields(value, at, {"currency", *kinds})
    numbers = {kind: _between(field[kind], 0, 1 << 40, f"{at}.{kind}") for kind in kinds}
    return Price(currency=_is(field["currency"], str, f"{at}.currency"), **numbers)


def _grant(value: object, at: str) -> Grant:
    needed = {"name", "upstream", "rule", "line", "redact"}
    field = _fields(value, at, needed, {"price", "routes"})
    price = field.get("price")
    routes = _is(field.get("routes", []), list, f"{at}.routes")
    if any(route not in FAMILIES for route in routes):
        raise ConfigError(f"{at}.routes are of {', '.join(FAMILIES)}.")
    return Grant(
        name=_is(field["name"], str, f"{at}.name"),
        upstream=_is(field["upstream"], str, f"{at}.upstream"),
        rule=_is(field["rule"], str, f"{at}.rule"),
        line=_between(field["line"], 1, 1_000_000, f"{at}.line"),
        redact=_is(field["redact"], str, f"{at}.redact"),
        price=None if price is None else _price(price, f"{at}.price"),
        routes=frozenset(routes),
    )


def _redaction(value: object, at: str) -> Redaction:
    needed, optional = {"id", "line", "action", "restore"}, {"class", "rule", "expires"}
    field = _fields(value, at, needed, optional)
    if ("class" in field) == ("rule" in field):
        raise ConfigError(f"{at} names either a class or a rule.")
    restore = _is(field["restore"], list, f"{at}.restore")
    places = get_args(Place)
    if field["action"] not in get_args(Action) or any(place not in places for place in restore):
        raise ConfigError(f"{at} has an unknown action or place.")
    expires = None
    if "expires" in field:
        try:
            expires = date.fromisoformat(_is(field["expires"], str, f"{at}.expires"))
        except ValueError:
            raise ConfigError(f"{at}.expires is not a date.") from None
    elif field["action"] == "allow":
        raise ConfigError(f"{at} allows something without saying until when.")
    return Redaction(
        id=_is(field["id"], str, f"{at}.id"),
        line=_between(field["line"], 1, 1_000_000, f"{at}.line"),
        group=_is(field["class"], str, f"{at}.class") if "class" in field else None,
        rule=_is(field["rule"], str, f"{at}.rule") if "rule" in field else None,
        action=field["action"],
        restore=frozenset(restore),
        expires=expires,
    )


def _each(value: object, at: str, build: Callable[[str, object, str], _T]) -> dict[str, _T]:
    table: dict[str, Any] = _is(value, dict, at)
    return {name: build(name, item, f"{at}.{name}") for name, item in table.items()}


def _fields(
    value: object, at: str, needed: set[str], optional: set[str] | None = None
) -> dict[str, Any]:
    table: dict[str, Any] = _is(value, dict, at or "the document")
    for name in sorted(needed - table.keys()):
        raise ConfigError(f"{at or 'the document'} lacks {name}.")
    for name in sorted(table.keys() - needed - (optional or set())):
        raise ConfigError(f"{at or 'the document'} has the unknown field {name}.")
    return table


def _is(value: object, kind: type[_T], at: str) -> _T:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ConfigError(f"{at} is not a {kind.__name__}.")
    return value


def _like(value: object, pattern: re.Pattern[str], at: str) -> str:
    text = _is(value, str, at)
    if not pattern.fullmatch(text):
        raise ConfigError(f"{at} does not have the form {pattern.pattern}.")
    return text


def _between(value: object, low: int, high: int, at: str) -> int:
    number = _is(value, int, at)
    if not low <= number <= high:
        raise ConfigError(f"{at} lies outside {low} to {high}.")
    return number
