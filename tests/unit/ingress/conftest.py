from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gateway_rig import Gateway


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One running gateway for the tests of a module; it must never have complained."""
    running = Gateway(tmp_path_factory.mktemp("gateway"))
    yield running
    assert running.close() == ""
    assert running.process.returncode == 0


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Gateway]]:
    """Start gateways with limits of the test's own."""
    running: list[Gateway] = []

    def begin(**options: Any) -> Gateway:
        running.append(Gateway(tmp_path, **options))
        return running[-1]

    yield begin
    for one in running:
        one.close()
