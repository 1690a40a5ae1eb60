"""Limits as cgroup files: what is written, and that only the same meaning counts as in force."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sandbox import limits
from sandbox.errors import SandboxError
from sandbox.plan import IoLimits, Limits

ALL = frozenset({"memory", "pids", "cpu", "cpuset", "io"})
NONE = Limits(None, None, None)


@pytest.fixture
def leaf(tmp_path: Path) -> Path:
    """The files of a cgroup with every controller, as plain files: what is written is read."""
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    for file in limits.files(everything(tmp_path)):
        (tmp_path / file).touch()
    (tmp_path / "cpuset.cpus.effective").write_text("0-1,4\n")
    return tmp_path


def everything(state: Path) -> Limits:
    return Limits(
        128 << 20, 16, 0.5, memory_high=112 << 20, cpu_weight=200, cpus=(0, 1, 4),
        io=IoLimits(str(state), read=20 << 20, write_ops=100),
    )  # fmt: skip


def test_every_limit_has_its_file() -> None:
    assert limits.files(everything(Path("/"))) == {
        "memory.max": "134217728", "memory.high": "117440512", "memory.swap.max": "0",
        "memory.oom.group": "1", "pids.max": "16", "cpu.max": "50000 100000", "cpu.weight": "200",
        "cpuset.cpus": "0-1,4", "io.max": "rbps=20971520 wiops=100",
        "cgroup.max.descendants": "0", "cgroup.max.depth": "0",
    }  # fmt: skip


def test_who_limits_nothing_still_gets_no_cgroup_below_its_own() -> None:
    assert set(limits.files(NONE)) == {"cgroup.max.descendants", "cgroup.max.depth"}


@pytest.mark.parametrize(
    ("file", "wanted", "found", "same"),
    [
        ("memory.max", "134217728", "134217728", True),
        ("memory.max", "67108865", "67108864", True),  # whole pages, rounded down
        ("memory.max", "67108865", "67112960", False),
        ("memory.max", "67108864", "67104768", False),
        ("memory.max", "67108864", "max", False),
        ("memory.swap.max", "0", "max", False),
        ("memory.oom.group", "1", "0", False),
        ("pids.max", "16", "16", True),
        ("pids.max", "16", "15", False),
        ("cpu.max", "50000 100000", "50000 100000", True),
        ("cpu.max", "50000 100000", "max 100000", False),
        ("cpu.max", "50000 100000", "50000", False),
        ("cpu.weight", "200", "200", True),
        ("cpu.weight", "200", "100", False),
        ("cpuset.cpus", "0,1,2", "0-2", True),
        ("cpuset.cpus", "0-2", "0,1", False),
        ("cpuset.cpus", "0-2", "", False),
        ("io.max", "8:0 rbps=5 wiops=7", "8:0 rbps=5 wbps=max riops=max wiops=7", True),
        ("io.max", "8:0 wiops=7 rbps=5", "9:0 rbps=1\n8:0 rbps=5 wbps=max wiops=7", True),
        ("io.max", "8:0 rbps=5", "8:16 rbps=5 wbps=max riops=max wiops=max", False),
        ("io.max", "8:0 rbps=5", "8:0 rbps=50 wbps=max riops=max wiops=max", False),
        ("io.max", "8:0 rbps=5", "", False),
        ("cgroup.max.depth", "0", "max", False),
        ("pids.max", "16", "", False),
        ("memory.max", "16", "\x00nonsense", False),
    ],
)
def test_meanings_are_compared_and_not_texts(
    file: str, wanted: str, found: str, same: bool
) -> None:
    assert limits.means(file, wanted, found) is same


def test_what_is_written_is_read_back(leaf: Path) -> None:
    assert limits.apply(leaf, everything(leaf), frozenset()) == []
    found = {one.file: one for one in limits.look(leaf, everything(leaf), frozenset())}
    assert {one.state for one in found.values()} == {"in force"}
    (disk,) = limits.block_devices(str(leaf))
    assert found["io.max"].found == f"{disk} rbps=20971520 wiops=100"


FILES = ["memory.max", "memory.high", "memory.swap.max", "memory.oom.group", "pids.max", "cpu.max",
         "cpu.weight", "io.max", "cgroup.max.descendants", "cgroup.max.depth"]  # fmt: skip


@pytest.mark.parametrize("file", FILES)
def test_a_value_that_does_not_stay_is_refused(leaf: Path, file: str) -> None:
    limits.apply(leaf, everything(leaf), frozenset())  # control: with files that keep it
    (leaf / file).unlink()
    (leaf / file).symlink_to("/dev/null")  # takes the write and keeps nothing
    with pytest.raises(SandboxError) as refused:
        limits.apply(leaf, everything(leaf), frozenset())
    assert refused.value.code == "limit_not_applied"
    assert str(refused.value).startswith(f"{file}: ")


def test_processors_that_are_not_given_are_refused(leaf: Path) -> None:
    (leaf / "cpuset.cpus.effective").write_text("0-1\n")  # the cgroup above has no processor 4
    with pytest.raises(SandboxError, match=r"^cpuset\.cpus: 0-1"):
        limits.apply(leaf, everything(leaf), frozenset())


@pytest.mark.parametrize("file", FILES[:-2])
def test_a_missing_controller_is_named_with_the_fix_or_waived(leaf: Path, file: str) -> None:
    name = limits.controller(file)
    (leaf / "cgroup.controllers").write_text("")
    for one in leaf.glob(f"{name}.*"):
        one.unlink()
    with pytest.raises(SandboxError, match=f"no cgroup v2 {name} controller") as refused:
        limits.apply(leaf, everything(leaf), ALL - {name})
    assert f"waive cgroup:{name}" in refused.value.fix
    assert file in limits.apply(leaf, everything(leaf), frozenset({name}))
    found = {one.file: one for one in limits.look(leaf, everything(leaf), frozenset({name}))}
    assert found[file].state == "absent"
    assert found[file].found.endswith(f"waived as cgroup:{name}")


def test_a_kernel_that_refuses_a_value_is_quoted(leaf: Path) -> None:
    (leaf / "pids.max").unlink()
    (leaf / "pids.max").symlink_to("/proc/version")  # takes no write, whoever asks
    with pytest.raises(SandboxError, match=r"pids\.max: the kernel refuses '16': \w"):
        limits.apply(leaf, everything(leaf), frozenset())
    assert limits.apply(leaf, everything(leaf), frozenset({"pids"})) == ["pids.max"]


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("", set()), ("0", {0}), ("0-3", {0, 1, 2, 3}), ("0-1,4", {0, 1, 4}), ("7,2-3", {2, 3, 7})],
)
def test_lists_of_processors_are_read_and_written(text: str, cpus: set[int]) -> None:
    assert limits.cpu_set(text) == cpus
    assert limits.cpu_set(limits.cpu_list(cpus)) == cpus


@pytest.mark.parametrize("text", ["3-1", "a", "1-", "-1", "1,,2", "0-1-2"])
def test_a_wrong_list_of_processors_is_an_error(text: str) -> None:
    with pytest.raises(ValueError):
        limits.cpu_set(text)


def test_a_partition_counts_as_its_disk(tmp_path: Path) -> None:
    number = tmp_path.stat().st_dev
    device = f"{os.major(number)}:{os.minor(number)}"
    sys = tmp_path / "sys"
    disk = sys / "devices/disk"
    (disk / "part").mkdir(parents=True)
    (disk / "dev").write_text("8:0\n")
    (sys / "dev/block").mkdir(parents=True)
    (sys / "dev/block" / device).symlink_to(disk / "part")
    assert limits.block_devices(str(tmp_path), sys) == [device]  # a disk is itself
    (disk / "part/partition").write_text("1\n")
    assert limits.block_devices(str(tmp_path), sys) == ["8:0"]


def test_a_directory_that_is_on_no_disk_is_refused_or_waived(leaf: Path) -> None:
    wanted = Limits(None, None, None, io=IoLimits("/dev/shm/not-there-yet", read=1 << 20))
    with pytest.raises(SandboxError, match="not-there-yet cannot be told") as refused:
        limits.apply(leaf, wanted, frozenset())
    assert "take `io` out of the policy" in refused.value.fix
    assert limits.apply(leaf, wanted, frozenset({"io"})) == ["io.max"]
