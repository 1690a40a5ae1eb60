"""The Unix sockets between workloads: one listening socket per pair, so that the socket says who.

The supervisor holds the listening ends for as long as it lives: a server that restarts gets the
same socket again, and clients simply reconnect.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path

from supervisor.policy.plans import CompiledPolicy

_BACKLOG = 64


class Channels:
    """All channels of the compiled policies, below `directory`."""

    def __init__(self, directory: Path, compiled: Mapping[str, CompiledPolicy]) -> None:
        """Make every socket, owned by its client alone. Raises OSError.

        Each end may be missing, because its policy is broken: the other one runs without it.
        """
        self._directory = directory
        self._listening: dict[tuple[str, str], socket.socket] = {}
        _clear(directory)  # sockets of a run that was killed
        for one in compiled.values():
            for channel in one.channels:
                ends = channel.server, channel.client
                if ends not in self._listening:
                    client = compiled.get(channel.client)
                    uid = client.sandbox.uid if client else 0
                    made = self._listening[ends] = _bind(Path(channel.host_path), uid)
                    # Without its server the socket is there all the same: it refuses.
                    if channel.server in compiled:
                        made.listen(_BACKLOG)

    def server_end(self, server: str, client: str) -> int:
        """The descriptor on which `server` accepts `client`."""
        return self._listening[server, client].fileno()

    def close(self) -> None:
        """Close and remove every socket."""
        for listening in self._listening.values():
            listening.close()
        self._listening.clear()
        _clear(self._directory)


def _clear(directory: Path) -> None:
    """Remove CLIENT/SERVER.sock and what held them. shutil would cost the root process 1 MB."""
    for client in directory.glob("*") if not directory.is_symlink() else ():
        if client.is_symlink():  # not ours; what it leads to is nobody's business here
            client.unlink()
            continue
        for path in client.glob("*.sock"):
            path.unlink()
        client.rmdir()
    if directory.is_symlink():
        directory.unlink()
    elif directory.exists():
        directory.rmdir()


def _bind(path: Path, uid: int) -> socket.socket:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made.bind(str(path))
    os.chown(path, uid, uid)
    path.chmod(0o600)
    return made
