"""The provider files: strict TOML into frozen data, all or nothing.

A provider is an API as its clients know it: which routes exist, where the key and the model stand,
what its streams look like, what must survive byte for byte. What no file declares does not exist.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from proxy.errors import ProxyError

FOLDER = Path(__file__).resolve().parent
DEFAULT = "openai-compatible"
SHAPES = ("openai", "anthropic", "gemini", "ollama")
REQUESTS = ("none", "json", "multipart")
FAMILIES = ("files", "batches", "stored")
Steps = tuple[str, ...]
Place = Literal["text", "tool-arguments"]  # where a policy may have placeholders put back
_ROLES_MAX = 4096
_SEGMENT = {
    "model": r"[A-Za-z0-9][A-Za-z0-9._:-]{0,199}",
    "id": r"[A-Za-z0-9_-][A-Za-z0-9._:-]{0,199}",
}
_PATH = re.compile(r"(?:/(?:[A-Za-z0-9_.-]+|\{(?:model|id)\}(?::[A-Za-z]+)?))+")
_NAME = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
_BASE = re.compile(r"(?:/[a-z0-9]+)*")
_HEADER = re.compile(r"[a-z0-9-]+\*?")
_TYPE = re.compile(r"[a-z]+/(?:[a-z0-9.+-]+|\*)")


class ProvidersInvalid(ProxyError):  # reads as a sentence where it is raised
    """A provider file is wrong; the proxy does not start with half its routes."""

    code = "providers_invalid"
    fix = "Correct the provider file named."


@dataclass(frozen=True, slots=True)
class StreamKind:
    """How one kind of stream brings a text in pieces.

    Paths such as ``choices.*.delta.**``: ``*`` is any field, or an element of a list, told apart by
    its ``index`` (or its position); ``**`` is every string below.

    `type` is the field that names an event's kind; `pieces`, `done` and `final` are such names (a
    leading ``*`` stands for anything): events with pieces, at `text`, told apart by the fields
    `by`; events that end the channels of the same `by`; and events that end all. Without `type`
    every event has pieces, and a value at `end` ends the channels of its element, or all.
    `named`: the events have names, and these are their types. `arguments`: pieces that are JSON,
    as they all are in events whose * is one of `arguments_of`. `keep`: fields that an event of our
    own repeats. `sequence`: the field that counts the events. `repeats`: later events hold whole
    texts once more. `signed`: names of a text and of the signature over it.
    """

    named: bool = False
    type: str = ""
    pieces: tuple[str, ...] = ()
    text: tuple[Steps, ...] = ()
    by: tuple[str, ...] = ()
    done: tuple[str, ...] = ()
    final: tuple[str, ...] = ()
    end: Steps = ()
    arguments: tuple[Steps, ...] = ()
    arguments_of: tuple[str, ...] = ()
    keep: frozenset[str] = frozenset()
    sequence: str = ""
    repeats: bool = False
    signed: tuple[str, str] | None = None
    _roles: dict[Steps, str] = field(default_factory=dict, compare=False, repr=False)

    def role(self, path: Steps) -> str:
        """What stands at `path`: "text", "arguments", "inner" with such further down, "whole"."""
        role = self._roles.get(path)
        if role is None:
            role = self._role(path)
            if len(self._roles) < _ROLES_MAX:
                self._roles[path] = role
        return role

    def _role(self, path: Steps) -> str:
        if path in self.arguments:
            return "arguments"
        inner = False
        for steps in self.text:
            stem = steps[:-1] if steps[-1] == "**" else steps
            if len(path) < len(stem) or (len(path) == len(stem) < len(steps)):
                inner = inner or all(s in (p, "*") for s, p in zip(stem, path, strict=False))
            elif all(s in (p, "*") for s, p in zip(stem, path, strict=False)) and (
                len(path) == len(steps) or steps[-1] == "**"
            ):
                return "text"
        return "inner" if inner else "whole"

    @staticmethod
    def stem(names: tuple[str, ...], name: str) -> str | None:
        """What a leading * of the name that matches stands for, "" without one; None: no match."""
        for known in names:
            if known == name:
                return ""
            if known[0] == "*" and name.endswith(known[1:]):
                return name[: len(name) - len(known) + 1]
        return None


@dataclass(frozen=True, slots=True)
class Route:
    """One method and path; `path` is below the provider's base.

    `model`: "body" (a field of that name), "path", or "" for a route without one, which then needs
    the policy's word for its `family`. `lists`: fields of the body that must be lists.
    `responses`: media types that may come back. `local`: answered from the policy, not by the
    upstream: "models" or "model".
    """

    method: str
    path: str
    request: str = "none"
    responses: frozenset[str] = frozenset({"application/json"})
    model: str = ""
    family: str = ""
    local: str = ""
    lists: tuple[str, ...] = ()
    bound: Steps = ()
    query: frozenset[str] = frozenset()
    stream: StreamKind | None = None

    def pattern(self) -> re.Pattern[bytes]:
        """The expression for the raw path, below whatever stands in front of it."""
        parts = re.split(r"\{(\w+)\}", self.path)
        text = "".join(
            f"(?P<{part}>{_SEGMENT[part]})" if n % 2 else re.escape(part)
            for n, part in enumerate(parts)
        )
        return re.compile(text.encode("ascii"))

    def filled(self, values: dict[str, str]) -> str:
        """The path with its segments' values in place."""
        return re.sub(r"\{(\w+)\}", lambda found: values[found[1]], self.path)


