"""What a workload is handed at launch, opened by name for one launch and closed after it."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path

from sandbox.addresses import is_loopback
from sandbox.broker import BrokerHandle
from sandbox.errors import SandboxError
from sandbox.plan import SandboxPlan
from supervisor.channels import Channels
from supervisor.watching import memfd


class Descriptors:
    """The open descriptors of one launch.

    `ours` holds the supervisor's ends by name (the `control` line); whoever takes one removes it.
    """

    def __init__(self) -> None:
        self.fds: dict[str, int] = {}
        self.ours: dict[str, socket.socket] = {}
        self._close: list[int] = []

    def lend(self, name: str, fd: int) -> None:
        """Hand over a descriptor that stays the caller's."""
        self.fds[name] = fd

    def give(self, name: str, fd: int) -> None:
        """Hand over a descriptor that is closed here after the launch."""
        self.fds[name] = fd
        self._close.append(fd)

    def line(self, name: str) -> socket.socket:
        """Hand over one end of a SEQPACKET pair; the other end."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.give(name, theirs.detach())
        self.ours[name] = ours
        return ours

    def close_ours(self) -> None:
        """The launch failed: nobody will take the lines."""
        for line in self.ours.values():
            line.close()

    def close(self) -> None:
        """After the launch, successful or not."""
        for fd in self._close:
            os.close(fd)
        self._close.clear()


class Outfitter:
    """Opens what a policy names: configuration, audit file, lines, sockets."""

    def __init__(
        self,
        state: Path,
        channels: Channels,
        broker: BrokerHandle,
        listening: socket.socket,
        targets: Mapping[str, dict[str, dict[str, object]]],
    ) -> None:
        self._state = state
        self._channels = channels
        self._broker = broker
        self._listening = listening
        self._targets = targets

    def open(self, plan: SandboxPlan, config: object, extra: Mapping[str, int]) -> Descriptors:
        """All of `plan`'s descriptors; `extra` come from the caller and stay his.

        Raises OSError and SandboxError; then nothing stays open.
        """
        found = Descriptors()
        try:
            for name in plan.fds:
                self._open(found, plan.workload, name, config, extra)
        except BaseException:
            found.close_ours()
            found.close()
            raise
        return found

    def _open(
        self,
        found: Descriptors,
        workload: str,
        name: str,
        config: object,
        extra: Mapping[str, int],
    ) -> None:
        if name in extra:
            found.lend(name, extra[name])
        elif name == "config":
            found.give(name, memfd(config))
        elif name == "audit":
            found.give(name, self.append(f"audit/{workload}.jsonl"))
        elif name == "broker":
            line = found.line(name)
            self._broker.client(workload, dict(self._targets.get(workload, {})), line)
            line.close()
        elif name == "control":
            found.line(name)
        elif name == "listen":
            found.lend(name, self._listening.fileno())
        elif name.startswith("channel."):
            found.lend(name, self._channels.server_end(workload, name.removeprefix("channel.")))
        else:
            raise SandboxError(
                "no_descriptor",
                f"{workload}: nobody hands over {name}",
                "remove it from the policy",
            )

    def append(self, name: str) -> int:
        """See `append_to`; `name` is FOLDER/FILE in the state directory. Raises SandboxError."""
        if len(Path(name).parts) != 2 or not name.isprintable():
            raise SandboxError("bad_name", f"{name!r} is no file of the state", "correct the id")
        return append_to(self._state / name)


def append_to(path: Path) -> int:
    """An append-only file for root and nobody else to read. A line that a power cut left without
    its end is ended, so that it spoils no other."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Neither the directory nor the file may be a link to somewhere else.
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return _append_in(folder, path.name)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        os.close(folder)


def _append_in(folder: int, name: str) -> int:
    flags = os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    reading = os.open(name, os.O_RDWR | flags, 0o600, dir_fd=folder)
    try:
        end = os.fstat(reading).st_size
        if end and os.pread(reading, 1, end - 1) != b"\n":
            os.write(reading, b"\n")
    finally:
        os.close(reading)
    return os.open(name, os.O_WRONLY | flags, 0o600, dir_fd=folder)


def listen(address: str) -> socket.socket:
    """The gateway's socket. Not loopback would need TLS, which the gateway does not speak yet."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not is_loopback(host):
        raise OSError(
            99, f"gateway.listen {address} is not loopback: put a TLS proxy in front", address
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, int(port)))
        listening.listen(128)
    except OSError as error:
        listening.close()
        fix = "end what listens there, or name another address as gateway.listen in the host file"
        raise OSError(error.errno, f"{error.strerror}: {fix}", address) from None
    return listening
