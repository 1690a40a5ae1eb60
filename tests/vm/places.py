"""Where the tier keeps things: a cache that survives a fresh clone, folders that do not survive
their process, and locks that say what is in use."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.vm.failures import RigFailure

LOCK = "in-use"


def cache() -> Path:
    """$ANCHORHOLD_CACHE, else `anchorhold` in the user's cache."""
    if chosen := os.environ.get("ANCHORHOLD_CACHE"):
        return Path(chosen).absolute()
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "anchorhold"


def need_space(folder: Path, gibibytes: float, what_for: str) -> None:
    """Refuse with a sentence rather than fail in the middle with half a file."""
    free = shutil.disk_usage(folder).free / (1 << 30)
    if free < gibibytes:
        raise RigFailure(
            f"{folder} has {free:.1f} GiB free; {what_for} needs {gibibytes:g} GiB.\n"
            "  Free some, or set ANCHORHOLD_CACHE to a folder on a larger disk."
        )


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold a lock file; others wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def hold(folder: Path) -> int:
    """Mark a folder as in use until the returned descriptor is closed or this process ends."""
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


def remove_unused(parent: Path, pattern: str = "*") -> None:
    """Remove the folders below `parent` that nobody holds: left by processes that were killed."""
    for folder in parent.glob(pattern):
        if not folder.is_dir():
            continue
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
        except BlockingIOError:
            pass
        finally:
            os.close(descriptor)


@contextmanager
def working_folder(parent: Path) -> Iterator[Path]:
    """A folder for the time of the block. Others' left ones are swept away first."""
    with alone(parent / "lock"):
        remove_unused(parent)
        folder = Path(tempfile.mkdtemp(dir=parent))
        held = hold(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)
