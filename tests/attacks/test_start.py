"""A14 and A15: attempts that lie in wait for a start, and devices that are not what they were.

At the launcher itself: a policy cannot say that something is mounted inside a volume, which is what
A14 needs, and the root of a workload is made of a list, so that no image brings nodes of its own.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sandbox.errors import LaunchFailed
from sandbox.plan import Bind, Device
from tests.attacks.cell import Bench
from tests.attacks.scene import Place


@pytest.fixture
def bench(place: Place) -> Iterator[Bench]:
    """A launcher with every layer."""
    made = Bench(place)
    yield made
    made.close()


class Volume:
    """A writable volume with a file of the host mounted inside, and a place for a link to name."""

    def __init__(self, place: Place, name: str) -> None:
        self.inside, self.elsewhere = place.folder / f"volume-{name}", place.folder / f"host-{name}"
        for folder in (self.inside, self.elsewhere):
            folder.mkdir(mode=0o777)
        (self.inside / "inner").mkdir()
        (self.inside / "inner/name").touch()
        self.mounts = (
            Bind(str(self.inside), "/volume", ("read", "write")),
            Bind(str(place.marker), "/volume/inner/name", ("read",)),
        )

    def read(self, bench: Bench) -> str:
        """What a workload finds there."""
        words = ("open-read", "/volume/inner/name")
        return bench.run("descriptors", words, *self.mounts).answer


def test_a_link_at_a_mount_target_is_covered_and_not_followed(bench: Bench, place: Place) -> None:
    volume = Volume(place, "target")
    assert volume.read(bench).endswith("nobody inside reads or changes this"), "the control"
    (volume.inside / "inner/name").unlink()
    (volume.inside / "inner/name").symlink_to(volume.elsewhere / "made")
    assert volume.read(bench).endswith("nobody inside reads or changes this")
    assert list(volume.elsewhere.iterdir()) == []


def test_a_link_above_a_mount_target_stops_the_start(bench: Bench, place: Place) -> None:
    volume = Volume(place, "parent")
    assert volume.read(bench).endswith("nobody inside reads or changes this"), "the control"
    (volume.inside / "inner/name").unlink()
    (volume.inside / "inner").rmdir()
    (volume.inside / "inner").symlink_to(volume.elsewhere)
    with pytest.raises(LaunchFailed, match="inner"):
        volume.read(bench)
    assert list(volume.elsewhere.iterdir()) == []


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        (Device("/dev/stdin", 1, 3), "stdin"),  # a link
        (Device("/dev/zero", 1, 3), "is not the character device 1:3"),  # another node
        (Device("/dev/pts", 1, 3), "is not the character device 1:3"),  # a directory
    ],
    ids=["link", "another-node", "directory"],
)
def test_a_device_that_was_replaced_stops_the_start(
    bench: Bench, device: Device, reason: str
) -> None:
    null = Device("/dev/null", 1, 3)
    assert bench.run("descriptors", ("harmless",), null).answer == "returned 0", "the control"
    with pytest.raises(LaunchFailed, match=reason):
        bench.run("descriptors", ("harmless",), device)


def test_a_program_behind_a_link_of_the_host_is_not_mounted(bench: Bench, place: Place) -> None:
    link = place.folder / "link"
    link.symlink_to(place.programs)
    with pytest.raises(LaunchFailed, match="link"):
        bench.run("descriptors", ("harmless",), Bind(str(link), "/link", ("read", "exec")))
