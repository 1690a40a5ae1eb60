"""The way to a TPM: whole answers or none, by the device and by the socket."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.vault import channel
from supervisor.vault.channel import Channel, open_channel
from supervisor.vault.errors import Fault, VaultError

ANSWER = struct.pack("!HII", 0x8001, 14, 0) + b"body"


@pytest.fixture(params=["device", "socket"])
def peers(request: pytest.FixtureRequest) -> Iterator[tuple[Channel, socket.socket]]:
    """A channel and the TPM's end of it. Like the device, SEQPACKET gives an answer in one read."""
    device = request.param == "device"
    kind = socket.SOCK_SEQPACKET if device else socket.SOCK_STREAM
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    made = Channel(os.dup(ours.fileno()) if device else ours)
    with ours, theirs:
        yield made, theirs
        made.close()


def test_command_and_answer(peers: tuple[Channel, socket.socket]) -> None:
    ours, theirs = peers
    for command in (b"a command", bytearray(b"another")):
        ours.send(command)
        assert theirs.recv(100) == command
        theirs.send(ANSWER)
        assert ours.receive() == ANSWER


@pytest.mark.parametrize("size", [0, 9, 4097, 2**32 - 1])
def test_length_out_of_bounds(peers: tuple[Channel, socket.socket], size: int) -> None:
    ours, theirs = peers
    ours.send(b"a command")
    theirs.send(struct.pack("!HII", 0x8001, size, 0))
    with pytest.raises(ValueError, match="out of bounds"):
        ours.receive()
    # What is left of that answer is not taken for the next one.
    with pytest.raises(ValueError, match="broken"):
        ours.send(b"the next")


def test_tpm_that_is_gone(peers: tuple[Channel, socket.socket]) -> None:
    ours, theirs = peers
    ours.send(b"a command")
    theirs.close()
    with pytest.raises((OSError, ValueError)):
        ours.receive()


def fault(where: str) -> Fault:
    with pytest.raises(VaultError) as caught, open_channel(where):
        pass
    return caught.value.fault


def test_what_stands_in_the_way_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fault("tcp:somewhere") is Fault.USAGE
    assert fault(f"socket:{tmp_path}/none") is Fault.TPM_ABSENT
    monkeypatch.setattr(channel, "DEVICE", str(tmp_path / "none"))
    assert fault("device") is Fault.TPM_ABSENT
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setattr(channel, "DEVICE", str(tmp_path / "file"))
    assert fault("device") is Fault.TPM_ABSENT
    monkeypatch.setattr(channel, "DEVICE", "/dev/null")
    with open_channel("device"):
        pass
    for error, named in (
        (PermissionError(13, ""), Fault.TPM_DENIED),
        (OSError(16, ""), Fault.TPM_BUSY),
    ):

        def refuse(*_: object, error: OSError = error) -> int:
            raise error

        monkeypatch.setattr(os, "open", refuse)
        assert fault("device") is named
