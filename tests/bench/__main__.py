"""Run each `bench_*.py` in order and print one table.

A bench module has `main() -> list[Figure]`. One that raises becomes a line of its own below the
table. Ends with 1 if a bound was missed or a bench failed.
"""

from __future__ import annotations

import importlib
import sys
import time
import traceback
from pathlib import Path

from tests.bench.figure import Figure

HEADS = ("figure", "measured", "against", "ratio", "bound", "")


def measure(name: str) -> tuple[list[Figure], str | None]:
    """The figures of one bench module and, if it failed, why."""
    try:
        figures = importlib.import_module(f"tests.bench.{name}").main()
    except Exception as error:  # one broken bench must not hide the others' figures
        traceback.print_exc()
        return [], f"{name}: FAILED: {type(error).__name__}: {error}"
    return figures, None


def table(figures: list[Figure]) -> str:
    """The figures as aligned columns."""
    rows = [HEADS, *(figure.row() for figure in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADS))]
    cells = ("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in cells)


def main() -> int:
    """Run all of them."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("bench_*.py"))
    if not names:
        print("bench: there is no tests/bench/bench_*.py")
        return 1
    figures: list[Figure] = []
    failures: list[str] = []
    for name in names:
        began = time.monotonic()
        print(f"bench: {name} ...", flush=True)
        found, failure = measure(name)
        figures += found
        failures += [failure] if failure else []
        print(f"bench:   {time.monotonic() - began:.0f} s", flush=True)
    print(table(figures))
    print(*failures, sep="\n")
    missed = any(figure.verdict == "MISSED" for figure in figures)
    return 1 if failures or missed else 0


if __name__ == "__main__":
    sys.exit(main())
