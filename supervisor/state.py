"""The state directories: each bounded as a whole, by the file system's quota or in an image.

Beside the directory `w-NAME` may lie `w-NAME.img`, mounted on it in our own mount namespace. What
was in a directory from before is moved in whole or not at all; a crash at any moment is continued
or undone by the next start:
    w-NAME.img.new      an image in the making, thrown away
    w-NAME.moved        the old directory; it has this name only once the new image is complete
"""

from __future__ import annotations

import os
from pathlib import Path

from sandbox import volumes
from sandbox.errors import SandboxError
from sandbox.verify import Finding
from supervisor.policy import model
from supervisor.policy.plans import CompiledPolicy

_BYTES_PER_FILE, _FEWEST_FILES = 16 << 10, 1024


class StateDirectories:
    """All of them. `bounded` is False where the host has no way and waived `disk:quota`."""

    def __init__(self, bounded: bool) -> None:
        self._bounded = bounded
        self._ways: dict[str, str] = {}
        self._refused: dict[str, SandboxError] = {}

    def prepare(self, compiled: CompiledPolicy) -> None:
        """Bound the workload's directory, if it has one; a failure is told by `require`."""
        if compiled.state_directory is None:
            return
        directory, (size, files) = Path(compiled.state_directory), bounds(compiled)
        owner = (compiled.sandbox.uid, compiled.sandbox.gid)
        try:
            if not self._bounded:
                if _image(directory).exists():
                    raise SandboxError(
                        "state_in_image",
                        f"{compiled.id}: its files are in {_image(directory)}",
                        "do not waive disk:quota, or copy them out of the image and remove it",
                    )
            elif volumes.has_quota(directory) and not _image(directory).exists():
                volumes.set_quota(directory, owner[0], size, files)
                self._ways[compiled.id] = "project quota"
            else:
                use_image(directory, size, files, owner)
                self._ways[compiled.id] = "image"
        except SandboxError as error:
            self._refused[compiled.id] = error
        except OSError as error:
            self._refused[compiled.id] = SandboxError(
                "state_unbounded",
                f"{compiled.id}: {directory} cannot be bounded: {error}",
                "make room on the disk, or raise the size of its state rule",
            )

    def require(self, compiled: CompiledPolicy) -> None:
        """Raises SandboxError if the directory is not as its policy says."""
        if error := self._refused.get(compiled.id):
            raise error

    def finding(self, compiled: CompiledPolicy) -> Finding | None:
        """How the directory is bounded and how much still fits, for `status`; None without one."""
        if compiled.state_directory is None:
            return None
        size, files = bounds(compiled)
        promised = f"{size} bytes and {files} files in all"
        way = self._ways.get(compiled.id)
        if way is None:
            evidence = (
                f"each file at most {compiled.sandbox.limits.fsize} bytes; waived as disk:quota"
            )
            return Finding("disk", promised, evidence, "FAIL" if self._bounded else "DEGRADED")
        left, files_left = volumes.room(Path(compiled.state_directory))
        evidence = f"{way}, {left} bytes and {files_left} files still fit"
        # A bound that is not in force leaves the room of the whole disk.
        return Finding("disk", promised, evidence, "PASS" if left <= size else "FAIL")


def bounds(compiled: CompiledPolicy) -> tuple[int, int]:
    """Bytes and files that the policy's state rules allow in all."""
    states = [r.permission for r in compiled.rules if isinstance(r.permission, model.State)]
    size = max(state.size for state in states)
    return size, max(_FEWEST_FILES, size // _BYTES_PER_FILE)


def use_image(directory: Path, size: int, files: int, owner: tuple[int, int]) -> None:
    """Mount the directory's image on it; make it, and move everything in, where there is none yet
    or one for another size. Raises OSError and SandboxError; then nothing was moved."""
    image, moved = _image(directory), directory.with_name(f"{directory.name}.moved")
    new = image.with_name(f"{image.name}.new")
    if moved.exists():  # the move was complete, but not its end
        if new.exists():
            new.rename(image)
        directory.mkdir(mode=0o700, exist_ok=True)
        _sync(directory.parent)
        volumes.remove_tree(moved)
    new.unlink(missing_ok=True)
    if not image.exists():
        _fill(new, directory, size, files, owner)
        directory.rename(moved)
        _sync(directory.parent)
        new.rename(image)
        directory.mkdir(mode=0o700)
        os.chown(directory, *owner)
        _sync(directory.parent)
        volumes.remove_tree(moved)
    elif any(directory.iterdir()):
        raise SandboxError(
            "state_twice",
            f"there are files in {directory} and in {image}",
            f"move the ones in {directory} away, or remove {image} to use them in its place",
        )
    elif image.stat().st_size != volumes.image_size(size, files):
        old = image.with_name(f"{image.name}.old")
        with volumes.mounted(image, old):
            _fill(new, old, size, files, owner)
        new.rename(image)
        _sync(directory.parent)
    volumes.mount_image(image, directory)


def _image(directory: Path) -> Path:
    return directory.with_name(f"{directory.name}.img")


def _fill(image: Path, source: Path, size: int, files: int, owner: tuple[int, int]) -> None:
    """A new image with everything that is in `source`; on failure none."""
    taken = volumes.taken(source)
    if taken[0] > size or taken[1] > files:
        message = f"{source} holds {taken[0]} bytes in {taken[1]} files"
        fix = f"its state rule allows {size} bytes in {files} files: remove some, or raise it"
        raise SandboxError("state_too_large", message, fix)
    volumes.make_image(image, size, files, owner)
    try:
        with volumes.mounted(image, place := image.with_name(f"{image.name}.mount")):
            volumes.copy_tree(source, place)
        _sync(image)
    except BaseException:
        image.unlink()
        raise


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
