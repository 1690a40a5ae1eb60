"""The price tables: strict TOML into prices by host and model. Read when policies are compiled.

A provider's list prices change; each file says from which page and which day its figures are, and a
`[[price]]` of the host file goes before them.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[2] / "policies" / "prices"
MONEY = re.compile(r"[0-9]{1,6}(?:\.[0-9]{1,6})?")
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]*\*?")
_KINDS = ("input", "output", "cached", "cache_write")


class PricesInvalid(Exception):
    """A price file is wrong; no policy compiles until it is corrected."""

    code = "prices_invalid"
    fix = "correct the price file named, or install the package again"


@dataclass(frozen=True, slots=True)
class Price:
    """What a million tokens cost, in millionths of `currency`."""

    currency: str
    input: int
    output: int
    cached: int
    cache_write: int


@dataclass(frozen=True, slots=True)
class Listed:
    """One row: what `models` (exact names, or beginnings that end in *) cost at `hosts`."""

    hosts: tuple[str, ...]
    models: tuple[str, ...]
    price: Price


def load(folder: Path = FOLDER) -> tuple[Listed, ...]:
    """Read every ``*.toml`` of `folder`; raises PricesInvalid naming file and row."""
    found: list[Listed] = []
    for path in sorted(folder.glob("*.toml")):
        try:
            document = tomllib.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise PricesInvalid(f"{path.name}: {error}.") from None
        found += _rows(document, path.name)
    return tuple(found)


def price_of(rows: Iterable[Listed], host: str, model: str) -> Price | None:
    """Return the price of `model` at `host`: the exact name, else the longest beginning."""
    best, longest = None, -1
    for row in rows:
        if host not in row.hosts:
            continue
        for pattern in row.models:
            size = len(model) + 1 if pattern == model else len(pattern) - 1
            fits = pattern == model or (pattern.endswith("*") and model.startswith(pattern[:-1]))
            if fits and size > longest:
                best, longest = row.price, size
    return best


def millionths(text: str) -> int:
    """Return an amount such as "0.075" in millionths. ValueError for anything else."""
    if not MONEY.fullmatch(text):
        raise ValueError(f"{text!r} is no amount such as 2.50")
    return int(Decimal(text) * 1_000_000)


def price(currency: str, amounts: dict[str, str]) -> Price:
    """Return the price with `amounts` per million tokens; raises ValueError naming the kind.

    `cached` and `cache_write` are as `input` where they are not given.
    """
    for kind in ("input", "output"):
        if kind not in amounts:
            raise ValueError(f"{kind} is missing")
    numbers = {kind: millionths(amounts.get(kind, amounts["input"])) for kind in _KINDS}
    return Price(currency, **numbers)


def _rows(document: dict[str, Any], file: str) -> Iterable[Listed]:
    rows = document.pop("price", [])
    hosts, currency = document.pop("hosts", None), document.pop("currency", None)
    source, day = document.pop("source", None), document.pop("date", None)
    if document or not (isinstance(hosts, list) and isinstance(currency, str)):
        raise PricesInvalid(f"{file}: hosts, currency, source, date and [[price]], nothing else.")
    if not (isinstance(source, str) and type(day) is date):
        raise PricesInvalid(f"{file}: source and date say where the figures are from.")
    for number, row in enumerate(rows, 1):
        models = row.pop("models", None)
        if row.keys() - set(_KINDS) or not (isinstance(models, list) and models):
            raise PricesInvalid(f"{file}: row {number} has models and {', '.join(_KINDS)}.")
        if not all(isinstance(name, str) and _MODEL.fullmatch(name) for name in models):
            raise PricesInvalid(f"{file}: row {number}: a model is a name, or its beginning and *.")
        try:
            cost = price(currency, row)
        except (TypeError, ValueError) as error:
            raise PricesInvalid(f"{file}: row {number}: {error}.") from None
        yield Listed(tuple(hosts), tuple(models), cost)
