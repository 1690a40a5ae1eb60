"""The [limits] of a policy: from the text to what the launcher puts in force."""

from __future__ import annotations

from sandbox.limits import cpu_list, cpu_set
from sandbox.plan import IoLimits, Limits
from supervisor.policy.document import Table
from supervisor.policy.model import IoRates, PolicyLimits

FILE_SIZE = 64 << 20
_CPUS = r"[0-9]{1,4}(-[0-9]{1,4})?(,[0-9]{1,4}(-[0-9]{1,4})?)*"


def parse_limits(table: Table | None) -> PolicyLimits:
    """The table's limits; mistakes are recorded in its document."""
    if table is None:
        return PolicyLimits()
    limits = PolicyLimits(
        memory=table.size("memory", 0) or None,
        memory_high=table.size("memory_high", 0) or None,
        pids=table.integer("pids", 1, 4096, 0) or None,
        cpu=table.percent("cpu"),
        cpu_weight=table.integer("cpu_weight", 1, 10_000, 0) or None,
        cpus=_cpus(table),
        io=_io(table),
        nofile=table.integer("nofile", 16, 65536, 1024),
        memlock=table.size("memlock", 0),
        file_size=table.size("file_size", 0) or None,
        line=table.line,
    )
    table.finish()
    if limits.memory_high and limits.memory_high >= (limits.memory or 0):
        fix = "above memory_high it is slowed down, above memory killed: give memory more"
        table.fail("bad-value", "memory_high", "memory_high is not below memory", fix)
    return limits


def plan_limits(limits: PolicyLimits, largest_file: int | None, state: str | None) -> Limits:
    """What is put in force. `largest_file`: what the state rule allows; `state`: its directory,
    which `io` needs (see sandbox.limits.block_devices)."""
    io = limits.io
    return Limits(
        memory=limits.memory,
        pids=limits.pids,
        cpu=limits.cpu,
        nofile=limits.nofile,
        fsize=limits.file_size or largest_file or FILE_SIZE,
        memlock=limits.memlock,
        memory_high=limits.memory_high,
        cpu_weight=limits.cpu_weight,
        cpus=limits.cpus,
        io=IoLimits(state, io.read, io.write, io.read_ops, io.write_ops) if io and state else None,
    )


def missing_cpus(limits: PolicyLimits, online: frozenset[int]) -> str:
    """Those of the policy's processors that a host with `online` lacks, as text."""
    return cpu_list(set(limits.cpus) - online)


def _cpus(table: Table) -> tuple[int, ...]:
    text = table.string("cpus", _CPUS, "", 'a list of processors such as "0-1,4"')
    try:
        return tuple(sorted(cpu_set(text)))
    except ValueError as error:
        table.fail("bad-value", "cpus", f"{text!r}: {error}", 'write the lower number first: "0-1"')
        return ()


def _io(table: Table) -> IoRates | None:
    if (inner := table.table("io", required=False)) is None:
        return None
    rates = IoRates(
        read=inner.rate("read") or None,
        write=inner.rate("write") or None,
        read_ops=inner.integer("read_ops", 1, 10_000_000, 0) or None,
        write_ops=inner.integer("write_ops", 1, 10_000_000, 0) or None,
    )
    inner.finish()
    if not inner.values:
        fix = 'give read, write ("20MiB/s"), read_ops or write_ops (a number), or leave io out'
        table.fail("bad-value", "io", "io limits nothing", fix)
    return rates
