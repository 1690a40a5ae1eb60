"""A channel is a socket that one workload can reach; a missing end costs nobody else anything."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from supervisor.channels import Channels


def _compiled(run: Path, *present: str) -> dict[str, Any]:
    """Client and server with one channel between them, as far as Channels looks at policies."""
    path = run / "client.c/server.s.sock"
    channel = SimpleNamespace(server="server.s", client="client.c", host_path=str(path))
    plan = SimpleNamespace(uid=os.getuid())
    return {id_: SimpleNamespace(channels=[channel], sandbox=plan) for id_ in present}


def test_client_reaches_server_and_the_files_go_at_the_end(tmp_path: Path) -> None:
    channels = Channels(tmp_path / "run", _compiled(tmp_path / "run", "client.c", "server.s"))
    path = tmp_path / "run/client.c/server.s.sock"
    assert path.stat().st_mode & 0o777 == 0o600
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    assert channels.server_end("server.s", "client.c") >= 0
    channels.close()
    assert not (tmp_path / "run").exists()


def test_without_its_server_a_channel_refuses(tmp_path: Path) -> None:
    channels = Channels(tmp_path / "run", _compiled(tmp_path / "run", "client.c"))
    with socket.socket(socket.AF_UNIX) as client, pytest.raises(ConnectionRefusedError):
        client.connect(str(tmp_path / "run/client.c/server.s.sock"))
    channels.close()


@pytest.mark.skipif(os.getuid() != 0, reason="NOT TESTED: only root can give a socket to root")
def test_without_its_client_the_server_still_has_its_socket(tmp_path: Path) -> None:
    channels = Channels(tmp_path / "run", _compiled(tmp_path / "run", "server.s"))
    assert channels.server_end("server.s", "client.c") >= 0
    assert (tmp_path / "run/client.c/server.s.sock").stat().st_uid == 0
    channels.close()
