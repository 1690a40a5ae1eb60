"""The values in the kernel maps, byte for byte: shared by loader, supervisor, reader and tests.

A workload owns a slot. `slots` maps its cgroup id to the slot number; `rules`, `state` and
`counters` are arrays indexed by it. Tables are bytes, not bits: a byte store cannot lose another
CPU's store, and the programs need no atomic operation on their common way.
"""

from __future__ import annotations

import struct
from collections import namedtuple  # not typing: the reader lives on 0.6 MB less

ABI = 1
CALLS = 512  # call numbers the tables have room for; a number outside is an alert
SLOTS = 512
RING_BYTES = 256 * 1024
MEMBERS = 16384

MAPS = ("slots", "rules", "state", "counters", "members", "ring", "manifest")

# Classes of a call in `rules`.
UNSEEN, ALLOWED, HIGH_RISK = 0, 1, 2

# rules: class of every call, then on_unseen, on_high_risk, denials, padding.
RULES = struct.Struct(f"<{CALLS}sBBB5x")
# state: what was called, errno bits by call, errno bits by foreign flags, two rate limiters.
STATE = struct.Struct(f"<{CALLS}s{CALLS}s8sQQ")
# slots: the slot, and its counters at the time of registering.
SLOT = struct.Struct("<I4xQQQ")
# counters: cgroup id of the last event, seen, suppressed, lost. Frozen: programs add, nobody else
# writes, so a slot's totals go on from workload to workload.
COUNTERS = struct.Struct("<QQQQ")
# manifest: ABI, level, whether the denial filter is attached, padding.
MANIFEST = struct.Struct("<III4x")

# errno values the denial filter reports, in bit order. ENOSYS is what our seccomp filter answers
# to a call no rule names; ENOENT is left out, because every search path makes dozens of them.
DENIALS = {
    "EPERM": 1,
    "EACCES": 13,
    "EROFS": 30,
    "ENOSYS": 38,
    "EAFNOSUPPORT": 97,
    "ENETUNREACH": 101,
}

# Rate limiters, one for alerts and one for records, each workload its own.
BURST = 64
PER_SECOND = 64


class Counters(namedtuple("Counters", "seen suppressed lost")):
    """Totals of one workload since it was registered: events met, held back, lost in a full ring.

    Events delivered = seen - suppressed - lost. They never go down.
    """

    __slots__ = ()
    seen: int
    suppressed: int
    lost: int


def macros() -> dict[str, int]:
    """The numbers of this file as the C source wants them."""
    return {
        "CALLS_ALLOWED": ALLOWED,
        "CALLS_RISK": HIGH_RISK,
        "CALLS": CALLS,
        "SLOTS": SLOTS,
        "MEMBERS": MEMBERS,
        "RING_PAGES": RING_BYTES // 4096,
        "RULES_SIZE": RULES.size,
        "STATE_SIZE": STATE.size,
        "SLOT_SIZE": SLOT.size,
        "COUNTERS_SIZE": COUNTERS.size,
        "MANIFEST_SIZE": MANIFEST.size,
        "INTERVAL_NS": 1_000_000_000 // PER_SECOND,
        "BURST_NS": BURST * 1_000_000_000 // PER_SECOND,
    }