@dataclass(frozen=True, slots=True)
class Provider:
    """One API. `header` and `prefix` say where its key goes; `accepts` where its clients put it.

    `usage`: where an answer or an event reports the tokens used; the empty path is the whole of it.
    `opaque`: keys of fields that pass byte for byte. `refused`: fields of a request, and `dropped`
    of a response, that hold a text in a form that cannot be masked. `signed`: keys of signatures,
    with the key of the text beside each. `places`: what a policy may have placeholders put back in,
    by the key of the field. `also`: other bases that clients ask under; upstream it is `base`.
    """

    name: str
    base: str
    shape: str
    routes: tuple[Route, ...]
    usage: tuple[Steps, ...]
    header: str = ""
    prefix: str = ""
    accepts: tuple[str, ...] = ()
    request_headers: frozenset[str] = frozenset()
    response_headers: tuple[str, ...] = ()
    opaque: frozenset[str] = frozenset()
    refused: tuple[str, ...] = ()
    dropped: frozenset[str] = frozenset()
    signed: dict[str, str] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    key_variable: str = ""
    url_variable: str = ""
    url_path: str = ""
    also: tuple[str, ...] = ()
    passed: re.Pattern[str] = field(default=re.compile(r"(?!)"), compare=False)


def load(folder: Path = FOLDER) -> dict[str, Provider]:
    """Read every ``*.toml`` of `folder`; raises ProvidersInvalid with the file and the field."""
    found = {}
    for path in sorted(folder.glob("*.toml")):
        try:
            document = tomllib.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise ProvidersInvalid(f"{path.name}: {error}.") from None
        found[path.stem] = _provider(path.stem, _Table(document, path.name))
    if DEFAULT not in found:
        raise ProvidersInvalid(f"{folder}: there is no {DEFAULT}.toml.")
    return found


def names(folder: Path = FOLDER) -> tuple[str, ...]:
    """The names of the providers there are, without reading their files."""
    return tuple(sorted(path.stem for path in folder.glob("*.toml")))


class _Table:
    """A TOML table that is taken field by field; what nobody took is a mistake."""

    def __init__(self, values: object, at: str) -> None:
        if not isinstance(values, dict):
            raise ProvidersInvalid(f"{at} is not a table.")
        self._values: dict[str, Any] = dict(values)
        self.at = at

    def take(self, name: str, kind: type, default: Any = None) -> Any:
        value = self._values.pop(name, default)
        if value is None or not isinstance(value, kind):
            raise ProvidersInvalid(f"{self.at}: {name} is missing or not a {kind.__name__}.")
        return value

    def text(self, name: str, form: re.Pattern[str], default: str | None = None) -> str:
        value = self.take(name, str, default)
        if value != default and not form.fullmatch(value):
            raise ProvidersInvalid(f"{self.at}: {name} is not of the form {form.pattern}.")
        return str(value)

    def texts(self, name: str, form: re.Pattern[str] | None = None) -> tuple[str, ...]:
        values = self.take(name, list, [])
        for value in values:
            if not isinstance(value, str) or (form and not form.fullmatch(value)):
                raise ProvidersInvalid(f"{self.at}: {name} holds what is not of its form.")
        return tuple(values)

    def one_of(self, name: str, choices: tuple[str, ...], default: str | None = None) -> str:
        value = str(self.take(name, str, default))
        if value not in (*choices, default):
            raise ProvidersInvalid(f"{self.at}: {name} is one of {', '.join(choices)}.")
        return value

    def paths(self, name: str) -> tuple[Steps, ...]:
        return tuple(tuple(filter(None, path.split("."))) for path in self.texts(name))

    def table(self, name: str) -> _Table:
        return _Table(self._values.pop(name, {}), f"{self.at}: {name}")

    def tables(self, name: str) -> list[_Table]:
        values = self.take(name, list, [])
        return [_Table(value, f"{self.at}: {name} {n}") for n, value in enumerate(values, 1)]

    def rest(self) -> list[str]:
        return list(self._values)

    def finish(self) -> None:
        for name in self._values:
            raise ProvidersInvalid(f"{self.at}: unknown field {name}.")


