"""The routes of one workload's socket: two exist, matched byte for byte; all else is refused."""

from __future__ import annotations

import json

from starlette.routing import BaseRoute, Match, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.audit import AuditUnwritable

from . import authorize, reply
from .config import Workload
from .errors import Refusal, unrecorded
from .exchange import Exchange, Services


class RawRoute(BaseRoute):
    """Matches method and the path as it stood on the wire, without any normalisation or query."""

    def __init__(self, method: str, path: bytes, app: ASGIApp) -> None:
        self._method = method
        self._path = path
        self._app = app

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Full match or none; never Starlette's partial one."""
        same = (
            scope["type"] == "http"
            and scope["raw_path"] == self._path
            and scope["method"] == self._method
            and not scope["query_string"]
        )
        return (Match.FULL if same else Match.NONE), {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the endpoint."""
        await self._app(scope, receive, send)


class WorkloadApp:
    """The ASGI application behind one listening socket, whose identity it carries."""

    def __init__(self, services: Services, workload: Workload) -> None:
        self._services = services
        self._workload = workload
        self._active = 0
        self._router = Router(
            routes=[
                RawRoute("POST", b"/v1/chat/completions", self._completions),
                RawRoute("GET", b"/v1/models", self._models),
            ],
            redirect_slashes=False,
            default=self._unknown,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one HTTP request; other kinds of ASGI events do not occur."""
        await self._router(scope, receive, send)

    async def _completions(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(self._services, self._workload, scope)
        if self._active >= self._workload.concurrent:
            limit = self._workload.concurrent
            message = f"{limit} requests are under way, as many as {self._workload.file} allows."
            await self._refuse(
                exchange, Refusal("too_many_requests", message), "completion", receive, send
            )
            return
        self._active += 1
        try:
            await exchange.run(receive, send)
        finally:
            self._active -= 1

    async def _models(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(self._services, self._workload, scope)
        try:
            authorize.check_credential(exchange.headers, self._workload)
            authorize.check_stray(exchange.headers, self._services.placeholders)
        except Refusal as refusal:
            await self._refuse(exchange, refusal, "models", receive, send)
            return
        models = [
            {"id": grant.name, "object": "model", "created": 0, "owned_by": grant.upstream}
            for grant in self._workload.models.values()
        ]
        body = json.dumps({"object": "list", "data": models}).encode("ascii")
        try:
            exchange.record("models", "allowed", None)
        except AuditUnwritable:
            await reply.send_refusal(send, unrecorded(), exchange.id)
            return
        await reply.send_json(send, body, exchange.id)

    async def _unknown(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(self._services, self._workload, scope)
        refusal = Refusal("route_not_allowed", "This method and path are not declared.")
        await self._refuse(exchange, refusal, "route", receive, send)

    @staticmethod
    async def _refuse(
        exchange: Exchange, refusal: Refusal, event: str, receive: Receive, send: Send
    ) -> None:
        try:
            exchange.record(event, "refused", refusal.code)
        except AuditUnwritable:
            refusal = unrecorded()
        await reply.send_refusal(send, refusal, exchange.id, receive)
