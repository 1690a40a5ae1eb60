"""Fixtures: one upstream and one proxy per module, or a fresh one where a test needs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .harness import KEY, Proxy, Upstream, completion, reply


@pytest.fixture(scope="module")
def shared_upstream() -> Iterator[Upstream]:
    server = Upstream()
    yield server
    server.close()


@pytest.fixture
def upstream(shared_upstream: Upstream) -> Upstream:
    shared_upstream.answer = reply(completion("ok"))
    shared_upstream.seen.clear()
    shared_upstream.gone.clear()
    return shared_upstream


@pytest.fixture(scope="module")
def shared_proxy(
    tmp_path_factory: pytest.TempPathFactory, shared_upstream: Upstream
) -> Iterator[Proxy]:
    started = Proxy(tmp_path_factory.mktemp("egress"), shared_upstream)
    started.listen()
    started.listen("other")
    started.unlock()
    yield started
    audit = started.audit_path.read_text()
    output = started.close()
    assert KEY not in audit
    assert KEY.encode() not in output
    assert output == b"", "the proxy printed something"


@pytest.fixture
def proxy(shared_proxy: Proxy, upstream: Upstream) -> Proxy:
    shared_proxy.broker.refuse.clear()
    return shared_proxy


@pytest.fixture
def start(tmp_path: Path, upstream: Upstream) -> Iterator[Callable[..., Proxy]]:
    started: list[Proxy] = []

    def build(**changes: Any) -> Proxy:
        proxy = Proxy(tmp_path, upstream, **changes)
        started.append(proxy)
        return proxy

    yield build
    for proxy in started:
        proxy.close()
