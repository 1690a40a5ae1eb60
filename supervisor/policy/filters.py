"""The seccomp filters of a compiled policy, for people and as JSON: table, pseudo-code, BPF.

Table and bytes come from the two ends of the compiler, and each view says whether they agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sandbox.seccomp import bpf, call_name, call_number, compile_filters, digests
from sandbox.seccomp.check import disagreements
from sandbox.seccomp.text import Names, listing, pseudo_code
from sandbox.seccomp.truth_table import Row, TruthTable
from supervisor.policy.plans import CompiledPolicy

_HEADS = ("call", "number", "verdict", "when", "rule")
# What libseccomp does before any rule: ACT_BADARCH in sandbox/seccomp/__init__.py.
_FOREIGN = (
    Row("(not x86_64)", "kill", (), "foreign tables: i386 calls by int 0x80, other architectures"),
    Row("(x32)", "kill", (), "foreign tables: x32 calls, whose numbers carry 0x40000000"),
)


@dataclass(frozen=True, slots=True)
class Filters:
    """What a start loads, in the order of loading, and what it is meant to answer."""

    compiled: CompiledPolicy
    programs: tuple[bytes, ...]
    names: tuple[str, ...]
    table: TruthTable
    tried: int
    wrong: tuple[str, ...]


def filters_of(compiled: CompiledPolicy) -> Filters:
    """Compile the filters and try them on the simulator; `wrong` lists where the table differs."""
    spec = compiled.sandbox.seccomp
    programs = compile_filters(spec)
    tried, wrong = disagreements(spec, programs, call_number)
    names = ("refusing", "main") if spec.refuse else ("main",)
    return Filters(compiled, programs, names, TruthTable(spec), tried, tuple(wrong))


def as_table(filters: Filters) -> Iterator[str]:
    """Every call with its verdicts, of which the first that fits decides; then the reasons."""
    yield from _head(filters)
    yield ""
    rows = [_HEADS, *(_cells(filters, row) for row in _rows(filters))]
    widths = [max(len(cells[column]) for cells in rows) for column in range(3)]
    for call, number, verdict, when, rule in rows:
        start = f"{call:<{widths[0]}}  {number:>{widths[1]}}  {verdict:<{widths[2]}}"
        yield f"{start}  {when}  [{rule}]" if when else f"{start}  [{rule}]"
    yield ""
    reasons = dict.fromkeys(row.reason for row in _rows(filters))
    yield from (f"{rule}: {why}" for rule, _, why in sorted(r.partition(": ") for r in reasons))


def as_pseudo_code(filters: Filters) -> Iterator[str]:
    """What each filter does with every number, worked out from its instructions."""
    return _programs(filters, pseudo_code)


def as_bpf(filters: Filters) -> Iterator[str]:
    """The instructions of each filter."""
    return _programs(filters, listing)


def filters_json(filters: Filters) -> dict[str, Any]:
    """Table and programs as plain data; the bytes of a program as hexadecimal digits."""
    compiled = filters.compiled
    return {
        "id": compiled.policy.id,
        "file": compiled.policy.file,
        "digest": compiled.digest,
        "tried": filters.tried,
        "disagreements": list(filters.wrong),
        "filters": [
            {
                "name": name,
                "sha256": sha256,
                "instructions": len(program) // 8,
                "bpf": program.hex(),
            }
            for name, program, sha256 in zip(
                filters.names, filters.programs, digests(filters.programs), strict=True
            )
        ],
        "table": [
            dict(
                zip(
                    (*_HEADS, "why"),
                    (*_cells(filters, row), row.reason.partition(": ")[2]),
                    strict=True,
                )
            )
            for row in _rows(filters)
        ],
    }


def _rows(filters: Filters) -> Sequence[Row]:
    named = [row for call in filters.table.calls for row in filters.table.rows(call)]
    return [*_FOREIGN, *named, *filters.table.rows("(every other)")]


def _cells(filters: Filters, row: Row) -> tuple[str, str, str, str, str]:
    number = "" if row.call.startswith("(") else str(call_number(row.call))
    when = row.when() if row.conditions or len(filters.table.rows(row.call)) > 1 else ""
    return row.call, number, row.verdict, when, row.reason.partition(": ")[0]


def _head(filters: Filters) -> Iterator[str]:
    compiled = filters.compiled
    yield f"{compiled.policy.id}: {compiled.policy.file}, sha256 {compiled.digest}"
    for name, program, sha256 in zip(
        filters.names, filters.programs, digests(filters.programs), strict=True
    ):
        yield f"{name} filter: {len(program) // 8} instructions, sha256 {sha256}"
    if filters.wrong:
        yield f"WRONG: of {filters.tried} calls tried, {len(filters.wrong)} answer otherwise:"
        yield from (f"  {line}" for line in filters.wrong[:20])
    else:
        yield f"{filters.tried} calls tried on these filters: all answer as the table says"


def _programs(
    filters: Filters, view: Callable[[bpf.Program, Names], Iterator[str]]
) -> Iterator[str]:
    yield from _head(filters)
    for name, program in zip(filters.names, filters.programs, strict=True):
        yield ""
        yield f"{name} filter"
        yield from (f"  {line}" for line in view(bpf.decode(program), call_name))
