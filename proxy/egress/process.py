"""Start-up: rules first, then the configuration, then the event loop; and a small footprint."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging

import uvloop

from . import config
from .redaction import rules
from .redaction.scan import Scanner
from .server import EgressServer


def serve(data: bytes, fds: dict[str, int]) -> None:
    """Serve until told to stop. Raises ProxyError when rules or configuration are not right."""
    book = rules.load()
    settings = config.parse(data, frozenset(book.classes))
    scanner = Scanner(book)
    # The libraries' own log lines may quote requests; ours are the audit records.
    logging.disable(logging.CRITICAL)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(settings, scanner, fds))


async def _run(settings: config.Config, scanner: Scanner, fds: dict[str, int]) -> None:
    server = EgressServer(settings, scanner, fds)
    _settle()
    await server.run()


def _settle() -> None:
    """Give back what only the start needed, and spare the collector what stays for good."""
    gc.collect()
    gc.freeze()
    # malloc_trim(3): the rule compiler leaves several free megabytes in the heap.
    ctypes.CDLL(None).malloc_trim(0)
