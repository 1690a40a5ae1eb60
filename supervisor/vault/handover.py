"""The hand-over: keys into secret memory, the descriptor to the egress proxy, nothing else."""

from __future__ import annotations

import socket
from collections.abc import Mapping

from . import entries
from .errors import Fault, VaultError
from .secretmem import secret_mapping


def hand_over(values: Mapping[str, memoryview], peer: socket.socket, *, allow_plain: bool) -> None:
    """Write `values` into one secret mapping and send its descriptor, in one datagram of one byte.

    Raises SECRET_MEMORY_MISSING, HANDOVER_FAILED.
    """
    size = entries.size_of(values)
    with secret_mapping(size, allow_plain=allow_plain) as (fd, mapping):
        with memoryview(mapping) as view:
            entries.write(values, view)
        try:
            socket.send_fds(peer, [b"\x00"], [fd])
        except OSError as error:
            raise VaultError(Fault.HANDOVER_FAILED, error.strerror or "") from None
