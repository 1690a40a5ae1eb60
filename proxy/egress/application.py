"""The ASGI application behind one listening socket, whose identity it carries."""

from __future__ import annotations

import json

from starlette.types import Receive, Scope, Send

from proxy.audit import AuditUnwritable
from proxy.providers import Provider

from . import authorize, reply, shapes
from .config import Workload
from .errors import Refusal, unrecorded
from .exchange import Exchange, Services
from .routes import Match, RouteTable


class WorkloadApp:
    """Finds the route; runs an exchange, answers from the policy, or refuses."""

    def __init__(
        self, services: Services, workload: Workload, providers: dict[str, Provider]
    ) -> None:
        self._services = services
        self._workload = workload
        self._routes = RouteTable(workload, services.config.upstreams, providers)
        self._active = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one HTTP request; other kinds of ASGI events do not occur."""
        match = self._routes.find(scope["method"], scope["raw_path"])
        exchange = Exchange(self._services, self._workload, scope, match)
        if match is None:
            await self._unknown(exchange, scope, receive, send)
        elif match.targets[0].route.local:
            await self._local(exchange, match, receive, send)
        elif self._active >= self._workload.concurrent:
            limit = self._workload.concurrent
            message = f"{limit} requests are under way, as many as {self._workload.file} allows."
            refusal = Refusal("too_many_requests", message, headers=[(b"retry-after", b"1")])
            await self._refuse(exchange, refusal, "completion", receive, send)
        else:
            self._active += 1
            try:
                await exchange.run(receive, send)
            finally:
                self._active -= 1

    async def _local(self, exchange: Exchange, match: Match, receive: Receive, send: Send) -> None:
        """Answer what the policy alone knows: which models there are."""
        provider, route = exchange.target.provider, exchange.target.route  # type: ignore[union-attr]  # a match has one
        grants = [g for g in self._workload.models.values() if g.upstream in match.upstreams]
        try:
            exchange.check_head()
            exchange.check_query()
            if route.local == "models":
                document = shapes.models(provider.shape, grants)
            else:
                name = match.values["model"]
                grant = authorize.grant_for(name, self._workload, match.upstreams, exchange.shown)
                document = shapes.model(provider.shape, grant)
        except Refusal as refusal:
            await self._refuse(exchange, refusal, "models", receive, send)
            return
        try:
            exchange.record("models", "allowed", None)
        except AuditUnwritable:
            await reply.send_refusal(send, unrecorded(), exchange)
            return
        await reply.send_json(send, json.dumps(document).encode("ascii"), exchange.id)

    async def _unknown(
        self, exchange: Exchange, scope: Scope, receive: Receive, send: Send
    ) -> None:
        refusal = Refusal("route_not_allowed", "This method and path are not declared.")
        try:
            exchange.check_target(scope["raw_path"] + b"?" + scope["query_string"])
        except Refusal as stray:
            refusal = stray
        await self._refuse(exchange, refusal, "route", receive, send)

    @staticmethod
    async def _refuse(
        exchange: Exchange, refusal: Refusal, event: str, receive: Receive, send: Send
    ) -> None:
        try:
            exchange.record(event, "refused", refusal.code)
        except AuditUnwritable:
            refusal = unrecorded()
        await reply.send_refusal(send, refusal, exchange, receive)
