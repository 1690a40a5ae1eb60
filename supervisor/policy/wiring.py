"""Compiled policies to what the proxies and the broker are told: plain JSON data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from supervisor.host import Host, Upstream
from supervisor.policy.errors import PolicyError
from supervisor.policy.plans import CompiledPolicy
from supervisor.policy.redactions import own_rules

_LIMITS = {"head_max": 16384, "head_timeout": 5.0, "idle_timeout": 60.0, "connections": 256}
ISSUER = "anchorhold"


def one_route_each(compiled: dict[str, CompiledPolicy]) -> list[PolicyError]:
    """A protocol belongs to one workload: the later one by id is taken out and told so."""
    owners: dict[str, str] = {}
    found = []
    for workload in sorted(compiled):
        for route in compiled[workload].routes:
            owner = owners.setdefault(route.protocol, workload)
            if owner != workload:
                place = route.source
                message = f"protocol {route.protocol} belongs to {owner} already"
                fix = "give each protocol to one workload"
                found.append(
                    PolicyError(
                        "protocol-taken", place.file, place.line, "allow.listen", message, fix,
                        place.rule,
                    )
                )  # fmt: skip
                compiled.pop(workload, None)
    return found


def egress_config(compiled: Mapping[str, CompiledPolicy], host: Host) -> dict[str, Any]:
    """The egress proxy's configuration: every upstream, the workloads that may call models, and
    the host's own redaction rules. Raises RuleNamesInvalid.
    """
    own = compiled.get("service.egress")
    rules = own_rules(Path(host.paths.policies))
    return {
        **({"rules": rules} if rules else {}),
        "state": "/state" if own and own.state_directory else None,
        "upstreams": {upstream.name: _upstream(upstream) for upstream in host.upstreams},
        "workloads": {
            workload: one.egress for workload, one in sorted(compiled.items()) if one.egress
        },
    }


def ingress_config(
    compiled: Mapping[str, CompiledPolicy], host: Host, jwt_keys: Sequence[Mapping[str, str]]
) -> dict[str, Any]:
    """The gateway's configuration. `jwt_keys`: {"kid", "x"} each, x the raw Ed25519 public key."""
    return {
        "audience_prefix": "",
        "issuer": ISSUER,
        "origins": list(host.origins),
        "keys": [{"kid": key["kid"], "x": key["x"]} for key in jwt_keys],
        "routes": [
            {
                "protocol": route.protocol,
                "workload": workload,
                "target": route.target,
                "body_max": route.body_max,
                "upgrade": route.upgrade,
                "file": route.source.file,
                "rule": route.source.rule,
                "line": route.source.line,
                "digest": one.digest,
            }
            for workload, one in sorted(compiled.items())
            for route in one.routes
        ],
        "limits": dict(_LIMITS),
    }


def broker_targets(
    compiled: Mapping[str, CompiledPolicy], host: Host
) -> dict[str, dict[str, dict[str, Any]]]:
    """What each proxy may dial, as the broker is told: by service id, then by target name."""
    upstreams: dict[str, dict[str, Any]] = {
        f"upstream.{upstream.name}": {"workload": upstream.workload, "port": upstream.port}
        if upstream.workload
        else {
            "host": upstream.host,
            "port": upstream.port,
            "addresses": list(upstream.addresses),
        }
        for upstream in host.upstreams
    }
    routes = {
        route.target: {"workload": workload, "port": route.port}
        for workload, one in sorted(compiled.items())
        for route in one.routes
    }
    nets = {
        entry["target"]: {"host": entry["host"], "port": entry["port"]}
        for one in compiled.values()
        for entry in (one.egress or {}).get("net", ())
        if not entry["ask"]
    }
    return {"service.egress": upstreams | nets, "service.ingress": routes}


def _upstream(upstream: Upstream) -> dict[str, Any]:
    return {
        "scheme": upstream.scheme,
        "host": "127.0.0.1" if upstream.workload else upstream.host,
        "port": upstream.port,
        "path": upstream.path,
        "target": f"upstream.{upstream.name}",
        "credential": upstream.credential,
        "header": upstream.header,
        "prefix": upstream.prefix,
        "provider": upstream.provider,
    }
