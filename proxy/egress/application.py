"""What answers on one listening socket, whose identity it carries."""

from __future__ import annotations

import json

from proxy.audit import AuditUnwritable
from proxy.providers import Provider

from . import authorize, reply, shapes
from .config import Workload
from .errors import Refusal, unrecorded
from .exchange import Exchange, Services
from .http_server import Request
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

    async def serve(self, request: Request) -> None:
        """Answer one request."""
        match = self._routes.find(request.method, request.path)
        exchange = Exchange(self._services, self._workload, request, match)
        if match is None:
            await self._unknown(exchange)
        elif match.targets[0].route.local:
            await self._local(exchange, match)
        elif self._active >= self._workload.concurrent:
            limit = self._workload.concurrent
            message = f"{limit} requests are under way, as many as {self._workload.file} allows."
            refusal = Refusal("too_many_requests", message, headers=[(b"retry-after", b"1")])
            await self._refuse(exchange, refusal, "completion")
        else:
            self._active += 1
            try:
                await exchange.run()
            finally:
                self._active -= 1

    async def _local(self, exchange: Exchange, match: Match) -> None:
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
            await self._refuse(exchange, refusal, "models")
            return
        try:
            exchange.record("models", "allowed", None)
        except AuditUnwritable:
            await reply.send_refusal(unrecorded(), exchange)
            return
        reply.send(exchange, 200, [], b"application/json", json.dumps(document).encode("ascii"))

    async def _unknown(self, exchange: Exchange) -> None:
        refusal = Refusal("route_not_allowed", "This method and path are not declared.")
        try:
            exchange.check_target(exchange.request.path + b"?" + exchange.request.query)
        except Refusal as stray:
            refusal = stray
        await self._refuse(exchange, refusal, "route")

    @staticmethod
    async def _refuse(exchange: Exchange, refusal: Refusal, event: str) -> None:
        try:
            exchange.record(event, "refused", refusal.code)
        except AuditUnwritable:
            refusal = unrecorded()
        await reply.send_refusal(refusal, exchange)
