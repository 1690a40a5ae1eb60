"""The host tier once more, inside the machine: another kernel, a pure cgroup v2 tree, systemd.

What has to skip or waive on a host without these runs here. What is left out takes many minutes
without hardware virtualisation: folders whose every test compiles probes, makes a vault or starts a
supervisor, which the other tests of this tier do with the installed one; and modules that start
hundreds of cells to kill them or to refuse them one call after the other.
"""

from __future__ import annotations

import io
import re
import subprocess
import tarfile
from importlib.metadata import distribution
from pathlib import Path

import pytest

from tests.vm.machine import Machine

ROOT = Path(__file__).resolve().parents[2]
PLACE = "/opt/anchorhold"
TOOLS = ("pytest", "pytest-xprocess", "psutil", "hypothesis", "PyJWT")
FOLDERS = ("sandbox", "broker", "doctor", "control")
LEFT_OUT = ("test_churn.py", "test_killed_at_random.py", "test_faults_*.py")
MINUTES = 15


def tools(names: tuple[str, ...]) -> set[Path]:
    """The installed files of some distributions and of what they require."""
    found: dict[str, set[Path]] = {}
    todo = list(names)
    while todo:
        name = todo.pop().lower()
        if name in found:
            continue
        here = distribution(name)
        found[name] = {
            path
            for file in here.files or ()
            if ".." not in file.parts  # programs beside the libraries
            and (path := Path(str(here.locate_file(file)))).is_file()
            and path.suffix != ".pyc"
        }
        needed = (need for need in here.requires or () if ";" not in need)
        todo += [re.split(r"[^\w.-]", need, maxsplit=1)[0] for need in needed]
    return set().union(*found.values())


def tree() -> bytes:
    """This tree and the test tools as a tar file."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=True,
    )  # fmt: skip
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name in filter(None, listed.stdout.decode().split("\0")):
            if (ROOT / name).exists():
                tar.add(ROOT / name, f"{PLACE[1:]}/{name}", recursive=False, filter=_roots)
        for path in sorted(tools(TOOLS)):
            below = path.as_posix().rpartition("site-packages/")[2]
            tar.add(path, f"opt/tools/{below}", filter=_roots)
    return packed.getvalue()


def _roots(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    return entry


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_host_tier_passes_in_the_machine(
    vm: Machine, folder: str, record_property: pytest.RecordProperty
) -> None:
    vm.run("systemctl stop anchorhold", timeout=60)
    vm.run(["tar", "-x", "-C", "/", "-f", "-"], stdin=tree(), timeout=180)
    vm.run(f"cp -a /usr/lib/anchorhold/runtime {PLACE}/.runtime", timeout=60)
    path = f"/opt/tools:$(echo {PLACE}/.runtime/lib/python3*/site-packages)"
    without = " ".join(f"--ignore-glob='*/{name}'" for name in LEFT_OUT)
    # Interrupted, pytest still tells of what has failed so far.
    limit = f"timeout --signal=INT --kill-after=60 {60 * MINUTES}"
    command = f"{limit} /usr/bin/python3 -m pytest -q {without} tests/host/{folder}"
    done = vm.run(
        f"cd {PLACE} && PYTHONPATH={path} {command}", timeout=60 * (MINUTES + 2), check=False
    )
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr
    print(f"{folder}: {last}")
    record_property("guest", last)
    assert done.exit == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert re.search(r"[1-9][0-9]* passed", last), last
