"""Adapters: one per protocol, found by name, each a module with one small class.

A private protocol is a package with an entry point in the group ``anchorhold.adapters`` that names
a class without arguments; see `Adapter`.
"""

from __future__ import annotations

from typing import Protocol

from assistant import life, log
from assistant.errors import UnsupportedProtocol
from assistant.router.link import Router

GROUP = "anchorhold.adapters"
BUILT_IN = {
    "rest": "assistant.adapters.rest:Rest",
    "websocket": "assistant.adapters.websocket:WebSocket",
}


class Adapter(Protocol):
    """Turns one protocol into asks and events back into it."""

    name: str

    async def serve(self, listen_port: int, router: Router) -> None:
        """Listen on 127.0.0.1:`listen_port` and serve until cancelled."""


def find(name: str) -> Adapter:
    """The adapter for protocol `name`: a built-in one first, so that no package can replace it.

    Raises UnsupportedProtocol.
    """
    target = BUILT_IN.get(name)
    if target is not None:
        from importlib import import_module

        module, _, attribute = target.partition(":")
        adapter: Adapter = getattr(import_module(module), attribute)()
        return adapter
    from importlib.metadata import entry_points

    for entry in entry_points(group=GROUP, name=name):
        plugin: Adapter = entry.load()()
        return plugin
    raise UnsupportedProtocol(name, f"known: {', '.join(BUILT_IN)}; plugins: entry points {GROUP}")


def serve(name: str, *, port: int, executor: str) -> None:
    """Run the adapter for protocol `name` until SIGTERM. Raises UnsupportedProtocol, OSError."""
    log.never_wait()
    adapter = find(name)

    life.run(_serve(adapter, port, Router(executor)))


async def _serve(adapter: Adapter, port: int, router: Router) -> None:
    """Both run until cancelled; when one of them fails the program ends with its error."""
    import asyncio

    tasks = {
        asyncio.create_task(router.keep_connected()),
        asyncio.create_task(adapter.serve(port, router)),
    }
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
