"""A TCTI of libtss2 over a `Channel`.

libtss2 3.2.1 can speak to swtpm over TCP only, so the transport is written here. Its function
pointers come from ctypes and not from cffi: where writable and executable memory is refused, libffi
falls back to a double-mapped memfd, while cffi's own allocator gives up.
"""

from __future__ import annotations

import ctypes
from typing import Any

from tpm2_pytss._libtpm2_pytss import ffi  # type: ignore[import-untyped]
from tpm2_pytss.TCTI import TCTI  # type: ignore[import-untyped]  # ships no type information

from .channel import Channel

_MAGIC = 0x616E63686F723031  # any number that is ours
_OK = 0
_INSUFFICIENT_BUFFER = 0x000A0006
IO_ERROR = 0x000A000A

_TRANSMIT = ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
_RECEIVE = ctypes.CFUNCTYPE(
    ctypes.c_uint32,
    ctypes.c_void_p,
    ctypes.POINTER(ctypes.c_size_t),
    ctypes.c_void_p,
    ctypes.c_int32,
)
_FINALIZE = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class ChannelTcti(TCTI):  # type: ignore[misc]  # the base class is untyped
    """Hands the library's commands to a channel."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
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
            self._channel.send(ctypes.string_at(command, size))
        except (OSError, ValueError):
            return IO_ERROR
        return _OK

    def _on_receive(self, _context: int, size: Any, response: int | None, _timeout: int) -> int:
        try:
            if self._response is None:
                self._response = self._channel.receive()
        except (OSError, ValueError):
            return IO_ERROR
        room, size[0] = size[0], len(self._response)
        if response is None:  # only the size is asked for
            return _OK
        if room < len(self._response):
            return _INSUFFICIENT_BUFFER
        ctypes.memmove(response, self._response, len(self._response))
        self._response = None
        return _OK
