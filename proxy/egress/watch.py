"""Noticing that a client has gone while its answer is still being made."""

from __future__ import annotations

import asyncio

from starlette.types import Receive

_AFTER = 0.05  # seconds


class ClientGone(Exception):
    """The workload closed its connection; nothing is left to answer."""


class Watch:
    """Cancels the task that made it when the client goes; begins only where an answer takes long.

    An answer that comes at once needs no watching, and is spared the cost of a second task.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._owner = asyncio.current_task()
        self._gone = False
        self._task: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(_AFTER, self._begin)

    def _begin(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        if self._owner is not None:
            self._owner.cancel()

    def took_effect(self) -> bool:
        """True in the owner when it was this watch that cancelled it."""
        if self._gone and self._owner is not None:
            self._owner.uncancel()
        return self._gone

    def end(self) -> None:
        """Stop watching."""
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