def _provider(name: str, top: _Table) -> Provider:
    if not _NAME.fullmatch(name):
        raise ProvidersInvalid(f"{top.at}: the file's name is not of the form {_NAME.pattern}.")
    streams_table = top.table("stream")
    streams = {kind: _stream(streams_table.table(kind)) for kind in streams_table.rest()}
    key, client = top.table("key"), top.table("client")
    signed, places = top.table("signed"), top.table("places")
    back = top.texts("response_headers", _HEADER)
    any_text = re.compile(r".*")
    provider = Provider(
        name=name,
        base=top.text("base", _BASE),
        shape=top.one_of("shape", SHAPES),
        routes=tuple(_route(table, streams) for table in top.tables("route")),
        usage=top.paths("usage"),
        header=key.text("header", _HEADER, ""),
        prefix=key.text("prefix", any_text, ""),
        accepts=key.texts("accepts", _HEADER),
        request_headers=frozenset(top.texts("request_headers", _HEADER)),
        response_headers=back,
        opaque=frozenset(top.texts("opaque")),
        refused=top.texts("refused"),
        dropped=frozenset(top.texts("dropped")),
        signed={name: signed.text(name, any_text) for name in signed.rest()},
        places={name: _place(places, name) for name in places.rest()},
        key_variable=client.text("key_variable", any_text, ""),
        url_variable=client.text("url_variable", any_text, ""),
        url_path=client.text("url_path", any_text, ""),
        also=client.texts("also", _BASE),
        passed=re.compile("|".join(re.escape(h).replace(r"\*", "[a-z0-9-]{1,60}") for h in back)
                          or r"(?!)"),
    )  # fmt: skip
    for table in (key, client, signed, places, top):
        table.finish()
    if not provider.routes:
        raise ProvidersInvalid(f"{top.at}: there is no route.")
    return provider


def _place(table: _Table, name: str) -> Place:
    found: Place = "text" if table.one_of(name, get_args(Place)) == "text" else "tool-arguments"
    return found


def _route(table: _Table, streams: dict[str, StreamKind]) -> Route:
    kind = table.take("stream", str, "")
    if kind and kind not in streams:
        raise ProvidersInvalid(f"{table.at}: no stream is called {kind}.")
    responses = table.texts("responses", _TYPE)
    route = Route(
        method=table.one_of("method", ("GET", "POST", "DELETE")),
        path=table.text("path", _PATH),
        request=table.one_of("request", REQUESTS, "none"),
        responses=frozenset(responses or ("application/json",)),
        model=table.one_of("model", ("body", "path"), ""),
        family=table.one_of("family", FAMILIES, ""),
        local=table.one_of("local", ("models", "model"), ""),
        lists=table.texts("lists"),
        bound=tuple(filter(None, table.take("bound", str, "").split("."))),
        query=frozenset(table.texts("query")),
        stream=streams[kind] if kind else None,
    )
    table.finish()
    if bool(route.model) + bool(route.family) + bool(route.local) != 1:
        raise ProvidersInvalid(f"{table.at}: exactly one of model, family and local is given.")
    if (route.model == "path" or route.local == "model") != ("{model}" in route.path):
        raise ProvidersInvalid(f"{table.at}: path and model do not agree.")
    if route.model == "body" and route.request == "none":
        raise ProvidersInvalid(f"{table.at}: there is no body for the model to stand in.")
    return route


def _stream(table: _Table) -> StreamKind:
    signed = table.texts("signed")
    end = table.take("end", str, "")
    kind = StreamKind(
        named=table.take("named", bool, default=False),
        type=table.take("type", str, ""),
        pieces=table.texts("pieces"),
        text=table.paths("text"),
        by=table.texts("by"),
        done=table.texts("done"),
        final=table.texts("final"),
        end=tuple(end.split(".")) if end else (),
        arguments=table.paths("arguments"),
        arguments_of=table.texts("arguments_of"),
        keep=frozenset(table.texts("keep")),
        sequence=table.take("sequence", str, ""),
        repeats=table.take("repeats", bool, default=False),
        signed=(signed[0], signed[1]) if signed else None,
    )
    table.finish()
    if not kind.text or bool(kind.type) != bool(kind.pieces):
        raise ProvidersInvalid(f"{table.at}: text, or one of type and pieces, is missing.")
    return kind
