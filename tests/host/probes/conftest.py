"""One loaded watch for all tests of this directory; each test has workloads of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from watchrig import Cgroups, Host, Tail

from probes.maps import Watch


@pytest.fixture(scope="session")
def host() -> Iterator[Host]:
    assert os.geteuid() == 0, "the host tier runs as root"
    host = Host()
    yield host
    host.close()


@pytest.fixture(scope="session")
def status(host: Host) -> dict[str, Any]:
    return host.load(denials=True)


@pytest.fixture(scope="session")
def watch(host: Host, status: dict[str, Any]) -> Iterator[Watch]:
    assert status["ok"], status
    with Watch.open(host.pins) as watch:
        yield watch


@pytest.fixture
def tail(watch: Watch) -> Tail:
    return Tail(watch)


@pytest.fixture
def cgroups() -> Iterator[Cgroups]:
    cgroups = Cgroups()
    yield cgroups
    cgroups.close()


@pytest.fixture
def workload(cgroups: Cgroups) -> Path:
    return cgroups.workload()
