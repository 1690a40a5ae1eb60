"""Start, signals and end of a program that is pid 1 of its sandbox."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Coroutine
from typing import Any

from assistant import log

_GRACE = 1.5  # seconds; the launcher allows two between SIGTERM and SIGKILL


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run `work` until it returns or until SIGTERM or SIGINT; pid 1 must handle both itself.

    Raises what `work` raises.
    """
    asyncio.run(_run(work))


async def _run(work: Coroutine[Any, Any, None]) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_unexpected)
    task = asyncio.create_task(work)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for other in others:
        other.cancel()
    if others:
        await asyncio.wait(others, timeout=_GRACE)
    log.line("stopped")


def _unexpected(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Name the error, and nothing of what it carries: an exception's text can quote content."""
    error = context.get("exception")
    log.line(
        "unexpected", error=type(error).__name__ if error else str(context.get("message"))[:80]
    )
