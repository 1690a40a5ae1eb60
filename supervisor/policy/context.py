"""What compiling must know about the machine, gathered once and then plain data.

`host_context` reads only names and links of the file system; no root, no daemon. Tests and audits
on another machine build `Context` by hand.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path

from sandbox.limits import cpu_set
from supervisor.host import Host
from supervisor.policy.errors import PolicyErrors
from supervisor.policy.groups import Baseline, Group, load_groups
from supervisor.policy.model import Device, Devices, File, Policy, SystemGroup
from supervisor.policy.nodes import STANDARD, DeviceGroup, load_device_groups, resolve
from supervisor.policy.redactions import Names, names, names_at

IDS_MAX = 4095  # the uid after the last one is the broker's


@dataclass(frozen=True, slots=True)
class Headers:
    """Kernel headers: the tree that `build` leads to, the one for `source`, and all to be bound."""

    build: str
    source: str
    trees: tuple[str, ...]


@dataclass(frozen=True)
class Context:
    """Facts about one machine and the caller's choices. Mappings are not changed after creation.

    `devices`: numbers of those that are there, or why a node cannot be what its name says.
    """

    groups: Mapping[str, Group]
    baseline: Baseline
    today: date
    architecture: str = "x86_64"
    kernel: str = ""
    uids: Mapping[str, int] = field(default_factory=dict)
    base_links: tuple[tuple[str, str], ...] = ()
    links: Mapping[str, str] = field(default_factory=dict)
    directories: frozenset[str] = frozenset()
    devices: Mapping[str, tuple[int, int] | str] = field(default_factory=lambda: dict(STANDARD))
    device_groups: Mapping[str, DeviceGroup] = field(default_factory=dict)
    gids: Mapping[str, int] = field(default_factory=dict)
    headers: Headers | None = None
    placeholders: Mapping[str, str] = field(default_factory=dict)
    cpus: frozenset[int] | None = None  # those online; None: not asked
    redaction: Names = field(default_factory=names)


def host_context(
    policies: Iterable[Policy],
    host: Host,
    placeholders: Mapping[str, str],
    previous_ids: Mapping[str, int] | None = None,
    groups: Path | str | None = None,
) -> Context:
    """The context of the machine this runs on.

    `placeholders`: token per workload that may call models; `previous_ids`: uids given before, kept
    as they are; `groups`: the folder of group files (default: groups/ beside the policies).
    Raises PolicyErrors if a group file or the baseline is broken.
    """
    known = list(policies)
    folder = Path(groups or Path(host.paths.policies) / "groups")
    found, baseline, errors = load_groups(folder)
    device_groups, broken = load_device_groups(folder / "devices")
    errors += broken
    if errors or baseline is None:
        raise PolicyErrors(errors)
    files = {
        rule.permission.path
        for policy in known
        for rule in policy.allow
        if isinstance(rule.permission, File)
    }
    return Context(
        groups=found,
        baseline=baseline,
        today=datetime.now(UTC).date(),
        architecture=platform.machine(),
        kernel=platform.release(),
        uids=allot_ids((p.id for p in known), host.id_base, previous_ids or {}),
        base_links=tuple(_links(("/bin", "/lib", "/lib64", "/sbin")).items()),
        links=_links(files),
        directories=frozenset(p for p in files if Path(p).is_dir() and not Path(p).is_symlink()),
        devices=_devices(named_devices(known, device_groups), host),
        device_groups=device_groups,
        gids=_gids(known),
        headers=newest_headers(),
        placeholders=dict(placeholders),
        cpus=cpu_set(Path("/sys/devices/system/cpu/online").read_text().strip()),
        redaction=names_at(Path(host.paths.policies)),
    )


def allot_ids(ids: Iterable[str], base: int, previous: Mapping[str, int]) -> dict[str, int]:
    """A uid for every id: the one it had, or the next free number from `base` in id order.

    Numbers in `previous` are never given to another id, because files of it may remain.
    Raises ValueError when the range is used up.
    """
    allotted = dict(previous)
    taken = set(previous.values())
    free = (number for number in range(base, base + IDS_MAX) if number not in taken)
    for workload in sorted(set(ids)):
        if workload not in allotted:
            if (number := next(free, None)) is None:
                raise ValueError(f"all {IDS_MAX} uids from {base} on are taken; move [ids] base")
            allotted[workload] = number
    return allotted


def newest_headers(source: Path = Path("/usr/src")) -> Headers | None:
    """The newest Debian kernel headers under `source`, or None. Debian splits them in two trees."""

    def order(path: Path) -> list[int]:
        return [int(number) for number in re.findall(r"\d+", path.name)]

    trees = sorted((p for p in source.glob("linux-headers-[0-9]*") if p.is_dir()), key=order)
    for build in reversed(trees):
        release = re.fullmatch(r"linux-headers-(.+?)-(?!common)([a-z][a-z0-9-]*)", build.name)
        if release is None:
            continue
        common = source / f"linux-headers-{release[1]}-common"
        second = common if common.is_dir() else build
        return Headers(str(build), str(second), tuple(sorted({str(build), str(second)})))
    return None


def _links(paths: Iterable[str]) -> dict[str, str]:
    return {p: str(Path(p).readlink()) for p in sorted(paths) if Path(p).is_symlink()}


def named_devices(policies: Iterable[Policy], groups: Mapping[str, DeviceGroup]) -> set[str]:
    """Every device that some policy names, by itself or in a group."""
    found = set()
    for policy in policies:
        for rule in policy.of(Device, Devices):
            permission = rule.permission
            if isinstance(permission, Device):
                found.add(permission.path)
            elif isinstance(permission, Devices) and permission.group in groups:
                found |= {node.path for node in groups[permission.group].nodes}
    return found


def _devices(paths: Iterable[str], host: Host) -> dict[str, tuple[int, int] | str]:
    found: dict[str, tuple[int, int] | str] = {}
    for path in sorted(paths):
        if path == "/dev/tpmrm0" and host.tpm.mode == "swtpm":
            continue
        if (resolved := resolve(path)) is not None:
            found[path] = resolved
    return found


def _gids(policies: Iterable[Policy]) -> dict[str, int]:
    import grp

    found = {}
    for policy in policies:
        for rule in policy.allow:
            if isinstance(rule.permission, SystemGroup):
                try:
                    found[rule.permission.name] = grp.getgrnam(rule.permission.name).gr_gid
                except KeyError:
                    continue
    return found
