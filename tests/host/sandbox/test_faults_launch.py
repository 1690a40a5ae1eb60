"""Every step of the supervisor around a sandbox fails in turn: nothing runs, nothing is left.

A path is in the way, a resource is used up, a process is killed, a layer is missing. The steps are
read from the source: a new one without a fault here fails the test of the list.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import os
import signal
import textwrap
from collections.abc import Callable

import pytest

from probes import bpf, layout
from probes.errors import ProbeError
from sandbox.errors import LaunchFailed, SandboxError, VerificationFailed
from sandbox.launcher import Running
from supervisor.cells import Cells
from supervisor.descriptors import Descriptors
from tests.host.sandbox.faultrig import RAN, Rig, Saboteur
from tests.host.sandbox.stand import PYTHON, maps


def _no_more_cgroups(rig: Rig) -> None:
    bound = rig.stand.slice.path / "cgroup.max.descendants"
    bound.write_text("0")
    try:
        error = rig.fails(OSError)
    finally:
        bound.write_text("max")
    assert str(rig.stand.slice.path) in str(error), error


def _a_removed_cgroup(rig: Rig) -> None:
    os.kill(rig.stand.zygote, signal.SIGSTOP)  # so that it is gone when the order is read
    try:
        cell = rig.call(rig.stand.cells._spawn)
        cell.leaf.path.rmdir()
    finally:
        os.kill(rig.stand.zygote, signal.SIGCONT)

    async def spawned() -> None:
        await cell.spawned

    with pytest.raises(LaunchFailed, match="clone3") as failure:
        rig.do(spawned)
    assert failure.value.step == "spawn"
    rig.stand.cells._spare = cell  # it is not used


def _an_audit_directory_in_the_way(rig: Rig) -> None:
    audit = rig.stand.directory / "audit"
    audit.rename(audit.with_name("away"))
    try:
        audit.write_text("a file")
        with pytest.raises(OSError, match="audit"):
            rig.do(rig.stand.start, rig.plan)
        audit.unlink()
    finally:
        audit.with_name("away").rename(audit)
    rig.left_nothing()


def _an_audit_file_that_is_a_link(rig: Rig) -> None:
    file = rig.stand.directory / "audit/adapter.rest.jsonl"
    canary = rig.stand.directory / "audit/canary"
    canary.write_text("host")
    file.unlink()
    file.symlink_to(canary)
    try:
        error = rig.fails(OSError)
        assert "adapter.rest.jsonl" in str(error), error
        assert canary.read_text() == "host"
    finally:
        file.unlink()


def _a_limit_that_this_host_lacks(rig: Rig) -> None:
    if "memory" in rig.stand.slice.controllers:
        pytest.skip("NOT TESTED: this host has the v2 memory controller, so nothing is refused")
    strict = rig.call(rig.stand.make_cells, frozenset())
    error = rig.fails(SandboxError, cells=strict)
    assert isinstance(error, SandboxError)
    assert (error.code, bool(error.fix)) == ("limit_not_applied", True)
    assert "memory.max" in str(error)


def _a_layer_that_is_not_there(rig: Rig) -> None:
    """Seen from outside: the launcher takes the kernel for one without Landlock."""
    abi, rig.stand.launcher._abi = rig.stand.launcher._abi, 0
    try:
        error = rig.fails(VerificationFailed, plan=rig.stand.plan((PYTHON, "-I", "-c", RAN)))
    finally:
        rig.stand.launcher._abi = abi
    assert "landlock" in str(error), error


def _a_filter_that_is_not_planned(rig: Rig) -> None:
    """Seen from outside at last: the saboteur's own filter is one too many."""
    Saboteur.refuse("landlock", "acct")
    error = rig.fails(VerificationFailed)
    assert "seccomp" in str(error), error


def _a_full_watch(rig: Rig) -> None:
    rig.call(rig.stand.watch, maps(slots=1))
    watch = rig.stand.watching._watch
    assert watch is not None
    bpf.update(watch._fds["slots"], bytes(8), bytes(layout.SLOT.size))
    before, rig.before = rig.before, rig.traces()
    try:
        error = rig.fails(ProbeError)
    finally:
        rig.call(rig.stand.watch, maps())
        rig.before = before
    assert "refused to watch cgroup" in str(error), error


def _a_network_that_the_broker_refuses(rig: Rig) -> None:
    async def connect(running: Running, given: Descriptors) -> None:
        rig.stand.broker.register("x" * 5000, running.netns)

    error = rig.fails(SandboxError, connect=connect)
    assert "workload" in str(error), error


def _killed_before_its_release(rig: Rig) -> None:
    async def connect(running: Running, given: Descriptors) -> None:
        running.leaf.kill()
        await running.exited

    error = rig.fails(LaunchFailed, connect=connect)
    assert isinstance(error, LaunchFailed) and error.step == "execute", error


def _killed_under_way(rig: Rig) -> None:
    Saboteur.refuse("new root", "exit_group")  # harmless: it only makes the order of events sure

    async def killed() -> None:
        starting = asyncio.ensure_future(rig.stand.start(rig.plan))
        for leaf in iter(lambda: list(rig.stand.slice.path.glob("cell-*")), None):
            if leaf:
                (leaf[0] / "cgroup.kill").write_text("1")
                break
            await asyncio.sleep(0)
        await starting

    with pytest.raises(LaunchFailed) as failure:
        rig.do(killed)
    assert failure.value.step in ("spawn", "confine", "seccomp", "execute"), failure.value
    assert "signal 9" in str(failure.value)
    rig.left_nothing()


# What Cells.launch calls, and how that is made to fail. What only takes back is not among it.
LAUNCH: dict[str, tuple[Callable[[Rig], None], ...]] = {
    "_take": (_no_more_cgroups, _a_removed_cgroup),
    "open": (_an_audit_directory_in_the_way, _an_audit_file_that_is_a_link),
    "launch": (_killed_under_way,),
    "apply": (_a_limit_that_this_host_lacks,),
    "inspect": (_a_layer_that_is_not_there,),
    "filtered": (),  # the step "seccomp" above
    "inspect_filters": (_a_filter_that_is_not_planned,),
    "register": (_a_full_watch,),
    "connect": (_a_network_that_the_broker_refuses,),
    "release": (_killed_before_its_release,),
}
_OTHER = {
    "prepare", "_rules", "_spawn",  # no step of this launch
    "callback", "push_async_callback", "pop_all", "ensure_future", "sleep", "append",
    "AsyncExitStack", "suppress",
    "VerificationFailed",
}  # fmt: skip


def test_every_step_of_the_supervisor_has_a_fault_here() -> None:
    tree = ast.parse(textwrap.dedent(inspect.getsource(Cells.launch)))
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    names = {getattr(call, "attr", getattr(call, "id", "")) for call in calls}
    assert names - _OTHER == set(LAUNCH)


@pytest.mark.parametrize("fault", [f for faults in LAUNCH.values() for f in faults],
                         ids=lambda fault: fault.__name__.strip("_").replace("_", " "))  # fmt: skip
def test_a_fault_around_the_sandbox_ends_the_launch(rig: Rig, fault: Callable[[Rig], None]) -> None:
    fault(rig)
