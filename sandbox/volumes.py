"""Directories that cannot grow past a number of bytes and of files, whatever is written into them.

Two ways: a project quota, where the file system is mounted with one, or a file system of its own in
a preallocated image behind a loop device. Either way statvfs(3) tells how full it is. Sources:
quotactl(2), ioctl_xfs_fsgetxattr(2), loop(4), mke2fs(8), tune2fs(8), linux/loop.h.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sandbox import syscalls

_MKFS, _TUNE = "/usr/sbin/mkfs.ext4", "/usr/sbin/tune2fs"
_BLOCK = 4096
_JOURNAL = 4  # MiB; the least that a journal of 4 KiB blocks can be

_NR_QUOTACTL_FD = 443  # 5.14
_PROJECT = 2
_SET_QUOTA, _GET_QUOTA = 0x800008 << 8 | _PROJECT, 0x800007 << 8 | _PROJECT
_QUOTA = struct.Struct("=8QI4x")  # struct if_dqblk: hard, soft, space; hard, soft, files; times
_LIMITS = 1 | 4  # QIF_BLIMITS, QIF_ILIMITS
_GET_ATTRIBUTES, _SET_ATTRIBUTES = 0x801C581F, 0x401C5820
_ATTRIBUTES = struct.Struct("=5I8x")  # struct fsxattr: flags, two hints, project, a hint
_INHERIT = 0x200  # FS_XFLAG_PROJINHERIT: what is made in it belongs to the project

_GET_FREE, _CONFIGURE = 0x4C82, 0x4C0A
_AUTOCLEAR = 4  # the device lets go of the file when its last user is gone
_MS_NOSYMFOLLOW = 256
_FLAGS = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC | _MS_NOSYMFOLLOW

_libc = ctypes.CDLL(None, use_errno=True)


def has_quota(path: Path, mountinfo: Path = Path("/proc/self/mountinfo")) -> bool:
    """Whether the file system that holds `path` enforces project quotas. proc(5), ext4(5)."""
    device = path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in mountinfo.read_text().splitlines():
        left, _, right = line.partition(" - ")
        if left.split()[2] == number:
            return bool({"prjquota", "pquota"} & set(right.split()[2].split(",")))
    return False


def set_quota(directory: Path, project: int, size: int, files: int) -> None:
    """Bound `directory`, with all that is in it, to `size` bytes and `files` files.

    `project` is a number that no other directory of the file system has. Raises OSError, also when
    the kernel reads back other limits.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        wanted = (-(-size // 1024), files)  # the kernel counts in KiB
        limits = ctypes.create_string_buffer(
            _QUOTA.pack(wanted[0], 0, 0, wanted[1], 0, 0, 0, 0, _LIMITS), _QUOTA.size
        )
        _quotactl(fd, _SET_QUOTA, project, limits)
        _quotactl(fd, _GET_QUOTA, project, limits)
        found = _QUOTA.unpack(limits.raw)
        if (found[0], found[3]) != wanted:
            raise OSError(errno.EIO, f"quota not in force: {found}", str(directory))
        if _project(fd) != project:
            for _, folders, names, here in os.fwalk(".", topdown=False, dir_fd=fd):
                for name in (*folders, *names):
                    _join(here, name, project)
            _join(fd, ".", project)  # last: it says that all below it is in
    finally:
        os.close(fd)


def _quotactl(fd: int, command: int, project: int, data: ctypes.Array[ctypes.c_char]) -> None:
    arguments = (ctypes.c_uint(fd), ctypes.c_uint(command), ctypes.c_uint(project), data)
    if _libc.syscall(ctypes.c_long(_NR_QUOTACTL_FD), *arguments) == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), "quotactl")


def _project(fd: int) -> int:
    return int(_ATTRIBUTES.unpack(fcntl.ioctl(fd, _GET_ATTRIBUTES, bytes(_ATTRIBUTES.size)))[3])


def _join(directory: int, name: str, project: int) -> None:
    kind = os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
    if not stat.S_ISDIR(kind) and not stat.S_ISREG(kind):
        return  # nothing that takes room
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        fields = list(_ATTRIBUTES.unpack(fcntl.ioctl(fd, _GET_ATTRIBUTES, bytes(28))))
        fields[0] |= _INHERIT if stat.S_ISDIR(kind) else 0
        fields[3] = project
        fcntl.ioctl(fd, _SET_ATTRIBUTES, _ATTRIBUTES.pack(*fields))
    finally:
        os.close(fd)


