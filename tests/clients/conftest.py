"""Every client twice: straight to the model server, and through the egress proxy."""

from __future__ import annotations

import base64
import functools
import os
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sandbox import broker
from tests.clients.cell import ClientCell, Outcome
from tests.clients.sdks import BASE, PACKAGES, SDKS, Sdk
from tests.clients.upstreams.server import Seen, Upstream
from tests.unit.egress import harness
from tests.unit.egress.samples import SECRETS

OUT, BACK = SECRETS["gitlab-token"], SECRETS["stripe-key"]
PROMPT = f"My token is {OUT}, is that wise?"
KEY = harness.KEY
RUNTIME = str(harness.ROOT / ".runtime/bin/python3")  # what ships: no package but the pinned


def _png() -> str:
    """One grey pixel, base64."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        whole = kind + data
        return struct.pack("!I", len(data)) + whole + struct.pack("!I", zlib.crc32(whole))

    head = struct.pack("!IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(b"\0\x80")), chunk(b"IEND", b""))
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(parts)).decode()


IMAGE = _png()


@dataclass(frozen=True)
class Ran:
    """One run of all cases of a client: what it said, and what the model server saw of it."""

    outcomes: dict[str, Outcome]
    seen: list[Seen]
    gone: list[str]
    audit: str = ""

    def of(self, script: str) -> list[Seen]:
        """The requests of one script."""
        return [seen for seen in self.seen if seen.script == script]


Runs = Callable[[str, str], Ran]


@pytest.fixture(scope="session")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClientCell]:
    """The launcher; before any thread."""
    if os.geteuid():
        pytest.fail("the clients tier runs as root")
    handle = broker.start(1879050990)
    try:
        made = ClientCell(tmp_path_factory.mktemp("client"), handle)
        yield made
        made.close()
    finally:
        handle.close()


@pytest.fixture(scope="session")
def runs(cell: ClientCell, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Run a client, "direct" or "proxied"; each once in the session, when first asked for."""
    sdks = {sdk.name: sdk for sdk in SDKS}

    @functools.cache
    def attempt(name: str, way: str) -> Ran | Exception:
        folder = tmp_path_factory.mktemp("proxy")
        try:
            return _run(sdks[name], cell, folder, through_proxy=way == "proxied")
        except Exception as error:  # kept too: what failed once is not started for every test
            return error

    def run(name: str, way: str) -> Ran:
        ran = attempt(name, way)
        if isinstance(ran, Exception):
            raise ran
        return ran

    return run


def _run(sdk: Sdk, cell: ClientCell, folder: Path, *, through_proxy: bool) -> Ran:
    upstream = Upstream(sdk.provider, BACK)
    environment = {name: BASE + path for name, path in sdk.base.items()}
    environment |= {sdk.key: harness.PLACEHOLDER, "PACKAGES": PACKAGES}
    start = functools.partial(cell.run, sdk, {"prompt": PROMPT, "image": IMAGE}, environment)
    audit = ""
    try:
        if through_proxy:
            outcomes, audit = _proxied(start, sdk, cell.egress, upstream, folder)
        else:
            outcomes = start(upstream.listen)
        # The last one that left may have done so a moment ago.
        harness.Proxy.wait_for(lambda: {"slow", "endless"} <= set(upstream.gone), 10)
        return Ran(outcomes, list(upstream.seen), list(upstream.gone), audit)
    finally:
        upstream.close()


def _proxied(
    start: Callable[[Callable[[socket.socket], None]], dict[str, Outcome]],
    sdk: Sdk,
    egress: dict[str, Any],
    upstream: Upstream,
    folder: Path,
) -> tuple[dict[str, Outcome], str]:
    """The outcomes with a real proxy on the socket in the sandbox, and its audit records."""
    workload = egress | {"placeholder": harness.PLACEHOLDER}
    declared = harness.declared(sdk.declared, upstream.port)
    declared |= {"target": "upstream.practice", "credential": "practice" if sdk.header else None}
    proxy = harness.Proxy(folder, upstream, python=RUNTIME, workload=workload, upstream=declared)
    try:
        proxy.unlock()

        def serve(listener: socket.socket) -> None:
            order = {"op": "listen", "workload": harness.WORKLOAD}
            assert proxy.command(order, listener.fileno()) == 0

        outcomes = start(serve)
        audit = proxy.audit_path.read_text()
    finally:
        said = proxy.close()
    assert said == b"", "the proxy printed something"
    return outcomes, audit
