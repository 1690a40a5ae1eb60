"""What the rig does when something is missing, dies, hangs, or is half there: it says so in time,
leaves nothing running, and the next run starts clean."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.vm import channel, machine, places
from tests.vm.failures import MachineFailed, RigFailure
from tests.vm.machine import Machine, Start
from tests.vm.programs import PACKAGES
from tests.vm.snapshot import Snapshots

pytestmark = pytest.mark.snapshot("plain")
ROOT = Path(__file__).resolve().parents[2]


def gone(pid: int, seconds: float = 5) -> bool:
    """Whether a process ends within the time."""
    deadline = time.monotonic() + seconds
    while Path(f"/proc/{pid}").exists():
        if "State:\tZ" in Path(f"/proc/{pid}/status").read_text():
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def mentioning(text: str) -> list[str]:
    """Command lines of running processes that contain the text."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in line and str(os.getpid()) != path.parent.name:
            found.append(line)
    return found


def script(text: str) -> list[str]:
    """A Python program that has a Snapshots, `take`, to restore machines from."""
    begin = (
        "import os, time\nfrom pathlib import Path\nfrom tests.vm import image, places\n"
        "from tests.vm.snapshot import Snapshots\nfrom tests.vm.failures import MachineFailed\n"
        "take = Snapshots(image.image(image.chosen_suite()))\n"
    )
    return [sys.executable, "-c", begin + text]


