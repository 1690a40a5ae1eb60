"""State directories end at their bound; what was in them before moves in whole or not at all."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from house import House, poll

from sandbox import syscalls, volumes
from supervisor import state

SIZE, FILES = 2 << 20, 1024
OWNER = (1879059999, 1879059999)


def alone(act: Callable[[], object]) -> str:
    """Run `act` as root in a mount namespace of its own; "" or what went wrong."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        said = ""
        try:
            syscalls.unshare(syscalls.CLONE_NEWNS)
            syscalls.mount("", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
            act()
        except BaseException as error:
            said = f"{type(error).__name__} {getattr(error, 'code', '')} {error}"
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        said = answer.read()
    os.waitpid(pid, 0)
    return said


def as_owner(act: Callable[[], int]) -> int:
    """What `act` returns as the workload's uid."""
    pid = os.fork()
    if pid == 0:
        code = 255
        try:
            os.setgroups([])
            os.setresgid(OWNER[1], OWNER[1], OWNER[1])
            os.setresuid(OWNER[0], OWNER[0], OWNER[0])
            code = act()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """A state directory with data of an earlier version."""
    found = tmp_path / "w-tool"
    found.mkdir(mode=0o700)
    tmp_path.chmod(0o711)
    for parent in tmp_path.parents:
        if parent.stat().st_mode & 0o777 == 0o700:
            parent.chmod(0o711)
    (found / "deep/er").mkdir(parents=True)
    (found / "deep/er/journal").write_bytes(b"old" * 1000)
    (found / "deep/er/journal").chmod(0o640)
    (found / "link").symlink_to("/etc/shadow")
    for path in (found, *found.rglob("*")):
        os.chown(path, *OWNER, follow_symlinks=False)
    yield found
    for image in tmp_path.glob("*.img*"):
        image.unlink() if image.is_file() else None


def looks_moved(directory: Path) -> None:
    """Everything is there, with owner and mode, and a link is still a link."""
    journal = directory / "deep/er/journal"
    assert journal.read_bytes() == b"old" * 1000
    assert (journal.stat().st_uid, journal.stat().st_mode & 0o777) == (OWNER[0], 0o640)
    assert str((directory / "link").readlink()) == "/etc/shadow"
    assert directory.stat().st_uid == OWNER[0] and directory.stat().st_mode & 0o777 == 0o700
    assert sorted(os.listdir(directory)) == ["deep", "link"]  # noqa: PTH208 - names alone
    assert not directory.with_name("w-tool.moved").exists()


def write(path: Path, most: int) -> tuple[int, int]:
    """Bytes written before an error, and its errno."""
    written = 0
    try:
        with path.open("wb", buffering=0) as file:
            while written < most:
                written += file.write(b"x" * 4096)
            os.fsync(file.fileno())
    except OSError as error:
        return written, error.errno or 0
    return written, 0


def test_bytes_and_files_end_at_the_bound_and_the_host_keeps_its_room(directory: Path) -> None:
    def fill() -> int:
        written, code = write(directory / "big", 4 * SIZE)
        assert code == errno.ENOSPC
        # Directories and the moved files take a few blocks of it.
        assert SIZE - (64 << 10) <= written <= SIZE, written
        (directory / "big").unlink()
        made = 0
        try:
            while made < 4 * FILES:
                (directory / f"f{made}").touch()
                made += 1
        except OSError as error:
            assert error.errno == errno.ENOSPC
        assert FILES // 2 < made < 2 * FILES, made
        return 0

    def act() -> None:
        before = os.statvfs(directory.parent).f_bavail
        state.use_image(directory, SIZE, FILES, OWNER)
        looks_moved(directory)
        held = os.statvfs(directory.parent).f_bavail
        assert before - held >= SIZE // 4096, "its room is taken on the host at once"
        assert volumes.room(directory)[0] <= SIZE
        assert as_owner(fill) == 0
        image = directory.with_name("w-tool.img").stat()
        assert image.st_blocks * 512 <= image.st_size + (1 << 20), "a full one takes no more"

    # Control: without a bound, the same writes go through.
    control = directory / "control"
    assert write(control, 4 * SIZE) == (4 * SIZE, 0)
    control.unlink()
    assert alone(act) == ""


def test_the_mount_carries_every_restriction_and_is_nobody_elses(directory: Path) -> None:
    def act() -> None:
        state.use_image(directory, SIZE, FILES, OWNER)
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        (line,) = [line for line in lines if f" {directory} " in line]
        assert {"nosuid", "nodev", "noexec", "nosymfollow"} <= set(line.split()[5].split(","))

    assert alone(act) == ""
    assert str(directory) not in Path("/proc/self/mountinfo").read_text()
    assert list(directory.iterdir()) == [], "what was there is in the image now"


def test_it_is_the_same_after_a_restart_and_with_another_size(directory: Path) -> None:
    def first() -> None:
        state.use_image(directory, SIZE, FILES, OWNER)

    def again() -> None:
        state.use_image(directory, SIZE, FILES, OWNER)
        looks_moved(directory)

    def larger() -> None:
        state.use_image(directory, 2 * SIZE, FILES, OWNER)
        looks_moved(directory)
        assert SIZE < volumes.room(directory)[0] <= 2 * SIZE

    for act in (first, again, larger, first, again):
        assert alone(act) == ""


def test_what_does_not_fit_stays_where_it_is(directory: Path) -> None:
    (directory / "big").write_bytes(b"x" * 2 * SIZE)
    said = alone(lambda: state.use_image(directory, SIZE, FILES, OWNER))
    assert "state_too_large" in said
    assert (directory / "big").stat().st_size == 2 * SIZE
    assert [path.name for path in directory.parent.glob("w-tool*")] == ["w-tool"]
    (directory / "big").unlink()  # control
    assert alone(lambda: state.use_image(directory, SIZE, FILES, OWNER)) == ""


def test_a_full_disk_refuses_the_image_and_keeps_the_data(tmp_path: Path, directory: Path) -> None:
    def act() -> None:
        place = tmp_path / "disk"
        place.mkdir()
        syscalls.mount("tmpfs", str(place), "tmpfs", 0, "size=4m")
        small = place / "w-tool"
        small.mkdir()
        (small / "journal").write_text("old")
        try:
            state.use_image(small, SIZE, FILES, OWNER)
        except OSError as error:
            assert error.errno == errno.ENOSPC
        else:
            raise AssertionError("no error")
        assert [path.name for path in place.iterdir()] == ["w-tool"]
        assert (small / "journal").read_text() == "old"

    assert alone(act) == ""


def test_files_in_both_places_are_not_chosen_between(directory: Path) -> None:
    assert alone(lambda: state.use_image(directory, SIZE, FILES, OWNER)) == ""
    (directory / "restored").write_text("by hand")
    assert "state_twice" in alone(lambda: state.use_image(directory, SIZE, FILES, OWNER))
    assert (directory / "restored").read_text() == "by hand"


def test_an_image_that_is_still_mounted_is_not_mounted_again(directory: Path) -> None:
    assert alone(lambda: state.use_image(directory, SIZE, FILES, OWNER)) == ""

    def act() -> None:
        state.use_image(directory, SIZE, FILES, OWNER)
        began = time.monotonic()
        try:
            volumes.mount_image(directory.with_name("w-tool.img"), directory.parent)
        except OSError as error:
            assert error.errno == errno.EBUSY
        else:
            raise AssertionError("mounted twice")
        assert time.monotonic() - began > 1, "it waited for the other to go"

    assert alone(act) == ""


def test_the_status_tells_the_bound_and_it_holds_for_a_running_workload(house: House) -> None:
    policy = house.policies / "executor-main.toml"
    text = policy.read_text()
    assert 'state = { size = "256MiB" }' in text
    policy.write_text(text.replace('"256MiB" }', '"2MiB" }', 1))
    house.open()
    running = house.workload("executor.main")
    layers = {layer["layer"]: layer for layer in running["layers"]}
    assert (layers["devices"]["verdict"], layers["disk"]["verdict"]) == ("PASS", "PASS"), layers
    assert layers["disk"]["promised"] == f"{SIZE} bytes and {FILES} files in all"
    assert "still fit" in layers["disk"]["evidence"]

    def as_executor() -> None:
        os.setgroups([])
        os.chdir(f"/proc/{running['pid']}/root/state")
        os.setresgid(running["uid"], running["uid"], running["uid"])
        os.setresuid(running["uid"], running["uid"], running["uid"])
        written, code = write(Path("big"), 4 * SIZE)
        assert code in (errno.ENOSPC, errno.EDQUOT) and 0 < written <= SIZE, (written, code)
        Path("big").unlink()

    assert alone(as_executor) == ""


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_what_was_written_is_there_after_the_next_start(house: House, end: str) -> None:
    def loops() -> list[str]:
        """The loop devices on images of this house."""
        backing = Path("/sys/block").glob("loop*/loop/backing_file")
        return [text for path in backing if str(house.state) in (text := path.read_text())]

    house.open()
    bound = [one for one in house.ask("status")["workloads"] if "disk" in str(one["layers"])]
    assert len(loops()) >= len(bound) > 1
    seen = f"root{house.state}/w-executor-main/mark"
    Path(f"/proc/{house.pid}/{seen}").write_text("kept")
    if end == "stop":
        house.stop()
    else:
        house.kill(house.pid)
        house.process.wait(10)
    poll(lambda: not loops(), 10, "no device is left")
    assert not (house.state / "w-executor-main/mark").exists(), "outside, nothing is mounted"
    house.open()
    assert Path(f"/proc/{house.pid}/{seen}").read_text() == "kept"
    assert house.workload("executor.main")["state"] == "running"


def test_a_directory_that_cannot_be_bounded_stops_its_workload_alone(house: House) -> None:
    (house.state / "w-executor-main").mkdir(parents=True)
    house.state.chmod(0o711)
    (house.state / "w-executor-main.img").write_bytes(b"no file system")
    house.open()
    found = house.workload("executor.main")
    assert (found["state"], found["pid"]) == ("failed", None)
    assert "cannot be bounded" in found["error"]
    assert house.workload("adapter.rest")["state"] == "running", "the others run"


_MOVE = """
import os, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from sandbox import syscalls
from supervisor import state
syscalls.unshare(syscalls.CLONE_NEWNS)
syscalls.mount("", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
calls, last = 0, int(sys.argv[3])
def count(event, _):
    global calls
    if event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.posix_spawn",
                 "os.chown", "shutil.rmtree", "fcntl.ioctl", "fcntl.flock"):
        calls += 1
        if calls == last:
            os.kill(os.getpid(), 9)
sys.addaudithook(count)
state.use_image(Path(sys.argv[2]), %d, %d, (%d, %d))
""" % (SIZE, FILES, *OWNER)  # noqa: UP031 - braces stand in it


def test_killed_anywhere_the_next_start_has_everything(tmp_path: Path, directory: Path) -> None:
    root = str(Path(__file__).parents[3])
    keep = tmp_path / "keep"
    subprocess.run(["cp", "-a", directory, keep], check=True)
    number, killed = 1, 0
    while True:
        words = [sys.executable, "-c", _MOVE, root, str(directory), str(number)]
        code = subprocess.run(words, timeout=60, stderr=subprocess.DEVNULL).returncode
        assert (
            alone(lambda: (state.use_image(directory, SIZE, FILES, OWNER), looks_moved(directory)))
            == ""
        ), number
        if code != -signal.SIGKILL:
            break
        killed += 1
        for path in tmp_path.glob("w-tool*"):
            volumes.remove_tree(path) if path.is_dir() else path.unlink()
        subprocess.run(["cp", "-a", keep, directory], check=True)
        number += 4
    assert code == 0 and killed > 5
