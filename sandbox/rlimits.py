"""The resource limits of a workload's process: what a plan asks for and what the kernel calls it.

Source: getrlimit(2), proc(5) for the labels of /proc/PID/limits.
"""

from __future__ import annotations

import resource

from sandbox.plan import Limits

_STACK = 8 << 20
_SIGNALS = 1024

NUMBERS = {
    "core": resource.RLIMIT_CORE,
    "fsize": resource.RLIMIT_FSIZE,
    "nofile": resource.RLIMIT_NOFILE,
    "memlock": resource.RLIMIT_MEMLOCK,
    "msgqueue": resource.RLIMIT_MSGQUEUE,
    "nice": resource.RLIMIT_NICE,
    "rtprio": resource.RLIMIT_RTPRIO,
    "sigpending": resource.RLIMIT_SIGPENDING,
    "stack": resource.RLIMIT_STACK,
}
LABELS = {
    "core": "Max core file size",
    "fsize": "Max file size",
    "nofile": "Max open files",
    "memlock": "Max locked memory",
    "msgqueue": "Max msgqueue size",
    "nice": "Max nice priority",
    "rtprio": "Max realtime priority",
    "sigpending": "Max pending signals",
    "stack": "Max stack size",
}


def planned(limits: Limits) -> dict[str, int]:
    """The bounds by name, bytes and counts; soft equals hard. Processes are counted by pids.max:
    RLIMIT_NPROC counts per uid, and the privileged escape it."""
    return {
        "core": 0,
        "fsize": limits.fsize,
        "nofile": limits.nofile,
        "memlock": limits.memlock,
        "msgqueue": 0,
        "nice": 0,
        "rtprio": 0,
        "sigpending": _SIGNALS,
        "stack": _STACK,
    }
