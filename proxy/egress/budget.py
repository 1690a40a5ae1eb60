"""Budgets: requests, tokens and money per workload and model, reserved before a byte leaves.

A request reserves the most that it can cost: as many input tokens as its body has bytes (no
tokeniser of bytes makes more tokens than bytes, and the JSON round a message is longer than what a
chat template adds to it), the output tokens that it asks for, and their price. What the upstream
says it used is settled afterwards; where it says nothing, the reservation stands. Counts are kept
in SQLite, so that they outlive the process, and each reservation is one transaction, so that
requests side by side never spend the same rest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import Refusal
from .usage import Price, Tokens, tokens_of

if TYPE_CHECKING:
    import sqlite3

    from .config import Grant, Workload

FILE = "budget.sqlite3"
OUTPUT_DEFAULT = 4096  # output tokens allowed to a request that names no bound of its own
WINDOWS = ("minute", "hour", "day", "month")
UNITS = ("requests", "input_tokens", "output_tokens", "tokens", "money")
NANO = 10**9  # money is counted in thousand-millionths of its currency
_KEPT = 62 * 86400  # seconds after which a window's row is of no use any more
_SCHEMA = 1
_WAIT = 2.0  # seconds that a transaction waits for another process


@dataclass(frozen=True, slots=True)
class Budget:
    """One bound of one policy block. `limit` counts the unit, money in nano-units of `currency`.

    `models` are those that it counts together; empty: all of the workload.
    """

    id: str
    line: int
    unit: str
    limit: int
    window: str
    models: frozenset[str] = frozenset()
    currency: str = ""

    def covers(self, model: str) -> bool:
        """Whether a request to `model` counts here."""
        return not self.models or model in self.models


@dataclass(slots=True)
class Reservation:
    """What one request has taken in advance; settle or cancel it once, later calls do nothing."""

    price: Price | None = None
    cost: int | None = None  # nano-units, once settled
    held: list[tuple[Budget, int, int]] = field(default_factory=list)  # budget, window start, taken
    workload: str = ""
    _book: Budgets | None = None

    def settle(self, usage: Mapping[str, Any] | None) -> None:
        """Count what the upstream says it used; without a usable word the reservation stands."""
        if self._book is None and self.price is None:
            return
        tokens = tokens_of(usage)
        if tokens is not None and self.price is not None:
            self.cost = self.price.cost(tokens)
        book, self._book = self._book, None
        if book is not None:
            book.settle(self, tokens)

    def cancel(self) -> None:
        """Nothing was sent, or the upstream refused: only the request itself stays counted."""
        book, self._book = self._book, None
        if book is not None:
            book.settle(self, Tokens())

    def as_record(self) -> dict[str, object]:
        """Return the audit record's `cost`, where the model has a price and its use is known."""
        if self.price is None or self.cost is None:
            return {}
        return {"cost": {"nano": self.cost, "currency": self.price.currency}}


