"""A launch plan flattened to what the zygote needs, and nothing that must be imported to read it.

marshal is built into the interpreter: no import cost, and both ends are the same trusted process
image, so its lack of safety against hostile input does not matter here.
"""

from __future__ import annotations

import marshal


class Job:
    """One launch. Field meanings are those of plan.SandboxPlan; see flatten.py."""

    workload: str
    hostname: str
    executable: str
    argv: list[bytes]
    environment: list[bytes]
    cwd: str
    uid: int
    gid: int
    groups: list[int]
    capabilities: int  # mask of what is kept; 0 for every workload
    last_capability: int
    user_namespace: bool
    jit: bool
    mounts: list[tuple[object, ...]]
    rlimits: list[tuple[int, int]]
    landlock_abi: int
    landlock: list[tuple[str, int]]
    tcp_bind: tuple[int, ...]
    tcp_connect: tuple[int, ...]
    seccomp: tuple[bytes, ...]

    __slots__ = tuple(__annotations__)

    def __init__(self, **fields: object) -> None:
        for name in self.__slots__:
            setattr(self, name, fields[name])

    def pack(self) -> bytes:
        """The job as bytes for the zygote."""
        return marshal.dumps([getattr(self, name) for name in self.__slots__])

    @classmethod
    def unpack(cls, data: bytes) -> Job:
        """The job from `pack`'s bytes."""
        return cls(**dict(zip(cls.__slots__, marshal.loads(data), strict=True)))  # noqa: S302
