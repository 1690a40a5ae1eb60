"""The workload's root: built from an explicit list, read-only, then made the only root.

Everything here runs in the child, in its own mount namespace, still privileged. The new mount API
is used because paths can be swapped between check and use and file descriptors cannot, and because
MS_REMOUNT|MS_BIND is not recursive. Sources: mount_setattr(2), open_tree(2), pivot_root(2).
"""

from __future__ import annotations

import os
import stat

from sandbox import syscalls
from sandbox.syscalls import (
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_NOSYMFOLLOW,
    MOUNT_ATTR_RDONLY,
)

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing is not among the zygote's modules
    from typing import Any

_SAFE = syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS


class Root:
    """The new root while it is assembled, and the directories in it that hold mount points."""

    def __init__(self, tree: int) -> None:
        self.tree = tree
        self.host = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._directories = {"": tree}

    def parent(self, target: str) -> tuple[int, str]:
        """The directory that holds `target`, made as needed; (fd, last name)."""
        path, _, name = target.rpartition("/")
        return self._directory(path), name

    def _directory(self, path: str) -> int:
        if path not in self._directories:
            above, _, name = path.rpartition("/")
            parent = self._directory(above)
            try:
                os.mkdir(name, 0o755, dir_fd=parent)
            except FileExistsError:
                pass
            flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            self._directories[path] = os.open(name, flags, dir_fd=parent)
        return self._directories[path]

    def close(self) -> None:
        """All but the tree itself, which the caller enters."""
        os.close(self.host)
        for path, fd in self._directories.items():
            if path:
                os.close(fd)


def empty_root(stage: str) -> Root:
    """A fresh tmpfs with nothing but /proc, on the directory `stage`. Raises OSError."""
    # systemd shares the host's mounts with whoever copies them: nothing of ours may get back there.
    # Later mounts of the host still come in, since it is not known yet what will be bound.
    syscalls.mount("", "/", None, syscalls.MS_REC | syscalls.MS_SLAVE)
    tree = syscalls.new_filesystem(
        "tmpfs",
        {"mode": "0755", "size": "1m", "nr_inodes": "4096"},
        MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC,
    )
    syscalls.move_mount(tree, syscalls.AT_FDCWD, stage)
    root = Root(tree)
    options: dict[str, str | None] = {"hidepid": "ptraceable", "subset": "pid"}
    attributes = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC
    _attach(root, syscalls.new_filesystem("proc", options, attributes), "/proc", True)
    return root


def fill_root(root: Root, mounts: list[tuple[object, ...]]) -> None:
    """Put every planned mount into `root` and make it read-only. Raises OSError with the path.

    `mounts`: ("bind", source, target, access), ("tmpfs", target, size, inodes),
    ("symlink", target, points_to), ("device", path, major, minor).
    """
    for mount in mounts:
        make: Any = _MAKERS[str(mount[0])]
        make(root, *mount[1:])
    # Last: nothing may be created in the root tmpfs any more. Not recursive, or volumes lose write.
    syscalls.mount_setattr(root.tree, MOUNT_ATTR_RDONLY, recursive=False)
    root.close()


def enter_root(root: int) -> None:
    """Make `root` the root and working directory and drop every way back to the old one."""
    os.fchdir(root)
    syscalls.pivot_root(".", ".")
    # The old root is now stacked on "."; detach it without ever naming it.
    syscalls.mount("", ".", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    syscalls.umount2(".", syscalls.MNT_DETACH)
    os.chdir("/")
    os.close(root)


def check_working_directory(path: str) -> None:
    """chdir and prove that the directory is inside the root (CVE-2024-21626)."""
    os.chdir(path)
    if not os.getcwd().startswith("/"):
        raise OSError(2, "working directory lies outside the root", path)


def _bind(root: Root, source: str, target: str, access: tuple[str, ...]) -> None:
    found = syscalls.openat2(root.host, source, os.O_PATH, _SAFE)
    is_directory = stat.S_ISDIR(os.fstat(found).st_mode)
    tree = syscalls.open_tree(found, "")
    os.close(found)
    attributes = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV
    if "write" in access:
        # A symbolic link planted in a writable volume must never be followed.
        attributes |= MOUNT_ATTR_NOSYMFOLLOW if is_directory else 0
    else:
        attributes |= MOUNT_ATTR_RDONLY
    attributes |= 0 if "exec" in access else MOUNT_ATTR_NOEXEC
    syscalls.mount_setattr(tree, attributes)
    _attach(root, tree, target, is_directory)


def _tmpfs(root: Root, target: str, size: int, inodes: int) -> None:
    options: dict[str, str | None] = {"mode": "1777", "size": str(size), "nr_inodes": str(inodes)}
    attributes = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC
    _attach(root, syscalls.new_filesystem("tmpfs", options, attributes), target, True)


def _symlink(root: Root, target: str, points_to: str) -> None:
    parent, name = root.parent(target)
    os.symlink(points_to, name, dir_fd=parent)


def _device(root: Root, path: str, major: int, minor: int) -> None:
    # A device replaced by a link or another node has been an escape (CVE-2025-31133).
    found = syscalls.openat2(root.host, path, os.O_PATH, _SAFE)
    status = os.fstat(found)
    if not stat.S_ISCHR(status.st_mode) or status.st_rdev != os.makedev(major, minor):
        raise OSError(6, f"is not the character device {major}:{minor}", path)
    tree = syscalls.open_tree(found, "", recursive=False)
    os.close(found)
    attributes = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC
    syscalls.mount_setattr(tree, attributes)
    _attach(root, tree, path, False)


_MAKERS = {
    "bind": _bind,
    "tmpfs": _tmpfs,
    "symlink": _symlink,
    "device": _device,
}


def _attach(root: Root, tree: int, target: str, is_directory: bool) -> None:
    parent, name = root.parent(target)
    try:
        if is_directory:
            os.mkdir(name, 0o755, dir_fd=parent)
        else:
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444, dir_fd=parent))
    except FileExistsError:
        pass  # the mount point was made for a deeper target
    syscalls.move_mount(tree, parent, name)
    os.close(tree)
