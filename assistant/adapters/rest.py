"""REST: `POST /messages` with {"workflow", "content"} answers {"reply", "steps", "request"}."""

from __future__ import annotations

import contextlib
import itertools
import time

from assistant import log
from assistant.adapters import intake
from assistant.errors import AssistantError
from assistant.http.exchange import Exchange
from assistant.http.server import Limits, Routes, Server
from assistant.router.link import Router
from assistant.router.messages import CONTENT_MAX, Ask, Error, Reply


class Rest:
    """The adapter for plain HTTP clients."""

    name = "rest"

    async def serve(self, listen_port: int, router: Router) -> None:
        """Listen on 127.0.0.1:`listen_port` until cancelled."""
        routes: Routes = {
            "/messages": {"POST": _Messages(router)},
            "/healthz": {"GET": _healthy, "HEAD": _healthy},
        }
        server = Server(routes, Limits(body=CONTENT_MAX))
        log.line("listening", protocol=self.name, port=await server.start(listen_port))
        await server.serve_forever()


async def _healthy(exchange: Exchange) -> None:
    await exchange.reply(200, {"status": "ok"})


class _Messages:
    def __init__(self, router: Router) -> None:
        self._router = router
        self._numbers = itertools.count(1)

    async def __call__(self, exchange: Exchange) -> None:
        begun = time.monotonic()
        incoming = intake.read(exchange.request.body)
        caller = intake.caller(exchange.request)
        ask = Ask(
            id=str(next(self._numbers)),
            request=caller.request,
            protocol=Rest.name,
            client=caller.client,
            workflow=incoming.workflow,
            content=incoming.content,
            run=incoming.run or caller.request,
        )
        log.line("received", request=caller.request, bytes=len(exchange.request.body))
        identity = [("x-request-id", caller.request)]
        async with contextlib.aclosing(self._router.ask(ask)) as events:
            async for event in events:
                if isinstance(event, Reply):
                    answer = {"reply": event.text, "steps": event.steps, "request": caller.request}
                    await exchange.reply(200, answer, identity)
                elif isinstance(event, Error):
                    error = AssistantError(event.code, event.message, status=event.status)
                    await exchange.reply(event.status, error.body(), identity)
                else:
                    continue
                code = event.code if isinstance(event, Error) else "ok"
                milliseconds = round((time.monotonic() - begun) * 1000)
                log.line("answered", request=caller.request, code=code, ms=milliseconds)
