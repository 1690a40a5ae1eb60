"""Every step of the confinement fails in turn: nothing of the workload runs, nothing is left.

The steps are read from the source: a new one without a fault here fails the first test.
"""

from __future__ import annotations

import ast
import asyncio
import inspect

import pytest

from sandbox import confine
from sandbox.errors import LaunchFailed
from sandbox.launcher import Running
from sandbox.plan import Symlink
from tests.host.sandbox.faultrig import RAN, Rig, Saboteur
from tests.host.sandbox.stand import PYTHON

# Step by step the system calls that can fail in it, in their order where it matters.
CALLS = {
    "die with the parent": ("prctl", "poll", "openat"),
    "inherited descriptors": ("close_range",),
    "process group and keyring": ("setpgid", "keyctl"),
    "cgroup namespace and loopback": ("unshare", "socket", "ioctl"),
    "memory and core files": ("openat",),
    "empty root": ("mount", "fsopen", "fsconfig", "fsmount", "move_mount", "openat", "mkdirat"),
    "host name": ("sethostname",),
    "resource limits": ("prlimit64",),
    "mount propagation": ("mount",),
    "new root": (
        "openat2", "open_tree", "mount_setattr", "move_mount", "mkdirat", "openat", "symlinkat",
    ),
    "change root": ("fchdir", "pivot_root", "mount", "umount2", "chdir"),
    "executable": ("openat", "openat2"),
    "groups": ("setgroups",),
    "user namespace": ("unshare",),
    "nested namespaces": ("openat",),
    "capabilities": ("prctl", "read", "setresgid", "setresuid", "capset"),
    "after the uid change": ("prctl", "poll", "chdir", "getcwd"),
    "no new privileges": ("prctl",),
    "landlock": (
        "socket", "bind", "landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self",
    ),
    "descriptors": ("recvmsg", "fcntl", "dup2", "dup3", "close_range", "poll"),
    "seccomp": ("seccomp",),
}  # fmt: skip
# Under the workload's own filters nobody loads another: this one fails without our help.
NATURAL = {"execute"}


def steps() -> list[str]:
    """The steps that confine.py names, in the order of its text."""
    tree = ast.parse(inspect.getsource(confine))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    named = [c for c in calls if getattr(c.func, "id", getattr(c.func, "attr", "")) == "at"]
    return [ast.literal_eval(call.args[0]) for call in sorted(named, key=lambda c: c.lineno)]


def test_every_step_of_the_confinement_has_a_fault_here() -> None:
    assert sorted(steps()) == sorted({*CALLS, *NATURAL})


FAULTS = [(step, call) for step, calls in CALLS.items() for call in calls]


@pytest.mark.parametrize(("step", "call"), FAULTS, ids=[f"{s}: {c}" for s, c in FAULTS])
def test_a_step_that_fails_ends_the_launch(rig: Rig, step: str, call: str) -> None:
    Saboteur.refuse(step, call)
    error = rig.fails(LaunchFailed)
    assert isinstance(error, LaunchFailed)
    assert error.step == step, error
    assert "Cannot allocate memory" in str(error), error


def test_a_spare_cell_that_failed_is_replaced_at_the_next_launch(rig: Rig) -> None:
    Saboteur.refuse("empty root", "fsmount")
    rig.do(rig.stand.finish, _started(rig))  # the next spare comes after it, and fails
    rig.do(asyncio.sleep, 0.1)
    assert rig.stand.cells._spare is None or rig.stand.cells._spare.failed
    Saboteur.refuse()
    rig.ran.unlink()
    rig.works()


def _started(rig: Rig) -> Running:
    Saboteur.refuse()
    running: Running = rig.do(rig.stand.start, rig.plan)
    rig.do(rig.stand.drop_spare)
    Saboteur.refuse("empty root", "fsmount")
    rig.stand.cells._spare = rig.stand.cells._spawn()
    return running


def test_a_program_that_is_none_fails_at_its_execution(rig: Rig) -> None:
    error = rig.fails(LaunchFailed, plan=rig.stand.plan(("/usr/lib/python3.11/os.py",)))
    assert isinstance(error, LaunchFailed) and error.step == "execute", error


def test_an_id_that_no_map_can_hold_fails_the_user_namespace(rig: Rig) -> None:
    plan = rig.stand.plan((PYTHON, "-I", "-c", RAN), uid=0xFFFF_FFFF)
    error = rig.fails(LaunchFailed, plan=plan)
    assert isinstance(error, LaunchFailed) and error.step == "user namespace", error
    assert "uid_map" in str(error)


def test_a_root_without_inodes_left_fails_the_new_root(rig: Rig) -> None:
    many = tuple(Symlink(f"/usr/many/{n}", "x") for n in range(5000))  # it has 4096
    error = rig.fails(LaunchFailed, plan=rig.stand.plan((PYTHON, "-I", "-c", RAN), mounts=many))
    assert isinstance(error, LaunchFailed) and error.step == "new root", error
    assert "No space left" in str(error)