def image_size(size: int, files: int) -> int:
    """Bytes of an image with room for `size` bytes in `files` files, journal and tables."""
    tables = files * 256 + size // 16 + (2 * _JOURNAL << 20)
    return -(-(size + tables) // _BLOCK) * _BLOCK


def make_image(image: Path, size: int, files: int, owner: tuple[int, int]) -> None:
    """A new file system for `owner` (uid, gid) with room for exactly `size` bytes.

    All of its room is taken on the host now: a full disk is met here, not later by a write of the
    workload. Raises OSError; then no image is left.
    """
    fd = os.open(image, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, image_size(size, files))
        extended = "nodiscard,lazy_itable_init=0,lazy_journal_init=0"
        extended += f",root_owner={owner[0]}:{owner[1]}"
        _spawn(_MKFS, "-q", "-F", "-b", str(_BLOCK), "-m", "0", "-N", str(files),
               "-J", f"size={_JOURNAL}", "-E", extended, str(image))  # fmt: skip
        place = image.with_name(f"{image.name}.mount")
        with mounted(image, place):
            place.chmod(0o700)
            (place / "lost+found").rmdir()
            room = os.statvfs(place)
        # What is left over is kept from all but root.
        spare = room.f_bavail - -(-size // room.f_frsize)
        if spare < 0:
            raise OSError(errno.ENOSPC, f"the image lacks {-spare} blocks", str(image))
        _spawn(_TUNE, "-r", str(spare), str(image))
        os.fsync(fd)
    except BaseException:
        image.unlink()
        raise
    finally:
        os.close(fd)


def mount_image(image: Path, directory: Path) -> None:
    """Mount `image` on `directory` in the caller's mount namespace, with which it goes away.

    Raises OSError; EBUSY when somebody else still has it mounted after some seconds.
    """
    fd = os.open(image, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _lock(fd, image)
        # Where zeros were written, the tools and the device left holes: fill them, or a write of
        # the workload would fail when the disk of the host is full.
        os.posix_fallocate(fd, 0, os.fstat(fd).st_size)
        device, path = _loop(fd)
        try:
            syscalls.mount(path, str(directory), "ext4", _FLAGS, "errors=remount-ro")
            # From now on zeros are written as such; else this would go on.
            knob = Path(f"/sys/fs/ext4/{Path(path).name}/extent_max_zeroout_kb")
            knob.write_text("0")
        finally:
            os.close(device)
    finally:
        os.close(fd)


@contextmanager
def mounted(image: Path, place: Path) -> Iterator[None]:
    """Mount `image` on `place`, a directory made and removed for it."""
    place.mkdir(mode=0o700, exist_ok=True)
    try:
        mount_image(image, place)
        try:
            yield
        finally:
            syscalls.umount2(str(place), 0)
    finally:
        place.rmdir()


def try_loop() -> None:
    """Put memory behind a loop device and let go of it. Raises OSError with what is missing."""
    for program in (_MKFS, _TUNE):
        if not os.access(program, os.X_OK):
            raise OSError(errno.ENOENT, "e2fsprogs is not installed", program)
    fd = os.memfd_create("trial", os.MFD_CLOEXEC)
    try:
        os.truncate(fd, 1 << 20)
        os.close(_loop(fd)[0])
    finally:
        os.close(fd)


def copy_tree(source: Path, target: Path) -> None:
    """Everything in `source` into `target`, with owners and modes; links are not followed.

    Sockets and pipes are left out: they end with the processes that use them. Raises OSError.
    """
    for folder, folders, names, here in os.fwalk(source):
        there = target / Path(folder).relative_to(source)
        for name in folders + names:
            kind = os.stat(name, dir_fd=here, follow_symlinks=False)
            if stat.S_ISLNK(kind.st_mode):
                (there / name).symlink_to(os.readlink(name, dir_fd=here))
            elif stat.S_ISDIR(kind.st_mode):
                (there / name).mkdir()
            elif stat.S_ISREG(kind.st_mode):
                _copy_file(here, name, there / name)
            else:
                continue
            os.chown(there / name, kind.st_uid, kind.st_gid, follow_symlinks=False)
            if not stat.S_ISLNK(kind.st_mode):
                (there / name).chmod(stat.S_IMODE(kind.st_mode))
                os.utime(there / name, ns=(kind.st_atime_ns, kind.st_mtime_ns))


def _copy_file(directory: int, name: str, target: Path) -> None:
    source = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    with open(source, "rb", closefd=True) as reading, target.open("xb") as writing:  # noqa: PTH123
        while part := reading.read(1 << 20):
            writing.write(part)


def _lock(fd: int, image: Path) -> None:
    # The device keeps the open file, and the lock with it: an image that is still mounted by a
    # supervisor on its way out cannot be mounted a second time, which would destroy it.
    end = time.monotonic() + 5.0
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise OSError(errno.EBUSY, "still mounted by another process", image) from None
            time.sleep(0.02)
        else:
            return


def _loop(file: int) -> tuple[int, str]:
    """A loop device on `file`: its descriptor, with which it ends unless mounted, and its path."""
    # struct loop_config: file, block size, struct loop_info64 with its flags, reserved.
    config = struct.pack("=II52xI176x64x", file, _BLOCK, _AUTOCLEAR)
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(64):
            path = f"/dev/loop{fcntl.ioctl(control, _GET_FREE)}"
            device = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, _CONFIGURE, config)
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:  # somebody was quicker
                    raise
            else:
                return device, path
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, "no free loop device", "/dev/loop-control")


def _spawn(*words: str) -> None:
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        actions = [(os.POSIX_SPAWN_DUP2, null, number) for number in (0, 1)]
        environment = {"PATH": "/usr/sbin:/usr/bin", "LC_ALL": "C"}
        pid = os.posix_spawn(words[0], words, environment, file_actions=actions)
    finally:
        os.close(null)
    if code := os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        raise OSError(errno.EIO, f"{words[0]} ended with {code}", words[-1])


def taken(directory: Path) -> tuple[int, int]:
    """Bytes on the disk and number of everything in `directory`. Raises OSError."""
    size = count = 0
    for _, folders, names, here in os.fwalk(directory):
        for name in folders + names:
            size += os.stat(name, dir_fd=here, follow_symlinks=False).st_blocks * 512
            count += 1
    return size, count


def room(directory: Path) -> tuple[int, int]:
    """Bytes and files that still fit into a bounded directory. Raises OSError."""
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize, found.f_favail


def remove_tree(directory: Path) -> None:
    """Remove `directory`, if it exists, with all that is in it; links are not followed."""
    import shutil

    with suppress(FileNotFoundError):
        shutil.rmtree(directory)
