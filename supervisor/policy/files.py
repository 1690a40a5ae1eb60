"""File, state, tmpfs and device rules to the mounts of the new root."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Sequence

from sandbox.plan import Bind, Device, Mount, Symlink, Tmpfs
from supervisor.host import Host
from supervisor.policy import model, nodes
from supervisor.policy.context import Context
from supervisor.policy.model import Policy, Rule

APP, RUNTIME = "/usr/lib/anchorhold/app", "/usr/lib/anchorhold/runtime"
Fail = Callable[[Rule, str, str, str], None]


def mounts(
    policy: Policy, rules: Sequence[Rule], host: Host, context: Context, fail: Fail
) -> tuple[Mount, ...]:
    """All mounts of `rules`, sorted by target, after the base links (/lib to usr/lib)."""
    found: list[Mount] = [Symlink(path, target) for path, target in context.base_links]
    files: list[tuple[str, Rule]] = []
    for rule in rules:
        permission = rule.permission
        if isinstance(permission, model.File):
            found.append(_file(rule, permission, rules, host, context, fail))
            files.append((permission.path, rule))
        elif isinstance(permission, model.State):
            found.append(Bind(state_directory(host, policy.id), "/state", ("read", "write")))
        elif isinstance(permission, model.Tmpfs):
            found.append(Tmpfs(permission.path, permission.size, permission.files))
        elif isinstance(permission, model.Device):
            found += _device(rule, permission.path, permission.optional, context, fail)
        elif isinstance(permission, model.Devices):
            found += _device_group(rule, permission, context, fail)
        elif isinstance(permission, model.Headers):
            found += _headers(rule, context, fail)
        elif isinstance(permission, model.BpfDirectory):
            found.append(Bind(bpf_directory(host), "/sys/fs/bpf", permission.access))
    _no_overlap(files, fail)
    # A device may be named twice: in a rule of its own and in a group, or in two groups.
    return tuple(sorted(dict.fromkeys(found), key=target_of))


def target_of(mount: Mount) -> str:
    """Where in the new root a mount stands."""
    return mount.path if isinstance(mount, Device) else mount.target


def state_directory(host: Host, workload: str) -> str:
    """The directory behind /state. The prefix keeps a workload's name off every other file's."""
    return f"{host.paths.state}/w-{workload.replace('.', '-')}"


def bpf_directory(host: Host) -> str:
    """The directory for pinned probes, mode 0700, owned by the loader; `<run>/bpf` is a bpffs.

    Not the file system's root, which holds files of the kernel's own.
    """
    return f"{host.paths.run}/bpf/watch"


def host_path(path: str, host: Host) -> str:
    """The host's side of a policy path: our code and wheels stand where the host file says."""
    for inside, outside in ((APP, host.paths.app), (RUNTIME, host.paths.runtime)):
        if path == inside or path.startswith(inside + "/"):
            return outside + path[len(inside) :]
    return path


def covers(outer: str, path: str) -> bool:
    """Whether `path` is `outer` or lies below it."""
    return path == outer or path.startswith(outer.rstrip("/") + "/")


def may_execute(path: str, rules: Sequence[Rule]) -> bool:
    """Whether some file rule lets `path` be executed."""
    for rule in rules:
        file = rule.permission
        if not isinstance(file, model.File) or "exec" not in file.access:
            continue
        if path == file.path or (file.tree and covers(file.path, path)):
            return True
    return False


def _file(
    rule: Rule,
    file: model.File,
    rules: Sequence[Rule],
    host: Host,
    context: Context,
    fail: Fail,
) -> Mount:
    if file.path in context.directories and not file.tree:
        fix = f'write "{file.path}/**" if all of it is meant'
        fail(rule, "is-a-directory", f"{file.path} is a directory on this host", fix)
    if (link := context.links.get(file.path)) is None:
        return Bind(host_path(file.path, host), file.path, file.access)
    wanted = _follow(file.path, link, context)
    listed = [r.permission for r in rules if isinstance(r.permission, model.File)]
    if not any(wanted == f.path or (f.tree and covers(f.path, wanted)) for f in listed):
        message = f"{file.path} is a link to {wanted}, which no rule allows"
        fail(rule, "dangling-link", message, f"add a file rule for {wanted}")
    return Symlink(file.path, link)


def _follow(path: str, link: str, context: Context) -> str:
    wanted = posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
    for name, points_to in context.base_links:
        if covers(name, wanted):
            return posixpath.normpath(posixpath.join("/", points_to) + wanted[len(name) :])
    return wanted


def _device(rule: Rule, path: str, optional: bool, context: Context, fail: Fail) -> list[Mount]:
    found = context.devices.get(path)
    if isinstance(found, tuple):
        return [Device(path, *found, nodes.needs_requests(path))]
    if found is not None:
        fix = "find out who put it there; the driver's own node comes back with its module"
        fail(rule, "wrong-device", f"{path} is not the device of that name: {found}", fix)
    elif not optional:
        fix = "enable the device, or write optional = true"
        fail(rule, "no-device", f"this host has no {path}", fix)
    return []


def _device_group(rule: Rule, group: model.Devices, context: Context, fail: Fail) -> list[Mount]:
    listed = context.device_groups.get(group.group)
    if listed is None:
        shipped = ", ".join(sorted(context.device_groups)) or "none is there"
        fail(rule, "unknown-group", f"no device group {group.group}", f"use one of: {shipped}")
        return []
    if not any(node.path in context.devices for node in listed.nodes):
        if not group.optional:
            fix = "enable the device, or write optional = true"
            fail(rule, "no-device", f"this host has no device of {group.group}", fix)
        return []
    return [
        mount
        for node in listed.nodes
        for mount in _device(rule, node.path, node.optional, context, fail)
    ]


def _headers(rule: Rule, context: Context, fail: Fail) -> list[Mount]:
    found = context.headers
    if found is None:
        message = "no kernel headers under /usr/src"
        fail(rule, "no-headers", message, "apt-get install linux-headers-amd64")
        return []
    modules = f"/usr/lib/modules/{context.kernel}"
    return [
        *(Bind(tree, tree, ("read",)) for tree in found.trees),
        Symlink(f"{modules}/build", found.build),
        Symlink(f"{modules}/source", found.source),
    ]


def _no_overlap(files: list[tuple[str, Rule]], fail: Fail) -> None:
    for index, (path, rule) in enumerate(files):
        for other, earlier in files[:index]:
            if covers(other, path) or covers(path, other):
                message = f"{path} overlaps {other} of rule {earlier.id} (line {earlier.line})"
                fail(rule, "overlap", message, "name each path in one rule only")
