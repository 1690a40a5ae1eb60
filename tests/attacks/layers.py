"""The sandbox less one layer: what is replaced so that a real launch goes without exactly that.

Nothing of this is in the product: the steps are replaced in the test's own process before the
zygote is forked from it. Steps that would then change the machine (its host name, its sysctl for
memfds) are left out together with the namespace that kept them harmless. The mount namespace cannot
be left out alone: pivot_root would give the workload's root to the machine. What it is for is the
own root, and that can.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest

from sandbox import confine, credentials, devices, landlock, mounts, seccomp, syscalls, zygote

Remove = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Layer:
    """`changes` to the plan and steps to `remove`; `noticed`: the finding that then fails, "" where
    it is the plan that lacks the layer, or where nothing can be seen from outside."""

    name: str
    noticed: str = ""
    remove: Remove = lambda patch: None
    changes: Mapping[str, object] = field(default_factory=dict)


def _nothing(*given: object, **named: object) -> None:
    """In place of a step."""


def _without(module: object, *names: str) -> Remove:
    def remove(patch: pytest.MonkeyPatch) -> None:
        for name in names:
            patch.setattr(module, name, _nothing)

    return remove


def _constant(module: object, name: str, value: object) -> Remove:
    return lambda patch: patch.setattr(module, name, value)


def _no_memfd_sysctl(patch: pytest.MonkeyPatch) -> None:
    write = confine._write

    def write_others(path: str, *rest: Any, **named: Any) -> None:
        if path != "/proc/sys/vm/memfd_noexec":
            write(path, *rest, **named)

    patch.setattr(confine, "_write", write_others)


def _namespace(flag: int, *also: Remove) -> Remove:
    def remove(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(zygote, "_NAMESPACES", zygote._NAMESPACES & ~flag)
        for step in also:
            step(patch)

    return remove


def _no_cgroup_namespace(patch: pytest.MonkeyPatch) -> None:
    unshare = syscalls.unshare

    def unshare_others(flags: int) -> None:
        if flags != syscalls.CLONE_NEWCGROUP:
            unshare(flags)

    patch.setattr(syscalls, "unshare", unshare_others)


def _no_own_root(patch: pytest.MonkeyPatch) -> None:
    restrict = landlock.restrict

    def restrict_to_what_is_there(abi: int, paths: Any, *ports: Any) -> None:
        restrict(abi, [pair for pair in paths if os.path.exists(pair[0])], *ports)  # noqa: PTH110

    patch.setattr(mounts, "enter_root", _nothing)
    patch.setattr(landlock, "restrict", restrict_to_what_is_there)


def _main_filter_alone(patch: pytest.MonkeyPatch) -> None:
    compiled = seccomp.compile_filters
    patch.setattr(seccomp, "compile_filters", lambda spec: compiled(spec)[-1:])


def _no_closing(patch: pytest.MonkeyPatch) -> None:
    # The supervisor's are all close-on-exec; the test runner's need not be.
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        with suppress(OSError):  # the listing's own
            if int(name) > 2:
                os.set_inheritable(int(name), False)
    _without(syscalls, "close_range", "close_all_but")(patch)


LAYERS = (
    Layer("seccomp, both filters", "seccomp", _without(syscalls, "seccomp_load")),
    Layer("seccomp, refusing filter", "seccomp", _main_filter_alone),
    Layer("Landlock", "landlock", _without(landlock, "restrict")),
    Layer("user namespace", changes={"user_namespace": False}),
    Layer("own uid", changes={"uid": 0, "gid": 0}),
    Layer("network namespace", "network", _namespace(syscalls.CLONE_NEWNET)),
    Layer(
        "pid namespace", "namespaces", _namespace(syscalls.CLONE_NEWPID, _no_memfd_sysctl)
    ),
    Layer("ipc namespace", "namespaces", _namespace(syscalls.CLONE_NEWIPC)),
    Layer(
        "uts namespace", "namespaces",
        _namespace(syscalls.CLONE_NEWUTS, _without(syscalls, "sethostname")),
    ),
    Layer("time namespace", "namespaces", _namespace(syscalls.CLONE_NEWTIME)),
    Layer("cgroup namespace", "namespaces", _no_cgroup_namespace),
    Layer("own root", "root", _no_own_root),
    Layer("read-only mounts", "root", _constant(mounts, "MOUNT_ATTR_RDONLY", 0)),
    Layer("nosuid", "root", _constant(mounts, "MOUNT_ATTR_NOSUID", 0)),
    Layer("nodev", "root", _constant(mounts, "MOUNT_ATTR_NODEV", 0)),
    Layer("noexec", "root", _constant(mounts, "MOUNT_ATTR_NOEXEC", 0)),
    Layer(
        "capabilities dropped", changes={"capabilities": tuple(sorted(credentials.CAPABILITIES))}
    ),
    Layer("securebits", "capabilities", _without(credentials, "lock_securebits")),
    Layer("write xor execute", "memory", _without(credentials, "refuse_write_and_execute")),
    Layer("memfd_noexec", "", _no_memfd_sysctl),
    Layer("resource limits", "rlimits", _without(confine.resource, "setrlimit")),
    Layer("namespace limits", "", _constant(confine, "_NAMESPACE_LIMITS", ())),
    Layer("not dumpable", "", _without(credentials, "not_dumpable")),
    Layer("device filter", "devices", _without(devices, "attach")),
    Layer("own keyring", "", _without(syscalls, "join_session_keyring")),
    Layer("closing descriptors", "", _no_closing),
)  # fmt: skip
NAMES = tuple(layer.name for layer in LAYERS)

# Rests on one layer: (attempt, layer) -> why that is so, and why it stays.
_NO_VSOCK = "vsock knows no namespaces and Landlock no vsock: the filters alone refuse the family"
_PORTS_ALONE = (
    "Landlock knows ports and no addresses: the plan's own port leads out of no namespace"
)
RESTS_ON_ONE: dict[tuple[str, str], str] = {
    ("A33.01", "seccomp, both filters"): _NO_VSOCK,
    ("A33.01", "seccomp, refusing filter"): _NO_VSOCK,
    ("A30.10", "network namespace"): _PORTS_ALONE,
}
