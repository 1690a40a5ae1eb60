"""Device nodes: the cgroup's program decides alone, and only the plan's program counts."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sandbox import credentials, devices, mounts, syscalls
from sandbox.cgroup import Leaf, find_mount
from sandbox.devices import BLOCK, CHARACTER, MAKE, READ, WRITE, Rule
from sandbox.errors import SandboxError
from sandbox.plan import Bind, Device
from sandbox.verify import Finding
from supervisor import daemon
from tests.host.sandbox.conftest import Cell, shipped_plan

ZERO, FULL, NULL = (1, 5), (1, 7), (1, 3)
LOOP = (7, 0)  # as a block device; character 7:0 is a console's memory


@pytest.fixture
def leaf() -> Iterator[Leaf]:
    """An empty cgroup."""
    path = find_mount() / f"anchorhold-devices-{os.getpid()}"
    path.mkdir()
    yield Leaf(path)
    Leaf(path).destroy()


def inside(leaf: Leaf, act: Callable[[], object]) -> int:
    """The errno of `act` in a root process of the cgroup, 0 if it worked."""
    pid = os.fork()
    if pid == 0:
        code = 255
        try:
            (leaf.path / "cgroup.procs").write_text(str(os.getpid()))
            act()
            code = 0
        except OSError as error:
            code = error.errno or 255
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def node(path: Path, kind: int, number: tuple[int, int]) -> Path:
    """A device node that everybody may open."""
    os.mknod(path, (stat.S_IFBLK if kind == BLOCK else stat.S_IFCHR) | 0o666, os.makedev(*number))
    path.chmod(0o666)
    return path


def attached_ids(leaf: Leaf) -> list[int]:
    """What BPF_PROG_QUERY tells, which the product does without."""
    ids = ctypes.create_string_buffer(64)
    cgroup = os.open(leaf.path, os.O_RDONLY)
    fields = struct.pack("=4IQI4x", cgroup, 6, 0, 0, ctypes.addressof(ids), 16)
    buffer = ctypes.create_string_buffer(fields, len(fields))
    assert ctypes.CDLL(None).syscall(321, 16, buffer, len(fields)) == 0
    os.close(cgroup)
    count = struct.unpack_from("=I", buffer.raw, 24)[0]
    return list(struct.unpack_from(f"={count}I", ids.raw))


def test_the_kernel_decides_by_kind_number_and_access(leaf: Leaf, tmp_path: Path) -> None:
    rules = (
        Rule(CHARACTER, *ZERO, READ),
        Rule(CHARACTER, *FULL, WRITE),
        Rule(CHARACTER, *NULL, READ | WRITE | MAKE),
        Rule(BLOCK, *LOOP, READ),
    )
    known = {(kind, (major, minor)): access for kind, major, minor, access in rules}
    subjects = [(CHARACTER, n) for n in (ZERO, FULL, NULL, (1, 9), LOOP)]
    subjects += [(BLOCK, LOOP), (BLOCK, (7, 1))]
    acts: list[tuple[int, Callable[[], object], int]] = []
    for index, (kind, number) in enumerate(subjects):
        path = node(tmp_path / f"node{index}", kind, number)
        allowed = known.get((kind, number), 0)
        for flags, needs in ((os.O_RDONLY, READ), (os.O_WRONLY, WRITE), (os.O_RDWR, READ | WRITE)):
            if (kind, number) in ((CHARACTER, LOOP), (BLOCK, LOOP), (BLOCK, (7, 1))) and flags:
                continue  # nothing of this machine is opened for writing
            acts.append((needs & ~allowed, lambda p=path, f=flags: os.open(p, f), needs))
        fresh = tmp_path / f"fresh{index}"
        acts.append((MAKE & ~allowed, lambda f=fresh, k=kind, n=number: node(f, k, n), MAKE))
    before = [inside(leaf, act) for _, act, _ in acts]
    assert set(before) <= {0, errno.ENXIO}, "control: without the program nothing is forbidden"
    for fresh in tmp_path.glob("fresh*"):
        fresh.unlink()
    cgroup = leaf.open()
    program = devices.load(rules)
    devices._bpf(8, struct.pack("=5I", cgroup, program, 6, 2, 0))
    os.close(cgroup)
    after = [inside(leaf, act) for _, act, _ in acts]
    wanted = [
        errno.EPERM if missing else code for (missing, _, _), code in zip(acts, before, strict=True)
    ]
    assert after == wanted
    assert {0, errno.EPERM} <= set(after)


@pytest.mark.parametrize("kind", [CHARACTER, BLOCK])
def test_an_unlisted_node_is_refused_by_the_program_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: int
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    data.chmod(0o755)
    node(data / "node", kind, ZERO if kind == CHARACTER else LOOP)
    mount = Bind(str(data), "/data", ("read",))
    code = "import os\nprint(os.open('/data/node', os.O_RDONLY) > 2)"

    plan = shipped_plan(tmp_path, "adapter.rest")
    assert not [d for d in plan.mounts if isinstance(d, Device) and (d.major, d.minor) == ZERO]
    whole = Cell(plan, tmp_path)
    try:
        assert "PermissionError: [Errno 13]" in whole.run(code, mount).out, "nodev"
    finally:
        whole.close()
    (tmp_path / "stage").rmdir()
    # From here on without nodev: the child is a fork of this process.
    monkeypatch.setattr(mounts, "MOUNT_ATTR_NODEV", 0)
    weak = Cell(plan, tmp_path)
    try:
        refused = weak.run(code, mount)
        assert "PermissionError: [Errno 1]" in refused.out
        assert verdict(refused.findings) == "PASS"
        weak.launcher._filter_devices = False  # the control
        opened = weak.run(code, mount)
        assert opened.out == "True\n"
        assert verdict(opened.findings) == "FAIL"
    finally:
        weak.close()


def verdict(findings: list[Finding]) -> str:
    """What was said of the devices."""
    return next(f.verdict for f in findings if f.layer == "devices")


def test_a_listed_node_opens(cell: Cell) -> None:
    result = cell.run("print(open('/dev/null', 'r+b', 0).write(b'12'))")
    assert result.out == "2\n"
    assert verdict(result.findings) == "PASS"


def test_only_the_plans_own_program_counts_as_attached(leaf: Leaf, tmp_path: Path) -> None:
    plan = shipped_plan(tmp_path, "adapter.rest")
    other = shipped_plan(tmp_path, "executor.main")
    assert devices.rules(plan) != devices.rules(other)
    devices.load(devices.rules(plan))
    assert not devices.attached(leaf.path, plan)
    assert attached_ids(leaf) == []
    devices.attach(leaf.path, other)
    assert not devices.attached(leaf.path, plan), "another plan's program is not this one's"
    devices.attach(leaf.path, plan)
    before = attached_ids(leaf)
    assert devices.attached(leaf.path, plan) and devices.attached(leaf.path, other)
    assert attached_ids(leaf) == before and len(before) == 2, "asking changes nothing"


def test_one_program_serves_all_launches_of_one_list(leaf: Leaf, tmp_path: Path) -> None:
    plan = shipped_plan(tmp_path, "adapter.rest")
    devices.attach(leaf.path, plan)
    (first,) = attached_ids(leaf)
    open_before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names alone
    for number in range(20):
        path = leaf.path.with_name(f"{leaf.path.name}-{number}")
        path.mkdir()
        devices.attach(path, plan)
        assert attached_ids(Leaf(path)) == [first]
        path.rmdir()  # a cgroup with a program in it can be removed
    assert len(os.listdir("/proc/self/fd")) == open_before  # noqa: PTH208 - names alone


def test_the_supervisors_few_capabilities_attach_and_ask_but_load_nothing(
    leaf: Leaf, tmp_path: Path
) -> None:
    plan = shipped_plan(tmp_path, "adapter.rest")
    unknown = (Rule(CHARACTER, 99, 99, READ),)
    devices.load(devices.rules(plan))
    keep = credentials.mask(daemon._KEPT)

    def act() -> None:
        syscalls.capset(keep, keep, 0)
        devices.attach(leaf.path, plan)
        assert devices.attached(leaf.path, plan)
        devices.load(unknown)

    assert _outcome(act) == "PermissionError"
    devices.load(unknown)  # control
    assert len(attached_ids(leaf)) == 1


def test_without_the_program_nothing_is_launched(cell: Cell) -> None:
    keep = credentials.mask(daemon._KEPT)

    def act() -> None:
        syscalls.capset(keep, keep, 0)
        devices._programs.clear()
        cell.do(cell.hold, cell.command(("/usr/bin/true",)))

    assert _outcome(act) == "SandboxError device_filter"


def _outcome(act: Callable[[], object]) -> str:
    """Which exception `act` ended with, in a child that may lose its capabilities."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            act()
            said = "nothing"
        except SandboxError as error:
            said = f"SandboxError {error.code}"
        except BaseException as error:
            said = type(error).__name__
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    said = os.read(reading, 100).decode()
    os.close(reading)
    os.waitpid(pid, 0)
    return said
