"""The VM tier as a pytest plugin: `vm`, `cold`, and what is kept of a test that failed."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pluggy
import pytest

from tests.vm import accelerator, image, places
from tests.vm.firmware import signed as sign
from tests.vm.firmware import unified_image
from tests.vm.machine import COMMAND_LINE, Firmware, Machine, Start
from tests.vm.snapshot import Snapshots

ROOT = Path(__file__).resolve().parents[2]
FAILED = ROOT / ".cache/vm/failed"
MACHINES = pytest.StashKey[list[Machine]]()


def pytest_configure(config: pytest.Config) -> None:
    """The marker that chooses what `vm` starts from."""
    config.addinivalue_line("markers", 'snapshot(name): what `vm` restores; "installed" if absent')


def pytest_report_header() -> str:
    """Which Debian, and whether the processor is a real one."""
    verdict = accelerator.known()
    how = (
        f"{verdict[0].upper()} ({verdict[1]})" if verdict else "KVM if a trial boot works, else TCG"
    )
    return f"vm: Debian {image.chosen_suite()}, {how}, cache {places.cache()}"


@pytest.fixture(scope="session")
def snapshots() -> Iterator[Snapshots]:
    """The snapshots of the suite's image."""
    made = Snapshots(image.image(image.chosen_suite()))
    yield made
    made.close()


@pytest.fixture
def folders() -> Iterator[Callable[[], Path]]:
    """Makes working folders that end with the test."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(places.working_folder(places.cache() / "run"))


@pytest.fixture
def machines(
    request: pytest.FixtureRequest, folders: Callable[[], Path]
) -> Iterator[list[Machine]]:
    """Every machine of the test; they are stopped when it ends, before their folders go."""
    own = request.node.stash.setdefault(MACHINES, [])
    yield own
    for machine in own:
        machine.stop()


@pytest.fixture
def vm(
    request: pytest.FixtureRequest,
    snapshots: Snapshots,
    folders: Callable[[], Path],
    machines: list[Machine],
) -> Machine:
    """A running machine, fresh from the snapshot that the test's marker names."""
    marker = request.node.get_closest_marker("snapshot")
    name = marker.args[0] if marker else "installed"
    machine = snapshots.asleep(name, folders())
    machines.append(machine)
    machine.resume(snapshots.path(name) / "state")
    return machine


@pytest.fixture
def cold(
    snapshots: Snapshots, folders: Callable[[], Path], machines: list[Machine]
) -> Callable[..., Machine]:
    """Boots machines of a test's own: `cold("installed", firmware="ovmf", kernel=uki)`.

    `disk` is a snapshot's disk and TPM. `kernel` is "direct" (QEMU loads kernel and initrd, and
    `command_line` is its own) or a unified kernel image, which needs a `firmware`: "ovmf" or
    "secure-boot". With `boot` false the machine is left off, for a boot that shall fail.
    """

    def make(
        disk: str = "plain",
        firmware: Firmware | None = None,
        kernel: Path | Literal["direct"] = "direct",
        command_line: str = COMMAND_LINE,
        boot: bool = True,
    ) -> Machine:
        machine = snapshots.asleep(disk, folders())
        machines.append(machine)
        if kernel == "direct":
            machine.start = replace(snapshots.start, firmware=firmware, command_line=command_line)
        else:
            machine.start = Start(kernel, firmware=firmware)
        if boot:
            machine.boot()
        return machine

    return make


@pytest.fixture
def unified(snapshots: Snapshots, folders: Callable[[], Path]) -> Callable[..., Path]:
    """Makes unified kernel images: `unified(command_line=..., signed=False)`."""

    def make(command_line: str = COMMAND_LINE, signed: bool = True) -> Path:
        folder = folders()
        image = unified_image(snapshots.image, command_line, folder / "unsigned.efi")
        return sign(image, folder / "signed.efi") if signed else image

    return make


def _keep(machine: Machine, folder: Path) -> None:
    """Console, logs of QEMU and swtpm, and the guest's journal if it still answers."""
    folder.mkdir(parents=True)
    for log in machine.folder.glob("*.log"):
        shutil.copy(log, folder)
    try:
        journal = machine.run("journalctl --no-pager | tail -n 5000", timeout=20)
        (folder / "journal.log").write_text(journal.stdout)
    except Exception as error:
        (folder / "journal.log").write_text(f"not to be had: {error}\n")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pluggy.Result[pytest.TestReport], None]:
    """Keep what a failed test's machines have to say, and say where."""
    report = (yield).get_result()
    machines = item.stash.get(MACHINES, [])
    if call.when == "teardown" or not report.failed or not machines:
        return
    folder = FAILED / re.sub(r"[^\w.-]+", "_", item.nodeid.removeprefix("tests/vm/"))
    shutil.rmtree(folder, ignore_errors=True)
    for number, machine in enumerate(machines, 1):
        _keep(machine, folder / f"machine-{number}")
    report.sections.append(("virtual machine", f"console and logs: {folder}"))
