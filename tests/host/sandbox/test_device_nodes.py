"""A name in /dev proves nothing: swapped, linked or foreign nodes are found before a launch."""

from __future__ import annotations

import dataclasses
import os
import stat
from pathlib import Path

import pytest

from sandbox import landlock, syscalls
from sandbox.errors import LaunchFailed
from sandbox.plan import Device
from supervisor.policy import nodes
from tests.host.sandbox.conftest import Cell

DEVICES = """\
Character devices:
  1 mem
195 nvidia
195 nvidiactl
226 drm
236 kfd
237 nvidia-uvm
246 dimmctl

Block devices:
226 strange
"""
RENDER, KFD = "/dev/dri/renderD128", "/dev/kfd"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A host with one graphics card of each make, as nodes; nobody opens them."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/devices").write_text(DEVICES)
    (tmp_path / "dev/dri").mkdir(parents=True)
    for path, number in {
        RENDER: (226, 128), KFD: (236, 0), "/dev/nvidiactl": (195, 255), "/dev/nvidia0": (195, 0),
        "/dev/nvidia-uvm": (237, 0),
    }.items():  # fmt: skip
        make(tmp_path, path, number)
    return tmp_path


def make(root: Path, path: str, number: tuple[int, int], kind: int = stat.S_IFCHR) -> Path:
    """A node in place of what is there."""
    here = root / path.lstrip("/")
    here.unlink(missing_ok=True)
    os.mknod(here, kind | 0o666, os.makedev(*number))
    return here


@pytest.mark.parametrize("path", sorted(nodes.STANDARD))
def test_the_hosts_own_nodes_are_what_they_are_called(path: str) -> None:
    assert nodes.resolve(path) == nodes.STANDARD[path]


def test_graphics_nodes_are_resolved_by_their_drivers(root: Path) -> None:
    assert nodes.resolve(RENDER, root) == (226, 128)
    assert nodes.resolve(KFD, root) == (236, 0)
    assert nodes.resolve("/dev/nvidia0", root) == (195, 0)
    assert nodes.resolve("/dev/nvidiactl", root) == (195, 255)
    assert nodes.resolve("/dev/nvidia-uvm", root) == (237, 0)
    assert nodes.resolve("/dev/dri/renderD129", root) is None


@pytest.mark.parametrize(
    ("path", "number", "kind", "said"),
    [
        (RENDER, (1, 1), stat.S_IFCHR, "its major number is 1, not 226"),
        (RENDER, (226, 0), stat.S_IFCHR, "its minor number is 0, not 128"),
        (RENDER, (226, 129), stat.S_IFCHR, "its minor number is 129, not 128"),
        (RENDER, (226, 128), stat.S_IFBLK, "it is no character device"),
        (KFD, (1, 1), stat.S_IFCHR, "gives major number 1 to mem, not to kfd"),
        (KFD, (246, 0), stat.S_IFCHR, "gives major number 246 to dimmctl, not to kfd"),
        (KFD, (99, 0), stat.S_IFCHR, "gives major number 99 to nobody, not to kfd"),
        ("/dev/nvidia0", (195, 1), stat.S_IFCHR, "its minor number is 1, not 0"),
        ("/dev/nvidia-uvm", (195, 0), stat.S_IFCHR, "nvidia, nvidiactl, not to nvidia-uvm"),
    ],
)
def test_a_node_with_another_number_is_refused(
    root: Path, path: str, number: tuple[int, int], kind: int, said: str
) -> None:
    make(root, path, number, kind)
    found = nodes.resolve(path, root)
    assert isinstance(found, str) and said in found


def test_a_link_a_plain_file_and_a_place_of_others_are_refused(root: Path) -> None:
    here = root / "dev/kfd"
    here.unlink()
    here.symlink_to("dri/renderD128")
    assert "symbolic link" in str(nodes.resolve(KFD, root))
    here.unlink()
    here.write_text("")
    assert nodes.resolve(KFD, root) == "it is no character device"
    make(root, KFD, (236, 0))
    os.chown(here, 1234, 0)  # as the TPM's node is its users'
    assert nodes.resolve(KFD, root) == (236, 0)
    for owner, mode in ((1234, 0o755), (0, 0o775), (0, 0o757)):
        os.chown(root / "dev", owner, 0)
        (root / "dev").chmod(mode)
        assert "something else in its directory" in str(nodes.resolve(KFD, root))
    os.chown(root / "dev", 0, 0)
    (root / "dev").chmod(0o755)
    (root / "dev/dri").rename(root / "dev/away")
    (root / "dev/dri").symlink_to("away")
    assert "symbolic link" in str(nodes.resolve(RENDER, root))


def test_a_loaded_driver_that_the_kernel_does_not_list_is_none(root: Path) -> None:
    (root / "proc/devices").write_text(DEVICES.replace("226 drm\n", ""))
    found = nodes.resolve(RENDER, root)
    assert isinstance(found, str) and "to nobody, not to drm" in found


@pytest.mark.parametrize("swap", ["number", "block", "link", "file", "above"])
def test_a_node_swapped_after_the_plan_was_made_ends_the_launch(
    cell: Cell, tmp_path: Path, swap: str
) -> None:
    place = tmp_path / "nodes"
    place.mkdir()
    path = make(place, "/made", (1, 9))
    device = Device(str(path), 1, 9)
    code = f"import os\nprint(os.major(os.stat({str(path)!r}).st_rdev))"
    assert cell.run(code, device).out == "1\n"  # control
    if swap == "number":
        make(place, "/made", (1, 1))
    elif swap == "block":
        make(place, "/made", (1, 9), stat.S_IFBLK)
    elif swap == "above":
        place.rename(tmp_path / "away")
        place.symlink_to("away")
    else:
        path.unlink()
        path.symlink_to("/dev/urandom") if swap == "link" else path.write_text("")
    with pytest.raises(LaunchFailed) as failed:
        cell.run(code, device)
    assert failed.value.step == "new root"
    assert str(path) in str(failed.value)


def test_orders_reach_only_devices_that_are_driven_by_them(cell: Cell) -> None:
    ask = "import fcntl\nf = open('/dev/random')\nfcntl.ioctl(f, 0x80045200, b'0' * 4)\nprint(1)"
    spec = cell.plan.seccomp  # without its rule for ioctl: Landlock is left
    rest = tuple(rule for rule in spec.refuse if rule.call != "ioctl")
    weak = dataclasses.replace(spec, refuse=rest)
    with_requests = Device("/dev/random", 1, 8, requests=True)
    assert cell.run(ask, with_requests, seccomp=weak).out == "1\n"
    refused = cell.run(ask, Device("/dev/random", 1, 8), seccomp=weak).out
    knows = landlock.handled(syscalls.landlock_abi())[0] & landlock.IOCTL_DEV
    assert ("PermissionError" in refused) if knows else (refused == "1\n")
    # And the rule holds alone.
    assert "Inappropriate ioctl" in cell.run(ask, with_requests).out
