"""The command line as an operator runs it (own process, root), against a real control socket."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from supervisor.control import ControlServer, Handler

ROOT = Path(__file__).resolve().parents[3]

Run = Callable[..., subprocess.CompletedProcess[str]]


class Place:
    """A host file in a temporary directory, and the supervisor's control socket behind it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = 8443
        self.columns = ""  # as in a pipe, whatever runs the tests
        self.seen: list[Any] = []
        self._server: ControlServer | None = None
        for name in ("state/logs", "state/audit", "run"):
            (folder / name).mkdir(parents=True)

    @property
    def host_file(self) -> Path:
        path = self.folder / "host.toml"
        path.write_text(
            'schema = "anchorhold.host/1"\n'
            "[paths]\n"
            f'app = "{ROOT}"\nruntime = "{self.folder}/runtime"\npolicies = "{ROOT}/policies"\n'
            f'state = "{self.folder}/state"\nrun = "{self.folder}/run"\n'
            f'[gateway]\nlisten = "127.0.0.1:{self.port}"\n'
            'origins = ["http://127.0.0.1:8443"]\n'
        )
        return path

    def serve(self, handlers: dict[str, Handler]) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self._server = ControlServer(self.folder / "run/control.sock", handlers)
        asyncio.run_coroutine_threadsafe(self._server.start(), self.loop).result(5)

    def close(self) -> None:
        if self._server:
            asyncio.run_coroutine_threadsafe(self._server.close(), self.loop).result(5)
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join()
            self.loop.close()

    def run(
        self, *words: str, stdin: str | bytes = "", timeout: float = 30
    ) -> subprocess.CompletedProcess[str]:
        command = ["/usr/bin/python3", "-IS", str(ROOT / "supervisor"),
                   "--host-file", str(self.host_file), *words]  # fmt: skip
        data = stdin.encode() if isinstance(stdin, str) else stdin
        done = subprocess.run(
            command, input=data, capture_output=True, timeout=timeout, check=False,
            env={**os.environ, "COLUMNS": self.columns},
        )  # fmt: skip
        return subprocess.CompletedProcess(
            command, done.returncode, done.stdout.decode(), done.stderr.decode()
        )


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    if os.geteuid():
        pytest.fail("the host tier runs as root")
    made = Place(tmp_path)
    yield made
    made.close()
