"""Which device nodes a cgroup may open or make: a program of ours that the kernel asks each time.

cgroup v2 has no file for it, only BPF_PROG_TYPE_CGROUP_DEVICE. The nodes in a workload's /dev are
those of its plan already; this holds where a mount, a node made by mknod or a descriptor from
elsewhere would show another one. Attached to the leaf, the program lives and dies with it. Every
program above it in the tree is asked as well: all must agree, so nobody can loosen it.
Sources: bpf(2), linux/bpf.h, security/device_cgroup.c, kernel/bpf/cgroup.c.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import struct
from pathlib import Path
from typing import NamedTuple

from sandbox import delegation
from sandbox.errors import SandboxError
from sandbox.plan import Device, SandboxPlan

_NR_BPF = 321  # x86-64
_PROG_LOAD, _PROG_ATTACH, _INFO_BY_FD, _LINK_CREATE = 5, 8, 15, 28
_PROG_TYPE_CGROUP_DEVICE, _ATTACH_CGROUP_DEVICE = 15, 6
_ALLOW_MULTI, _REPLACE = 2, 4

BLOCK, CHARACTER = 1, 2  # BPF_DEVCG_DEV_*
MAKE, READ, WRITE = 1, 2, 4  # BPF_DEVCG_ACC_*
_EVERYTHING = MAKE | READ | WRITE

_libc = ctypes.CDLL(None, use_errno=True)
_programs: dict[tuple[Rule, ...], int] = {}


class Rule(NamedTuple):
    """One node by its number, and the sum of MAKE, READ and WRITE that is allowed on it."""

    kind: int
    major: int
    minor: int
    access: int

    def __str__(self) -> str:
        letters = zip("rwm", (READ, WRITE, MAKE), strict=True)
        access = "".join(letter for letter, bit in letters if self.access & bit)
        return f"{'b' if self.kind == BLOCK else 'c'} {self.major}:{self.minor} {access}"


def rules(plan: SandboxPlan) -> tuple[Rule, ...]:
    """What `plan` lets its workload do with device nodes; nobody makes any."""
    devices = (mount for mount in plan.mounts if isinstance(mount, Device))
    return tuple(sorted({Rule(CHARACTER, d.major, d.minor, READ | WRITE) for d in devices}))


def assemble(allowed: tuple[Rule, ...]) -> bytes:
    """The program: 1 for what some rule allows, 0 for all else. linux/bpf_common.h, linux/bpf.h.

    r1 points to struct bpf_cgroup_dev_ctx: access in the upper and kind in the lower half of the
    first word, then major and minor.
    """
    r0, r1, access, kind, major, minor = range(6)
    load, move, and_, shift = 0x61, 0xB7, 0x57, 0x77
    copy, unless_equal, leave = 0xBF, 0x55, 0x95
    code = [
        _instruction(load, access, r1, 0),
        _instruction(load, major, r1, 4),
        _instruction(load, minor, r1, 8),
        _instruction(copy, kind, access),
        _instruction(and_, kind, value=0xFFFF),
        _instruction(shift, access, value=16),
    ]
    for rule in allowed:
        code += [
            _instruction(unless_equal, kind, offset=7, value=rule.kind),
            _instruction(unless_equal, major, offset=6, value=rule.major),
            _instruction(unless_equal, minor, offset=5, value=rule.minor),
            _instruction(copy, r0, access),
            _instruction(and_, r0, value=_EVERYTHING & ~rule.access),
            _instruction(unless_equal, r0, offset=2, value=0),
            _instruction(move, r0, value=1),
            _instruction(leave),
        ]
    code += [_instruction(move, r0, value=0), _instruction(leave)]
    return b"".join(code)


def _instruction(
    code: int, target: int = 0, source: int = 0, offset: int = 0, value: int = 0
) -> bytes:
    return struct.pack("=BBhi", code, source << 4 | target, offset, value)


def load(allowed: tuple[Rule, ...]) -> int:
    """The descriptor of the program for `allowed`; loaded once, then kept for every launch.

    Needs CAP_BPF and CAP_NET_ADMIN: the supervisor calls it before it gives the second up. Raises
    OSError, SandboxError if the kernel holds another program than the one it was given.
    """
    if allowed not in _programs:
        code = assemble(allowed)
        program = _load(code)
        # First bytes of a hash of the instructions as loaded; SHA-1 until Linux 6.17.
        known = (hashlib.sha256(code), hashlib.sha1(code, usedforsecurity=False))
        if _tag(program) not in [digest.digest()[:8] for digest in known]:
            os.close(program)
            raise SandboxError("device_filter", "the kernel tells another tag than the program's")
        _programs[allowed] = program
    return _programs[allowed]


def attach(leaf: Path, plan: SandboxPlan) -> None:
    """From here on every process in the cgroup `leaf` opens the devices of `plan` and no others.

    Raises SandboxError `device_filter`.
    """
    try:
        _attach(leaf, load(rules(plan)), _ALLOW_MULTI)
    except OSError as error:
        raise SandboxError(
            "device_filter",
            f"{plan.workload}: no device filter: {error.strerror}",
            "`anchorhold doctor` tells why; or waive `device-filter` in the host file",
        ) from error


def attached(leaf: Path, plan: SandboxPlan) -> bool:
    """Whether the kernel has the program of `plan` attached to the cgroup `leaf`.

    Asked by replacing it with itself, which is refused where it is not: BPF_PROG_QUERY needs
    CAP_NET_ADMIN, which the supervisor has given up. Raises FileNotFoundError without the cgroup.
    """
    program = _programs.get(rules(plan))
    if program is None:
        return False
    try:
        _attach(leaf, program, _ALLOW_MULTI | _REPLACE)
    except FileNotFoundError:
        leaf.stat()
        return False
    return True


def try_out() -> None:
    """Load a program that refuses nothing and hang it on our own cgroup until the process ends.

    For a process that ends right afterwards. Raises OSError, also where there is no cgroup2.
    """
    own = delegation.own_cgroup()
    if own is None:
        raise FileNotFoundError(2, "no cgroup v2 hierarchy is mounted")
    cgroup = os.open(own, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    program = _load(_instruction(0xB7, value=1) + _instruction(0x95))
    _bpf(_LINK_CREATE, struct.pack("=4I", program, cgroup, _ATTACH_CGROUP_DEVICE, 0))


def _load(code: bytes) -> int:
    instructions = ctypes.create_string_buffer(code, len(code))
    licence = ctypes.create_string_buffer(b"Apache-2.0")
    head = struct.pack(
        "=IIQQ", _PROG_TYPE_CGROUP_DEVICE, len(code) // 8,
        ctypes.addressof(instructions), ctypes.addressof(licence),
    )  # fmt: skip
    # Log, version and flags stay 0; the name, an interface index, the type of attachment.
    tail = struct.pack("=16sII", b"anchorhold", 0, _ATTACH_CGROUP_DEVICE)
    return _bpf(_PROG_LOAD, head.ljust(48, b"\0") + tail)


def _attach(leaf: Path, program: int, flags: int) -> None:
    cgroup = os.open(leaf, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        replaced = program if flags & _REPLACE else 0
        fields = (cgroup, program, _ATTACH_CGROUP_DEVICE, flags, replaced)
        _bpf(_PROG_ATTACH, struct.pack("=5I", *fields))
    finally:
        os.close(cgroup)


def _tag(program: int) -> bytes:
    info = ctypes.create_string_buffer(16)  # type, id, tag; the kernel fills what fits
    _bpf(_INFO_BY_FD, struct.pack("=IIQ", program, len(info), ctypes.addressof(info)))
    return info.raw[8:16]


def _bpf(command: int, fields: bytes) -> int:
    buffer = ctypes.create_string_buffer(fields, len(fields))
    result: int = _libc.syscall(
        ctypes.c_long(_NR_BPF), ctypes.c_long(command), buffer, ctypes.c_long(len(fields))
    )
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), "bpf")
    return result
