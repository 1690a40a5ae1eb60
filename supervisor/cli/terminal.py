"""What is shown to people: tables, errors, and text that came from a workload made harmless."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

# Verdicts and states are never told by colour alone: the word is always there.
_COLOURS = {
    "ok": "green", "running": "green", "PASS": "green", "pass": "green",
    "missing": "red", "failed": "red", "quarantined": "red", "containing": "red",
    "FAIL": "red", "fail": "red",
    "waived": "yellow", "DEGRADED": "yellow", "degraded": "yellow", "backoff": "yellow",
    "starting": "yellow", "stopped": "dim", "advice": "cyan",
}  # fmt: skip
_WIDTH_WITHOUT_TERMINAL = 160
# C0 but tab and newline, DEL, C1, and the bidirectional controls that reorder what is read.
_HARMFUL = {
    code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
    for code in (*range(9), *range(11, 32), *range(127, 160), 0x61C, 0x200E, 0x200F,
                 *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x2028, 0x2029)
}  # fmt: skip


def harmless(text: str) -> str:
    """`text` without terminal escape sequences: control characters become visible escapes."""
    return text.translate(_HARMFUL).encode("utf-8", "backslashreplace").decode("utf-8")


def complain(message: str, fix: str = "") -> None:
    """An error on stderr: what is wrong, then what to do."""
    print(f"anchorhold: {harmless(message)}", file=sys.stderr)
    if fix:
        print(f"  to do: {harmless(fix)}", file=sys.stderr)


def say(text: str = "") -> None:
    """A line on stdout."""
    print(harmless(text))


def print_json(data: Any) -> None:
    """`data` for scripts, on stdout."""
    json.dump(data, sys.stdout, indent=2, ensure_ascii=True)
    sys.stdout.write("\n")


def width() -> int:
    """Columns of a table: what COLUMNS says, else the terminal's, else enough for a file."""
    told = os.environ.get("COLUMNS", "")
    if told.isdecimal() and int(told):
        return int(told)
    if sys.stdout.isatty():
        return os.get_terminal_size(sys.stdout.fileno()).columns or 80
    return _WIDTH_WITHOUT_TERMINAL


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on stdout. Cells are text, never markup; None is a dash; the first is kept whole."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=width(), highlight=False, emoji=False, markup=False)
    drawn = Table(title=Text(title) if title else None, box=box.SIMPLE_HEAD, title_justify="left")
    for number, column in enumerate(columns):
        drawn.add_column(column, overflow="fold", no_wrap=number == 0)
    for row in rows:
        cells = ["-" if cell is None else harmless(str(cell)) for cell in row]
        drawn.add_row(*(Text(cell, style=_COLOURS.get(cell, "")) for cell in cells))
    console.print(drawn)


def size(count: int | None) -> str | None:
    """Bytes for people."""
    if count is None:
        return None
    amount = float(count)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"


@contextlib.contextmanager
def progress() -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Takes the supervisor's progress lines; the latest is shown on stderr after each second."""
    now = ""

    def take(line: Mapping[str, Any]) -> None:
        nonlocal now
        now = str(line.get("doing", ""))

    def tell(*_: object) -> None:
        if now:
            print(f"  {harmless(now)} ...", file=sys.stderr, flush=True)

    before = signal.signal(signal.SIGALRM, tell)
    signal.setitimer(signal.ITIMER_REAL, 1.0, 1.0)
    try:
        yield take
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def confirmed(question: str) -> bool:
    """Whether the operator, at a terminal, says yes. Anything else is a no."""
    if not sys.stdin.isatty():
        return False
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