class Budgets:
    """The book of all workloads' budgets, in `folder`; None where no policy has any."""

    def __init__(
        self,
        folder: Path | None,
        workloads: Iterable[Workload] = (),
        now: Callable[[], float] = time.time,
    ) -> None:
        self._folder = folder
        self._now = now
        self._workloads = {each.id: each for each in workloads if each.budgets}
        self._connection: sqlite3.Connection | None = None
        self._fresh = True  # nothing was reserved by this process yet

    def open(self) -> None:
        """Open the book at the start, to say early what is wrong with it. Raises Refusal."""
        if self._workloads:
            self._transact(lambda book: None)

    def close(self) -> None:
        """Close the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def bounds_output(self, workload: Workload, model: str) -> bool:
        """Whether a request to `model` must name how many tokens it wants at most."""
        return any(
            each.covers(model) and each.unit in ("output_tokens", "tokens", "money")
            for each in workload.budgets
        )

    def reserve(
        self, workload: Workload, grant: Grant, *, size: int, output: int | None
    ) -> Reservation:
        """Take the most that a request may use; `size` in bytes, `output` in tokens.

        `output` None: the request has no bound; OUTPUT_DEFAULT is taken, and the caller must put
        it into the request. Raises Refusal: budget_exceeded, budget_unavailable.
        """
        price = grant.price
        budgets = [each for each in workload.budgets if each.covers(grant.name)]
        if not budgets:
            return Reservation(price)
        most = Tokens(size, OUTPUT_DEFAULT if output is None else output)
        now = self._now()
        wanted = []
        for budget in budgets:
            start, end = window(budget.window, now)
            wanted.append((budget, start, end, amount(budget, most, price, worst=True)))

        def take(book: sqlite3.Connection) -> None:
            for budget, start, end, asked in wanted:
                used = sum(_spent(book, workload.id, budget, start))
                if used + asked > budget.limit:
                    raise exceeded(workload, budget, used, asked, end, now)
            for budget, start, _end, asked in wanted:
                _add(book, workload.id, budget, start, 0, asked)

        self._transact(take)
        held = [(budget, start, asked) for budget, start, _end, asked in wanted]
        return Reservation(price, held=held, workload=workload.id, _book=self)

    def settle(self, reservation: Reservation, tokens: Tokens | None) -> None:
        """Replace what `reservation` holds by what was used (None: by itself).

        A book that cannot be written keeps the reservation, which is the larger number.
        """

        def put(book: sqlite3.Connection) -> None:
            for budget, start, asked in reservation.held:
                used = asked if tokens is None else amount(budget, tokens, reservation.price)
                _add(book, reservation.workload, budget, start, used, -asked)

        try:
            self._transact(put)
        except Refusal:
            return

    def state(self, workload: str | None = None) -> list[dict[str, object]]:
        """Every budget (of `workload`) with what is used and reserved of it now. Raises Refusal."""
        now = self._now()
        found: list[dict[str, object]] = []

        def read(book: sqlite3.Connection) -> None:
            for each in self._workloads.values():
                if workload not in (None, each.id):
                    continue
                for budget in each.budgets:
                    start, end = window(budget.window, now)
                    used, reserved = _spent(book, each.id, budget, start)
                    found.append(
                        {
                            "workload": each.id, "id": budget.id, "unit": budget.unit,
                            "window": budget.window, "used": used, "reserved": reserved,
                            "limit": budget.limit, "currency": budget.currency or None,
                            "resets": stamp(end), "place": f"{each.file}:{budget.line}",
                        }
                    )  # fmt: skip

        if self._workloads:
            self._transact(read)
        return found

    def _transact(self, work: Callable[[sqlite3.Connection], None]) -> None:
        import sqlite3  # 1 MB that a proxy without budgets is spared

        try:
            book = self._connection = self._connection or self._opened()
            book.execute("BEGIN IMMEDIATE")
            try:
                work(book)
            except BaseException:
                book.execute("ROLLBACK")
                raise
            book.execute("COMMIT")
        except (sqlite3.Error, OSError) as error:
            self.close()
            raise Refusal(
                "budget_unavailable", f"The book of budgets failed ({type(error).__name__})."
            ) from None

    def _opened(self) -> sqlite3.Connection:
        import sqlite3

        if self._folder is None:
            raise sqlite3.OperationalError("no state directory")
        book = sqlite3.connect(self._folder / FILE, timeout=_WAIT, isolation_level=None)
        try:
            # A crash of the process loses nothing; a power cut at most the last moments.
            book.execute("PRAGMA journal_mode = WAL")
            book.execute("PRAGMA synchronous = NORMAL")
            if book.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                raise sqlite3.DatabaseError("damaged")
            (version,) = book.execute("PRAGMA user_version").fetchone()
            if version not in (0, _SCHEMA):
                raise sqlite3.DatabaseError("of another release")
            book.execute("BEGIN IMMEDIATE")
            book.execute(
                "CREATE TABLE IF NOT EXISTS spent (workload TEXT, budget TEXT, unit TEXT,"
                " start INTEGER, used INTEGER NOT NULL, reserved INTEGER NOT NULL,"
                " PRIMARY KEY (workload, budget, unit, start)) STRICT, WITHOUT ROWID"
            )
            book.execute(f"PRAGMA user_version = {_SCHEMA}")
            if self._fresh:
                # Requests that the last process left open: nobody will say what they used.
                book.execute("UPDATE spent SET used = used + reserved, reserved = 0 WHERE reserved")
            book.execute("DELETE FROM spent WHERE start < ?", (int(self._now()) - _KEPT,))
            book.execute("COMMIT")
        except BaseException:
            book.close()
            raise
        self._fresh = False
        return book


def window(name: str, now: float) -> tuple[int, int]:
    """Return begin and end, in seconds since 1970, of the UTC calendar window that holds `now`."""
    at = datetime.fromtimestamp(now, UTC).replace(second=0, microsecond=0)
    if name == "minute":
        end = at + timedelta(minutes=1)
    elif name == "hour":
        at = at.replace(minute=0)
        end = at + timedelta(hours=1)
    elif name == "day":
        at = at.replace(minute=0, hour=0)
        end = at + timedelta(days=1)
    else:
        at = at.replace(minute=0, hour=0, day=1)
        end = (at + timedelta(days=31)).replace(day=1)
    return int(at.timestamp()), int(end.timestamp())


def amount(budget: Budget, tokens: Tokens, price: Price | None, *, worst: bool = False) -> int:
    """Return how much of `budget` a request with `tokens` takes; `worst`: nothing is cached yet.

    A cache that is written costs more than plain input at some providers; the worst case is that.
    """
    match budget.unit:
        case "requests":
            return 1
        case "input_tokens":
            return tokens.input
        case "output_tokens":
            return tokens.output
        case "tokens":
            return tokens.input + tokens.output
    if price is None:  # the configuration was checked for it
        raise Refusal("budget_unavailable", f"Budget {budget.id} counts a model without a price.")
    if worst and price.cache_write > price.input:
        tokens = Tokens(tokens.input, tokens.output, written=tokens.input)
    return price.cost(tokens)


def exceeded(
    workload: Workload, budget: Budget, used: int, asked: int, end: int, now: float
) -> Refusal:
    """Return the refusal that says which budget is spent, where it stands, and when it resets."""
    place = f"{workload.file}:{budget.line} ({budget.id})"
    limit = f"{shown(budget, budget.limit)} a {budget.window}"
    if asked > budget.limit:
        message = f"The request may need {shown(budget, asked)}, more than all of {limit}, {place}."
        return Refusal("budget_exceeded", message, by_rule=True)
    message = (
        f"The budget of {limit}, {place}, has {shown(budget, budget.limit - used)} left and the"
        f" request may need {shown(budget, asked)}; it resets at {stamp(end)}."
    )
    wait = max(1, end - int(now))
    return Refusal("budget_exceeded", message, by_rule=True, retry_after=wait)


def shown(budget: Budget, count: int) -> str:
    """Return `count` of the budget's unit for people, as in `0.25 USD` or `1200 tokens`."""
    if budget.unit == "money":
        text = f"{count // NANO}.{count % NANO:09d}".rstrip("0")
        whole, _, rest = text.partition(".")
        return f"{whole}.{rest:0<2} {budget.currency}"
    return f"{count} {budget.unit.replace('_', ' ')}"


def stamp(seconds: int) -> str:
    """Return a time in UTC as RFC 3339 text."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _spent(book: sqlite3.Connection, workload: str, budget: Budget, start: int) -> tuple[int, int]:
    row = book.execute(
        "SELECT used, reserved FROM spent"
        " WHERE workload = ? AND budget = ? AND unit = ? AND start = ?",
        (workload, budget.id, budget.unit, start),
    ).fetchone()
    return (row[0], row[1]) if row else (0, 0)


def _add(
    book: sqlite3.Connection, workload: str, budget: Budget, start: int, used: int, reserved: int
) -> None:
    book.execute(
        "INSERT INTO spent VALUES (?, ?, ?, ?, ?, max(?, 0)) ON CONFLICT DO UPDATE"
        " SET used = used + excluded.used, reserved = max(reserved + ?, 0)",
        (workload, budget.id, budget.unit, start, used, reserved, reserved),
    )
