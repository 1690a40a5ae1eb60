"""Which routes one workload's socket has: from the provider files of the upstreams it may use.

A route is compared with the raw path, byte for byte. ``/NAME/...`` is the API of the upstream NAME;
without a name the model decides, or there is only one upstream that has the route.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from proxy.providers import Provider, Route

from .config import Upstream, Workload


@dataclass(frozen=True, slots=True)
class Target:
    """A route of a provider at one upstream."""

    route: Route
    provider: Provider
    upstream: Upstream


@dataclass(frozen=True, slots=True)
class Match:
    """The targets that a request may mean, and the values of its path's segments."""

    targets: tuple[Target, ...]
    values: dict[str, str]

    @property
    def upstreams(self) -> frozenset[str]:
        """The names of the targets' upstreams."""
        return frozenset(target.upstream.name for target in self.targets)

    def preferred(self, headers: list[tuple[bytes, bytes]]) -> Target:
        """The first target whose provider's clients put their key where this request has one."""
        given = {name.decode("latin-1") for name, _ in headers}
        for target in self.targets:
            if target.provider.accepts and target.provider.accepts[0] in given:
                return target
        return self.targets[0]

    def at(self, upstream: str) -> Target:
        """The target at the upstream of that name."""
        return next(target for target in self.targets if target.upstream.name == upstream)


class RouteTable:
    """All routes of one workload."""

    def __init__(
        self, workload: Workload, upstreams: dict[str, Upstream], providers: dict[str, Provider]
    ) -> None:
        fixed: dict[tuple[str, bytes], list[Target]] = {}
        shaped: dict[tuple[str, str], tuple[re.Pattern[bytes], list[Target]]] = {}
        for name in dict.fromkeys(grant.upstream for grant in workload.models.values()):
            upstream = upstreams[name]
            provider = providers[upstream.provider]
            for route in provider.routes:
                bases = (provider.base, *provider.also)
                for base in (*(f"/{name}{base}" for base in bases), *bases):
                    target = Target(route, provider, upstream)
                    if "{" not in route.path:
                        key = (route.method, f"{base}{route.path}".encode("ascii"))
                        fixed.setdefault(key, []).append(target)
                        continue
                    pattern = re.compile(re.escape(base.encode("ascii")) + route.pattern().pattern)
                    shaped.setdefault((route.method, base + route.path), (pattern, []))[1].append(
                        target
                    )
        self._fixed = {key: Match(tuple(targets), {}) for key, targets in fixed.items()}
        self._shaped = [
            (method, pattern, tuple(targets))
            for (method, _), (pattern, targets) in shaped.items()
        ]  # fmt: skip

    def find(self, method: str, path: bytes) -> Match | None:
        """Return what `method` and the raw `path` mean; None: nothing that is declared."""
        match = self._fixed.get((method, path))
        if match is not None:
            return match
        for known, pattern, targets in self._shaped:
            found = pattern.fullmatch(path) if known == method else None
            if found:
                values = {name: v.decode("ascii") for name, v in found.groupdict().items()}
                return Match(targets, values)
        return None
