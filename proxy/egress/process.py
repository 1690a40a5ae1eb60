"""Start-up: rules first, then the configuration, then the event loop; and a small footprint."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
from pathlib import Path

import uvloop

from proxy import providers

from . import config
from .redaction import examples, rules
from .redaction.scan import Scanner
from .server import EgressServer

_MADV_DONTNEED = 4


def serve(data: bytes, fds: dict[str, int]) -> None:
    """Serve until told to stop. Raises ProxyError when rules or configuration are not right."""
    book = rules.load(own=config.own_rules(data))
    settings = config.parse(data, frozenset(book.classes))
    apis = providers.load()
    scanner = Scanner(book)
    # Ours were tried before they were shipped; a rule that does not do what it says is none.
    for fault in examples.faults(scanner, [rule for rule in book.rules if not rule.ours]):
        raise rules.RulesInvalid(fault)
    # The libraries' own log lines may quote requests; ours are the audit records.
    logging.disable(logging.CRITICAL)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(settings, scanner, apis, fds))


async def _run(
    settings: config.Config,
    scanner: Scanner,
    apis: dict[str, providers.Provider],
    fds: dict[str, int],
) -> None:
    server = EgressServer(settings, scanner, apis, fds)
    _settle()
    await server.run()


def _settle() -> None:
    """Give back what only the start needed, and spare the collector what stays for good."""
    gc.collect()
    gc.freeze()
    libc = ctypes.CDLL(None, use_errno=True)
    # malloc_trim(3): the rule compiler leaves several free megabytes in the heap.
    libc.malloc_trim(0)
    # The code of the rule compiler and of the imports lies mapped too. madvise(2): pages of a file
    # mapping come back from the page cache when they are used again. Only code is let go: the
    # read-only data of a library may have been relocated in memory.
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    try:
        maps = Path("/proc/self/maps").read_text("ascii", "replace")
    except OSError:
        return  # no /proc in this sandbox: the pages stay
    for line in maps.splitlines():
        span, access, *_, name = line.split(maxsplit=5)
        if access == "r-xp" and name.startswith("/"):
            start, end = (int(address, 16) for address in span.split("-"))
            libc.madvise(start, end - start, _MADV_DONTNEED)
