"""Device nodes that policies may name, whose they must be, and groups of them as reviewed data.

A name in /dev proves nothing: what counts is the number, and which driver the kernel says it
belongs to. Numbers that Documentation/admin-guide/devices.txt fixes must be those; dynamic ones
must stand beside the driver's name in /proc/devices.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from sandbox import syscalls
from supervisor.policy.document import Document, Table, read_document
from supervisor.policy.errors import PolicyError

SCHEMA = "anchorhold.devices/1"
GROUP = r"[a-z][a-z0-9-]*/[1-9][0-9]*"


@dataclass(frozen=True, slots=True)
class _Kind:
    """Nodes of one driver. `major` and `minor` where they are fixed; a minor of -1 is the number
    in the node's name. `requests`: it is of no use without ioctl."""

    pattern: str
    drivers: frozenset[str]
    major: int | None = None
    minor: int | None = None
    requests: bool = False


_NVIDIA = frozenset({"nvidia", "nvidia-frontend", "nvidiactl", "nvidia-modeset"})
_MEMORY = frozenset({"mem"})
_KINDS = (
    _Kind(r"/dev/null", _MEMORY, 1, 3),
    _Kind(r"/dev/zero", _MEMORY, 1, 5),
    _Kind(r"/dev/full", _MEMORY, 1, 7),
    _Kind(r"/dev/random", _MEMORY, 1, 8),
    _Kind(r"/dev/urandom", _MEMORY, 1, 9),
    _Kind(r"/dev/tpmrm0", frozenset({"tpm"})),
    # Render nodes compute and draw off screen; card nodes would own the screen as well.
    _Kind(r"/dev/dri/renderD(1(?:2[89]|[3-8][0-9]|9[01]))", frozenset({"drm"}), 226, -1, True),
    _Kind(r"/dev/kfd", frozenset({"kfd"}), requests=True),
    _Kind(r"/dev/nvidia([0-9]|[1-9][0-9])", _NVIDIA, 195, -1, True),
    _Kind(r"/dev/nvidiactl", _NVIDIA, 195, 255, True),
    _Kind(r"/dev/nvidia-uvm", frozenset({"nvidia-uvm"}), minor=0, requests=True),
    _Kind(r"/dev/nvidia-uvm-tools", frozenset({"nvidia-uvm"}), minor=1, requests=True),
)
# Fixed for every machine, so that a plan can be made without looking at one.
STANDARD = {
    f"/dev/{name}": (1, minor)
    for name, minor in (("null", 3), ("zero", 5), ("full", 7), ("random", 8), ("urandom", 9))
}
NAMES = "|".join(kind.pattern for kind in _KINDS)
_NOMINAL = 240  # stands for a dynamic major; devices.txt keeps 240-254 for local use


@dataclass(frozen=True, slots=True)
class Node:
    """One device of a group."""

    id: str
    why: str
    path: str
    optional: bool


@dataclass(frozen=True, slots=True)
class DeviceGroup:
    """One file of device nodes; `name` includes the version: "gpu-render/1"."""

    name: str
    why: str
    nodes: tuple[Node, ...]


def needs_requests(path: str) -> bool:
    """Whether the device at `path` works by ioctl, which others need not have."""
    return _kind(path).requests


def nominal(path: str) -> tuple[int, int]:
    """Numbers for a machine that nobody looks at: the fixed ones, or such as could be."""
    kind = _kind(path)
    major, minor = _fixed(kind, path)
    return _NOMINAL if major is None else major, minor or 0


def resolve(path: str, root: Path = Path("/")) -> tuple[int, int] | str | None:
    """Major and minor of the device `path`; why it cannot be it; or None where there is none.

    `root` is where dev/ and proc/devices are looked for.
    """
    try:
        folder, status = _status(path.rpartition("/")[0], root), _status(path, root)
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"it, or a directory above it, is a symbolic link or no directory: {error.strerror}"
    if not stat.S_ISCHR(status.st_mode):
        return "it is no character device"
    # The node itself may be somebody's, as the TPM's is: who owns it cannot make it another.
    if folder.st_uid != 0 or folder.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "others than root may put something else in its directory"
    kind, number = _kind(path), (os.major(status.st_rdev), os.minor(status.st_rdev))
    for wanted, is_, what in zip(_fixed(kind, path), number, ("major", "minor"), strict=True):
        if wanted is not None and wanted != is_:
            return f"its {what} number is {is_}, not {wanted}"
    owners = _drivers(root / "proc/devices", number[0])
    if not owners & kind.drivers:
        said = ", ".join(sorted(owners)) or "nobody"
        wanted_by = " or ".join(sorted(kind.drivers))
        return f"/proc/devices gives major number {number[0]} to {said}, not to {wanted_by}"
    return number


def _status(path: str, root: Path) -> os.stat_result:
    top = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        safe = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS
        found = syscalls.openat2(top, path, os.O_PATH, safe)
    finally:
        os.close(top)
    try:
        return os.fstat(found)
    finally:
        os.close(found)


def _kind(path: str) -> _Kind:
    return next(kind for kind in _KINDS if re.fullmatch(kind.pattern, path))


def _fixed(kind: _Kind, path: str) -> tuple[int | None, int | None]:
    if kind.minor != -1:
        return kind.major, kind.minor
    name = re.fullmatch(kind.pattern, path)
    return kind.major, int(name[1]) if name else None


def _drivers(table: Path, major: int) -> set[str]:
    """Who has the character major number. proc(5): two columns below "Character devices:"."""
    characters = table.read_text().partition("Block devices:")[0]
    fields = (line.split() for line in characters.splitlines())
    return {parts[1] for parts in fields if len(parts) == 2 and parts[0] == str(major)}


def load_device_groups(
    directory: Path | str,
) -> tuple[dict[str, DeviceGroup], list[PolicyError]]:
    """Every device group in `directory` by "name/version"; broken files left out."""
    groups: dict[str, DeviceGroup] = {}
    errors: list[PolicyError] = []
    for path in sorted(Path(directory).glob("*.toml")):
        document = read_document(path, (), ("device",))
        group = None if document.errors else _group(document)
        if group and not document.errors:
            groups[group.name] = group
        errors += document.errors
    return groups, errors


def _group(document: Document) -> DeviceGroup:
    top = document.top()
    top.choice("schema", [SCHEMA])
    name, version = top.string("name", r"[a-z][a-z0-9-]*"), top.integer("version", 1, 9999)
    why = top.string("why")
    top.finish()
    if name and document.file != f"{name}.toml":
        fix = f"name it {name}.toml"
        top.fail("bad-file-name", "name", f"{name} stands in {document.file}", fix)
    nodes = tuple(_node(table) for table in document.many("device"))
    if not nodes:
        top.fail("missing-key", "device", "no [[device]]", "name at least one")
    for index, node in enumerate(nodes):
        if node.path in [other.path for other in nodes[:index]]:
            top.fail("duplicate-value", "device", f"{node.path} stands twice", "name it once")
    return DeviceGroup(f"{name}/{version}", why, nodes)


def _node(table: Table) -> Node:
    table.rule = table.string("id", r"[a-z][a-z0-9-]*")
    node = Node(
        table.rule,
        table.string("why"),
        table.string("path", NAMES, what="a device that policies may name"),
        table.boolean("optional", False),
    )
    table.finish()
    return node
