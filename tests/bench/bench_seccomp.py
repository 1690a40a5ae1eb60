"""What a system call costs under the REST adapter's filters, against the same call without any.

Calls that no rule tests are answered from a bitmap in the kernel and run no filter; the others run
both. All calls are cheap or malformed, so that the ratio is the worst that a program can see.
"""

from __future__ import annotations

import statistics
import subprocess
import tempfile
from pathlib import Path

from sandbox.seccomp import compile_filters
from tests.bench.figure import Figure
from tests.host.sandbox.conftest import shipped_plan

TURNS, ROUNDS = 25, 20_000
FREE = "getppid"  # allowed whatever its arguments
BOUND = 1.3


def main() -> list[Figure]:
    """Medians over turns in which both kinds alternate, in ns of processor time per call."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        programs = compile_filters(shipped_plan(folder, "adapter.rest").seccomp)
        files = [folder / f"{number}.bpf" for number in range(len(programs))]
        for file, program in zip(files, programs, strict=True):
            file.write_bytes(program)
        helper, source = folder / "cost_of_calls", Path(__file__).with_name("cost_of_calls.c")
        subprocess.run(["gcc", "-O2", "-o", helper, source], check=True)
        free: dict[str, list[float]] = {}
        held: dict[str, list[float]] = {}
        for _ in range(TURNS):
            for found, loaded in ((free, []), (held, files)):
                for name, cost in _costs([helper, str(ROUNDS), *loaded]):
                    found.setdefault(name, []).append(cost)
    medians = {
        name: (statistics.median(held[name]), statistics.median(free[name])) for name in free
    }
    return [
        Figure(
            f"system call {name}, {'no' if name in (FREE, 'read') else 'with'} argument rule",
            value, "ns", reference, "unfiltered", BOUND if name == FREE else None,
        )
        for name, (value, reference) in medians.items()
    ]  # fmt: skip


def _costs(command: list[str | Path]) -> list[tuple[str, float]]:
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=60)
    return [(name, float(cost)) for name, cost in map(str.split, done.stdout.splitlines())]
