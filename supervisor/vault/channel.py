"""Ways to a TPM: the kernel's device, or swtpm's raw command stream over a Unix socket."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

from .errors import Fault, VaultError

DEVICE = "/dev/tpmrm0"
HEADER = 10  # tag (2), size (4), return code (4): TPM 2.0 part 1, 18.3
RESPONSE_MAX = 4096
_CC_FLUSH = 0x165
_CC_GET_CAPABILITY = 0x17A
_TIMEOUT = 120.0  # seconds; hardware TPMs were seen to take 30-60 s in a busy boot


class Channel:
    """Carries bare TPM commands and responses. OSError and ValueError mean there is no answer."""

    def __init__(self, connection: socket.socket | int) -> None:
        self._connection = connection
        self._waiting = False

    def send(self, command: bytes | bytearray) -> None:
        """Send one command."""
        # After a response that was not read to its end nothing on this channel can be told apart.
        if self._waiting:
            raise ValueError("the last response was broken")
        self._waiting = True
        if isinstance(self._connection, socket.socket):
            self._connection.sendall(command)
        elif os.write(self._connection, command) != len(command):
            raise ValueError("the device took a part of the command")

    def receive(self) -> bytes:
        """One whole response. Raises OSError, ValueError (a length out of bounds)."""
        response = self._response()
        self._waiting = False
        return response

    def _response(self) -> bytes:
        if isinstance(self._connection, int):  # the device gives a response in one read
            response = os.read(self._connection, RESPONSE_MAX)
            if len(response) < HEADER or int.from_bytes(response[2:6], "big") != len(response):
                raise ValueError("response length out of bounds")
            return response
        head = self._exactly(self._connection, HEADER)
        size = int.from_bytes(head[2:6], "big")
        if not HEADER <= size <= RESPONSE_MAX:
            raise ValueError("response length out of bounds")
        return head + self._exactly(self._connection, size - HEADER)

    @staticmethod
    def _exactly(connection: socket.socket, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = connection.recv(count - len(data))
            if not part:
                raise ConnectionResetError("the TPM closed the connection")
            data += part
        return data

    def ask(self, body: bytes) -> bytes:
        """One command without sessions, from its command code on; the whole response."""
        self.send(struct.pack("!HI", 0x8001, 6 + len(body)) + body)
        return self.receive()

    def close(self) -> None:
        """Close the connection."""
        if isinstance(self._connection, int):
            os.close(self._connection)
        else:
            self._connection.close()

    def flush_leftovers(self) -> None:
        """Flush what killed predecessors left loaded: there is no resource manager to do it.

        Three forgotten objects or sessions and a TPM takes no more (0x902, 0x903). swtpm serves one
        connection at a time, so nothing that is loaded now belongs to anyone.
        """
        for first in (0x8000_0000, 0x0200_0000):  # transient objects, loaded sessions
            answer = self.ask(struct.pack("!IIII", _CC_GET_CAPABILITY, 1, first, 64))
            (count,) = struct.unpack_from("!I", answer, HEADER + 5)
            for handle in struct.unpack_from(f"!{min(count, 64)}I", answer, HEADER + 9):
                if first == 0x0200_0000:  # listed by index; its handle says which kind it is
                    self.ask(struct.pack("!II", _CC_FLUSH, handle | first))
                    self.ask(struct.pack("!II", _CC_FLUSH, (handle & 0xFFFFFF) | 0x0300_0000))
                else:
                    self.ask(struct.pack("!II", _CC_FLUSH, handle))


def _connect(path: str) -> Channel:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        connection.settimeout(_TIMEOUT)
        connection.connect(path)
    except PermissionError as error:
        connection.close()
        raise VaultError(Fault.TPM_DENIED, path) from error
    except OSError as error:
        connection.close()
        raise VaultError(Fault.TPM_ABSENT, f"{path}: {os.strerror(error.errno or 0)}") from error
    channel = Channel(connection)
    try:
        channel.flush_leftovers()
    except (OSError, ValueError, struct.error) as error:
        channel.close()
        raise VaultError(Fault.TPM_FAULT, "no sound answer to the first command") from error
    return channel


def _device() -> Channel:
    try:
        mode = Path(DEVICE).stat().st_mode
        if not stat.S_ISCHR(mode):
            raise VaultError(Fault.TPM_ABSENT, f"{DEVICE} is not a character device")
        return Channel(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except PermissionError as error:
        raise VaultError(Fault.TPM_DENIED, DEVICE) from error
    except FileNotFoundError as error:
        raise VaultError(Fault.TPM_ABSENT, DEVICE) from error
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        fault = Fault.TPM_BUSY if error.errno == errno.EBUSY else Fault.TPM_ABSENT
        raise VaultError(fault, f"{DEVICE}: {reason}") from error


@contextlib.contextmanager
def open_channel(where: str) -> Iterator[Channel]:
    """The channel to `device` or `socket:/PATH`, closed at the end.

    Raises TPM_ABSENT, TPM_DENIED, TPM_BUSY, TPM_FAULT, USAGE.
    """
    if where == "device":
        channel = _device()
    elif where.startswith("socket:/"):
        channel = _connect(where.removeprefix("socket:"))
    else:
        raise VaultError(Fault.USAGE, "--tpm is device or socket:/PATH")
    try:
        yield channel
    finally:
        channel.close()
