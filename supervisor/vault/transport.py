"""Ways to a TPM: the kernel's device, or swtpm's raw command stream over a Unix socket.

libtss2 3.2.1 can speak to swtpm over TCP only, so the socket is a TCTI written here. Its function
pointers come from ctypes and not from cffi: where writable and executable memory is refused, libffi
falls back to a double-mapped memfd, while cffi's own allocator gives up.
"""

from __future__ import annotations

import ctypes
import os
import socket
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tpm2_pytss._libtpm2_pytss import ffi  # type: ignore[import-untyped]
from tpm2_pytss.TCTI import TCTI  # type: ignore[import-untyped]  # ships no type information
from tpm2_pytss.TCTILdr import TCTILdr  # type: ignore[import-untyped]

from .errors import Fault, VaultError

DEVICE = "/dev/tpmrm0"
_MAGIC = 0x616E63686F723031  # any number that is ours
_RESPONSE_MAX = 4096
_HEADER = 10  # tag (2), size (4), return code (4): TPM 2.0 part 1, 18.3
_CC_FLUSH = 0x165
_CC_GET_CAPABILITY = 0x17A
_TIMEOUT = 120.0  # seconds; hardware TPMs were seen to take 30-60 s in a busy boot

_OK = 0
_BAD_REFERENCE = 0x000A0005
_BAD_CONTEXT = 0x000A0001
_INSUFFICIENT_BUFFER = 0x000A0006
_IO_ERROR = 0x000A000A

_TRANSMIT = ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
_RECEIVE = ctypes.CFUNCTYPE(
    ctypes.c_uint32,
    ctypes.c_void_p,
    ctypes.POINTER(ctypes.c_size_t),
    ctypes.c_void_p,
    ctypes.c_int32,
)
_FINALIZE = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class UnixTcti(TCTI):  # type: ignore[misc]  # the base class is untyped
    """A TCTI over a connected stream socket that carries bare TPM commands and responses."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._response: bytes | None = None
        context = ffi.new("TSS2_TCTI_CONTEXT_COMMON_V1 *")
        # ctypes closures must outlive the context, or the library jumps into freed memory.
        self._alive: list[Any] = [context]
        context.magic = _MAGIC
        context.version = 1
        context.transmit = self._pointer("TSS2_TCTI_TRANSMIT_FCN", _TRANSMIT(self._on_transmit))
        context.receive = self._pointer("TSS2_TCTI_RECEIVE_FCN", _RECEIVE(self._on_receive))
        context.finalize = self._pointer("TSS2_TCTI_FINALIZE_FCN", _FINALIZE(lambda _: None))
        super().__init__(ffi.cast("TSS2_TCTI_CONTEXT *", context))

    def _pointer(self, kind: str, closure: Any) -> Any:
        self._alive.append(closure)
        return ffi.cast(kind, ctypes.cast(closure, ctypes.c_void_p).value)

    def _on_transmit(self, _context: int, size: int, command: int) -> int:
        # An exception must not cross the C frames: it would be printed and read as success.
        try:
            self._socket.sendall(ctypes.string_at(command, size))
        except OSError:
            return _IO_ERROR
        return _OK

    def _on_receive(self, _context: int, size: Any, response: int | None, _timeout: int) -> int:
        try:
            if self._response is None:
                self._response = self._read_response()
        except (OSError, ValueError):
            return _IO_ERROR
        room, size[0] = size[0], len(self._response)
        if response is None:  # only the size is asked for
            return _OK
        if room < len(self._response):
            return _INSUFFICIENT_BUFFER
        ctypes.memmove(response, self._response, len(self._response))
        self._response = None
        return _OK

    def _read_response(self) -> bytes:
        head = self._read_exactly(_HEADER)
        size = int.from_bytes(head[2:6], "big")
        if not _HEADER <= size <= _RESPONSE_MAX:
            raise ValueError("response length out of bounds")
        return head + self._read_exactly(size - _HEADER)

    def _read_exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = self._socket.recv(count - len(data))
            if not part:
                raise ConnectionResetError("the TPM closed the connection")
            data += part
        return data

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def flush_leftovers(self) -> None:
        """Flush what killed predecessors left loaded: there is no resource manager to do it.

        Three forgotten objects or sessions and a TPM takes no more (0x902, 0x903). swtpm serves one
        connection at a time, so nothing that is loaded now belongs to anyone. Raises OSError.
        """
        for first in (0x8000_0000, 0x0200_0000):  # transient objects, loaded sessions
            answer = self._ask(struct.pack("!IIII", _CC_GET_CAPABILITY, 1, first, 64))
            (count,) = struct.unpack_from("!I", answer, _HEADER + 5)
            for handle in struct.unpack_from(f"!{min(count, 64)}I", answer, _HEADER + 9):
                if first == 0x0200_0000:  # listed by index; its handle says which kind it is
                    self._ask(struct.pack("!II", _CC_FLUSH, handle | first))
                    self._ask(struct.pack("!II", _CC_FLUSH, (handle & 0xFFFFFF) | 0x0300_0000))
                else:
                    self._ask(struct.pack("!II", _CC_FLUSH, handle))

    def _ask(self, body: bytes) -> bytes:
        self._socket.sendall(struct.pack("!HI", 0x8001, 6 + len(body)) + body)
        return self._read_response()


def _connect(path: str) -> UnixTcti:
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
    tcti = UnixTcti(connection)
    try:
        tcti.flush_leftovers()
    except (OSError, ValueError, struct.error) as error:
        tcti.close()
        raise VaultError(Fault.TPM_FAULT, "no sound answer to the first command") from error
    return tcti


def _device() -> TCTI:
    # The TCTI has one code for every failed open, so the reason is found out beforehand.
    try:
        mode = Path(DEVICE).stat().st_mode
    except OSError as error:
        raise VaultError(Fault.TPM_ABSENT, DEVICE) from error
    if not stat.S_ISCHR(mode):
        raise VaultError(Fault.TPM_ABSENT, f"{DEVICE} is not a character device")
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        raise VaultError(Fault.TPM_DENIED, DEVICE)
    return TCTILdr("device", DEVICE)


def open_tcti(where: str) -> tuple[TCTI, Callable[[], None]]:
    """The TCTI for `device` or `socket:/PATH`, and the function that closes it.

    Raises TPM_ABSENT, TPM_DENIED, USAGE.
    """
    if where == "device":
        tcti = _device()
        return tcti, tcti.close
    if where.startswith("socket:/"):
        unix = _connect(where.removeprefix("socket:"))
        return unix, unix.close
    raise VaultError(Fault.USAGE, "--tpm is device or socket:/PATH")
