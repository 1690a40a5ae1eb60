"""What a test of the VM tier waits for its machine: a restored snapshot against a cold boot."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

from tests.bench.figure import Figure
from tests.vm import image, places
from tests.vm.machine import Machine
from tests.vm.snapshot import Snapshots

RESTORES, BOOTS = 7, 2


def seconds(make: Callable[[Path], Machine]) -> float:
    """From nothing to the end of the machine's first command."""
    with places.working_folder(places.cache() / "run") as folder:
        began = time.monotonic()
        machine = make(folder)
        try:
            machine.run("true")
            return time.monotonic() - began
        finally:
            machine.stop()


def main() -> list[Figure]:
    """Both on one image."""
    snapshots = Snapshots(image.image("bookworm"))
    snapshots.path("plain")

    def restored(folder: Path) -> Machine:
        return snapshots.restore("plain", folder)

    def booted(folder: Path) -> Machine:
        machine = snapshots.asleep("plain", folder)
        machine.boot()
        return machine

    boots = [seconds(booted) for _ in range(BOOTS)]
    restores = [seconds(restored) for _ in range(RESTORES)]
    boot, restore = statistics.median(boots), statistics.median(restores)
    return [
        Figure("VM: restore of a snapshot", restore, "s", boot, "cold boot", 0.1),
        Figure("VM: restore, seconds", restore, "s", bound=1.0),
        Figure("VM: boot, seconds", boot, "s", bound=20.0),
    ]