@pytest.mark.parametrize("program", ["qemu-system-x86_64", "swtpm"])
def test_a_missing_program_is_named_with_its_package(
    program: str,
    snapshots: Snapshots,
    folders: Callable[[], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    snapshots.path("plain")
    for place in os.environ["PATH"].split(":"):
        for file in Path(place).glob("*"):
            if file.name != program and not (tmp_path / file.name).exists():
                (tmp_path / file.name).symlink_to(file)
    folder = folders()
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        with pytest.raises(RigFailure, match=f"{program} is not installed.*{PACKAGES[program]}"):
            snapshots.restore("plain", folder)
    assert mentioning(str(folder)) == []
    again = snapshots.restore("plain", folders())
    assert again.run("echo here").stdout == "here\n"
    again.stop()


@pytest.mark.parametrize("program", ["qemu", "swtpm"])
def test_a_killed_program_is_noticed_in_the_middle_of_a_command(vm: Machine, program: str) -> None:
    threading.Timer(1, os.kill, (vm.processes[program], signal.SIGKILL)).start()
    began = time.monotonic()
    with pytest.raises(MachineFailed, match=r"(?is)ended \(status -9\).*the console ends"):
        vm.run("sleep 60")
    assert time.monotonic() - began < 10


def test_a_guest_that_hangs_is_given_up(vm: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "SLACK", 3.0)
    os.kill(vm.processes["qemu"], signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(MachineFailed, match=r"(?s)hangs: no answer to 'true'.*the console ends"):
        vm.run("true", timeout=1)
    assert time.monotonic() - began < 10


def test_a_kernel_panic_is_told_with_the_console(vm: Machine) -> None:
    began = time.monotonic()
    with pytest.raises(MachineFailed, match=r"(?s)kernel gave up.*sysrq triggered crash"):
        vm.run("echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger; sleep 60")
    assert time.monotonic() - began < 20


def test_an_agent_that_died_is_told_and_serves_again(vm: Machine) -> None:
    with pytest.raises(MachineFailed, match="agent in the guest started anew"):
        vm.run("pkill -KILL -f sbin/rig-agent; sleep 60")
    assert vm.run("echo here").stdout == "here\n"


def test_a_boot_that_takes_too_long_is_given_up(cold: Callable[..., Machine]) -> None:
    slow = cold("plain", boot=False)
    with pytest.raises(MachineFailed, match="did not come up within 1 s"):
        slow.boot(seconds=1)
    slow.stop()
    slow.boot()


def test_what_is_no_kernel_ends_qemu_with_its_reason(
    cold: Callable[..., Machine], tmp_path: Path
) -> None:
    (tmp_path / "kernel").write_text("this is no kernel\n" * 1000)
    wrong = cold("plain", boot=False)
    wrong.start = Start(tmp_path / "kernel")
    with pytest.raises(MachineFailed, match=r"(?s)QEMU ended \(status 1\).*its log ends.*kernel"):
        wrong.boot(seconds=30)


def test_nothing_is_left_of_a_run_that_was_killed(snapshots: Snapshots) -> None:
    snapshots.path("plain")
    text = (
        "with places.working_folder(places.cache() / 'run') as folder:\n"
        "    made = take.restore('plain', folder)\n"
        "    print(folder, *made.processes.values(), flush=True)\n    time.sleep(600)\n"
    )
    run = subprocess.Popen(script(text), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert run.stdout
    folder, *pids = run.stdout.readline().split()
    assert [gone(int(pid), 0) for pid in pids] == [False, False]
    run.kill()
    run.wait()
    assert all(gone(int(pid)) for pid in pids)
    assert Path(folder).exists()
    with places.working_folder(places.cache() / "run"):
        assert not Path(folder).exists()


def in_small_memory(folder: Path, mebibytes: int, command: list[str]) -> list[str]:
    """The command in a mount namespace of its own, where `folder` is that small."""
    mount = f'mount -t tmpfs -o size={mebibytes}m none "$0" && exec "$@"'
    return ["unshare", "--mount", "/bin/sh", "-euc", mount, str(folder), *command]


def test_a_cache_without_room_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.vm.image"]
    done = subprocess.run(
        in_small_memory(tmp_path, 64, command),
        cwd=ROOT, env=os.environ | {"ANCHORHOLD_CACHE": str(tmp_path)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert f"{tmp_path}/run/" in done.stderr
    assert "0.1 GiB free; a guest image needs 3 GiB" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_disk_that_fills_in_the_middle_is_an_error_and_no_hang(
    snapshots: Snapshots, tmp_path: Path
) -> None:
    snapshots.path("plain")
    text = (
        f"made = take.restore('plain', Path({str(tmp_path)!r}))\n"
        "print(made.run('echo here').stdout, flush=True)\n"
        "try:\n    made.run('dd if=/dev/urandom of=/big bs=1M count=300 conv=fsync', timeout=100)\n"
        "except MachineFailed as failure:\n    print(failure)\nfinally:\n    made.stop()\n"
    )
    began = time.monotonic()
    done = subprocess.run(
        in_small_memory(tmp_path, 40, script(text)),
        cwd=ROOT, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.stdout.startswith("here\n"), done.stderr
    assert "the machine's disk failed (No space left on device)" in done.stdout
    assert time.monotonic() - began < 90


def test_a_build_that_was_killed_leaves_no_image_and_no_process(tmp_path: Path) -> None:
    build = subprocess.Popen(
        [sys.executable, "-m", "tests.vm.image"],
        cwd=ROOT, env=os.environ | {"ANCHORHOLD_CACHE": str(tmp_path)},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    mark = f"{tmp_path}/debs"  # mmdebstrap's hooks name it
    deadline = time.monotonic() + 60
    while not any("mmdebstrap" in line for line in mentioning(mark)):
        assert time.monotonic() < deadline and build.poll() is None
        time.sleep(0.1)
    time.sleep(3)
    build.kill()
    build.wait()
    deadline = time.monotonic() + 5
    while mentioning(mark) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert mentioning(mark) == []
    assert [path for path in (tmp_path / "images").iterdir() if path.is_dir()] == []
    assert [path for path in (tmp_path / "run").iterdir() if path.is_dir()] != []
    with places.working_folder(tmp_path / "run") as folder:
        assert [path for path in (tmp_path / "run").iterdir() if path.is_dir()] == [folder]


def test_console_and_logs_of_a_failed_test_are_kept_and_named(tmp_path: Path) -> None:
    (tmp_path / "test_planted.py").write_text(
        "import pytest\n@pytest.mark.snapshot('plain')\n"
        "def test_planted(vm):\n    vm.run('echo from the guest >/dev/console; false')\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "tests.vm.conftest", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    (line,) = (line for line in done.stdout.splitlines() if "console and logs: " in line)
    kept = Path(line.partition(": ")[2]) / "machine-1"
    assert "from the guest" in (kept / "console.log").read_text()
    assert "systemd" in (kept / "journal.log").read_text()
    assert (kept / "qemu.log").exists()


def test_a_request_that_is_too_slow_is_no_answer_to_the_next(vm: Machine) -> None:
    vm.channel.ask(["sh", "-c", "sleep 2; echo old"], b"", 30, 0)
    with pytest.raises(channel.TooSlow):
        vm.channel.answer(0.5)
    assert vm.run("echo new").stdout == "new\n"
