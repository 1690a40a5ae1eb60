"""The environment in which official client packages find the egress proxy without being told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from proxy import providers
from supervisor.host import Host


def client_environment(
    egress: Mapping[str, Any] | None, host: Host, port: int
) -> tuple[tuple[str, str], ...]:
    """Base URL and placeholder, in the variables of each provider whose models may be called.

    OpenAI's variables lead to the path without a name, where the model decides about the upstream;
    of other providers the first upstream, by name, is meant.
    """
    if not egress or not egress["models"]:
        return ()
    base = f"http://127.0.0.1:{port}"
    found = {"OPENAI_API_KEY": egress["placeholder"], "OPENAI_BASE_URL": f"{base}/v1"}
    known = providers.load()
    for name in sorted({entry["upstream"] for entry in egress["models"]}):
        upstream = host.upstream(name)
        provider = known.get(upstream.provider) if upstream else None
        if provider is None:
            continue
        if provider.key_variable:
            found.setdefault(provider.key_variable, egress["placeholder"])
        if provider.url_variable:
            found.setdefault(provider.url_variable, f"{base}/{name}{provider.url_path}")
    return tuple(found.items())
