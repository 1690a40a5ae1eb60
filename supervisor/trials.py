"""What this kernel can do, found out by doing it: never by its version number.

Each trial is harmless, leaves nothing behind, and returns an errno name, or "" when it worked.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Callable

from sandbox import devices, syscalls, volumes

_libc = ctypes.CDLL(None, use_errno=True)
_NR_BPF = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
_NR_PIDFD_OPEN, _NR_CLONE3, _NR_CLOSE_RANGE, _NR_OPENAT2 = 434, 435, 436, 437
_NR_MOUNT_SETATTR, _NR_MEMFD_SECRET = 442, 447
_PR_GET_MDWE = 66
_BPF_PROG_LOAD, _BPF_RAW_TRACEPOINT_OPEN, _RAW_TRACEPOINT = 5, 17, 17


def _raw(number: int, *arguments: object) -> tuple[int, str]:
    ctypes.set_errno(0)
    result: int = _libc.syscall(ctypes.c_long(number), *arguments)
    code = ctypes.get_errno() if result == -1 else 0
    return result, errno.errorcode.get(code, str(code)) if code else ""


def _exists(number: int, *arguments: object) -> str:
    """ENOSYS if the call is missing. Called with arguments that it must refuse."""
    result, error = _raw(number, *arguments)
    if result > 2:
        os.close(result)
    return error if error in ("ENOSYS", "EPERM") else ""


def clone3() -> str:
    """clone3(2): starts a process in its cgroup and namespaces (5.7 for CLONE_INTO_CGROUP)."""
    return _exists(_NR_CLONE3, None, ctypes.c_size_t(0))


def openat2() -> str:
    """openat2(2): path resolution that cannot leave its directory (5.6)."""
    return _exists(_NR_OPENAT2, -1, None, None, ctypes.c_size_t(0))


def mount_setattr() -> str:
    """mount_setattr(2): read-only whole trees (5.12)."""
    return _exists(_NR_MOUNT_SETATTR, -1, None, 0, None, ctypes.c_size_t(0))


def close_range() -> str:
    """close_range(2): no descriptor survives (5.9)."""
    return _exists(_NR_CLOSE_RANGE, ctypes.c_uint(1), ctypes.c_uint(0), ctypes.c_uint(0))


def pidfd() -> str:
    """pidfd_open(2): a process is watched by descriptor, not by a pid that is reused (5.3)."""
    result, error = _raw(_NR_PIDFD_OPEN, os.getpid(), 0)
    if not error:
        os.close(result)
    return error


def secret_memory() -> str:
    """memfd_secret(2): pages that not even the kernel maps (5.14, on by default from 6.5)."""
    result, error = _raw(_NR_MEMFD_SECRET, ctypes.c_uint(os.O_CLOEXEC))
    if not error:
        os.close(result)
    return error


def mdwe() -> str:
    """PR_SET_MDWE: written memory never becomes executable (6.3)."""
    try:
        syscalls.prctl(_PR_GET_MDWE)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, "EINVAL")
    return ""


def landlock() -> int:
    """The Landlock ABI, 0 for none."""
    return syscalls.landlock_abi()


def user_namespace() -> str:
    """A user namespace, made in a child."""
    return in_child(lambda: syscalls.unshare(syscalls.CLONE_NEWUSER))


def device_filter() -> str:
    """Load and attach a device program that refuses nothing, in a child. bpf(2)."""
    return in_child(devices.try_out)


def loop_device() -> str:
    """Put memory behind a loop device, which then lets go of it. loop(4)."""
    return in_child(volumes.try_loop)


def probe() -> str:
    """Load and attach an empty raw tracepoint program on sys_enter, in a child. bpf(2)."""
    return in_child(_attach_probe)


def _attach_probe() -> None:
    # mov r0, 0; exit
    program = ctypes.create_string_buffer(struct.pack("=QQ", 0xB7, 0x95), 16)
    licence = ctypes.create_string_buffer(b"GPL")
    load = struct.pack(
        "=IIQQ", _RAW_TRACEPOINT, 2, ctypes.addressof(program), ctypes.addressof(licence)
    ).ljust(72, b"\0")
    fd, error = _raw(_NR_BPF, _BPF_PROG_LOAD, load, len(load))
    if not error:
        name = ctypes.create_string_buffer(b"sys_enter")
        attach = struct.pack("=QI4x", ctypes.addressof(name), fd)
        _fd, error = _raw(_NR_BPF, _BPF_RAW_TRACEPOINT_OPEN, attach, len(attach))
    if error:
        raise OSError(getattr(errno, error), error)


def in_child(trial: Callable[[], None]) -> str:
    """Run `trial` in a child, because it cannot be taken back; its errno name, "" if it worked."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 255
        try:
            trial()
            code = 0
        except OSError as error:
            code = error.errno or 255
        finally:
            os.write(writer, struct.pack("i", code))
            os._exit(0)
    os.close(writer)
    raw = os.read(reader, 4)
    os.close(reader)
    os.waitpid(pid, 0)
    if len(raw) != 4:
        return "killed"  # by a filter around us
    (code,) = struct.unpack("i", raw)
    return errno.errorcode.get(code, f"error {code}") if code else ""
