"""The workflow executor: takes asks from the channels, calls models, sends events back."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from assistant import descriptors, life, log
from assistant.errors import UsageError
from assistant.router.desk import PREFIX, Desk
from assistant.workflows import loader
from assistant.workflows.engine import Engine
from assistant.workflows.journal import Journal
from assistant.workflows.model import Model


def serve(*, workflows: str, state: str) -> None:
    """Run until SIGTERM. Raises WorkflowFileError, JournalError, UsageError, OSError."""
    log.never_wait()
    channels = {
        name.removeprefix(PREFIX): number
        for name, number in descriptors.inherited().items()
        if name.startswith(PREFIX)
    }
    if not channels:
        raise UsageError("no channel was passed in", "LISTEN_FDNAMES must name channel.<client-id>")
    base, token = os.environ.get("OPENAI_BASE_URL", ""), os.environ.get("OPENAI_API_KEY", "")
    if not base or not token:
        raise UsageError("OPENAI_BASE_URL and OPENAI_API_KEY must be set")
    loaded = loader.load_apart(Path(workflows) if workflows else loader.SHIPPED)
    durable = Path(state).is_dir()
    journal = Journal(f"{state}/workflows.sqlite") if durable else Journal(size_max=8 << 20)
    log.line("workflows_loaded", count=len(loaded), durable=durable)
    life.run(_serve(channels, Engine(loaded, Model(base, token), journal), journal))


async def _serve(channels: dict[str, int], engine: Engine, journal: Journal) -> None:
    desk = Desk(engine.work)
    try:
        for identity, descriptor in channels.items():
            await desk.open(identity, descriptor)
        resuming = asyncio.create_task(engine.resume())
        await asyncio.wait({resuming})  # unlike `await resuming`, a stop does not cancel it at once
        resuming.result()
        await asyncio.Event().wait()
    finally:
        engine.stopping = True
        desk.close()
