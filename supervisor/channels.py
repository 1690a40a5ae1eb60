"""The Unix sockets between workloads: one listening socket per pair, so that the socket says who.

The supervisor holds the listening ends for as long as it lives: a server that restarts gets the
same socket again, and clients simply reconnect.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path

from supervisor.policy.plans import CompiledPolicy

_BACKLOG = 64


class Channels:
    """All channels of the compiled policies, below `directory`."""

    def __init__(self, directory: Path, compiled: Mapping[str, CompiledPolicy]) -> None:
        """Make every socket, owned by its client alone. Raises OSError."""
        self._directory = directory
        self._listening: dict[tuple[str, str], socket.socket] = {}
        shutil.rmtree(directory, ignore_errors=True)  # sockets of a run that was killed
        for server in compiled.values():
            for channel in server.channels:
                if channel.role == "server" and channel.client in compiled:
                    client = compiled[channel.client].sandbox
                    made = _listen(Path(channel.host_path), client.uid, client.gid)
                    self._listening[channel.server, channel.client] = made

    def server_end(self, server: str, client: str) -> int:
        """The descriptor on which `server` accepts `client`. KeyError: no such client runs here."""
        return self._listening[server, client].fileno()

    def close(self) -> None:
        """Close and remove every socket."""
        for listening in self._listening.values():
            listening.close()
        self._listening.clear()
        shutil.rmtree(self._directory, ignore_errors=True)


def _listen(path: Path, uid: int, gid: int) -> socket.socket:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(str(path))
    os.chown(path, uid, gid)
    path.chmod(0o600)
    listening.listen(_BACKLOG)
    return listening
