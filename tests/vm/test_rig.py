"""The rig itself: what a machine's commands, files, restarts and snapshots promise."""

from __future__ import annotations

import hashlib
import os
import pty
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.vm.failures import CommandFailed, CommandTimedOut, MachineFailed
from tests.vm.machine import Machine
from tests.vm.snapshot import Snapshots

pytestmark = pytest.mark.snapshot("plain")
ROOT = Path(__file__).resolve().parents[2]


def test_a_command_ends_by_its_exit_status(vm: Machine) -> None:
    done = vm.run("echo out; echo err >&2; exit 7", check=False)
    assert (done.stdout, done.stderr, done.exit, done.signal) == ("out\n", "err\n", 7, None)
    with pytest.raises(CommandFailed, match=r"(?s)status 7.*\| err") as failed:
        vm.run("echo err >&2; exit 7")
    assert failed.value.done.exit == 7
    assert vm.run(["no-such-program"], check=False).exit == 127


def test_a_command_ends_by_a_signal(vm: Machine) -> None:
    done = vm.run("kill -SEGV $$", check=False)
    assert (done.exit, done.signal) == (None, 11)
    with pytest.raises(CommandFailed, match="SIGSEGV"):
        vm.run("kill -SEGV $$")


def test_a_list_reaches_the_program_word_for_word(vm: Machine) -> None:
    words = ["a b", "$HOME", "*", "'", "\\", "ü"]
    assert vm.run(["printf", "%s\n", *words]).stdout == "".join(f"{word}\n" for word in words)


def test_a_command_is_killed_at_its_time_limit_and_the_machine_goes_on(vm: Machine) -> None:
    began = time.monotonic()
    with pytest.raises(CommandTimedOut, match=r"(?s)not done within 2 s.*\| started") as timed_out:
        vm.run("echo started; sleep 1000; echo never", timeout=2)
    assert time.monotonic() - began < 10
    assert timed_out.value.done.stdout == "started\n"
    assert vm.run("pgrep -x sleep", check=False).exit == 1


def test_what_a_command_leaves_in_the_background_does_not_hold_it(vm: Machine) -> None:
    done = vm.run("sleep 1000 & echo $!", timeout=30)
    assert done.seconds < 10
    assert vm.run(f"kill {done.stdout.strip()}").exit == 0


def test_standard_input_arrives_whole_and_ends(vm: Machine) -> None:
    text = os.urandom(3 << 20)
    done = vm.run("sha256sum", stdin=text)
    assert done.stdout.split()[0] == hashlib.sha256(text).hexdigest()
    assert vm.run("cat", stdin="grüß").stdout == "grüß"
    # A program that does not want it is no failure.
    assert vm.run("exec true", stdin=text).exit == 0


def test_large_outputs_on_both_streams_arrive_whole(vm: Machine) -> None:
    done = vm.run("head -c 8M /dev/zero | tr '\\0' a; head -c 8M /dev/zero | tr '\\0' b >&2")
    assert (done.stdout, done.stderr) == ("a" * (8 << 20), "b" * (8 << 20))


def test_endless_output_is_an_error_and_not_the_end_of_the_machine(vm: Machine) -> None:
    with pytest.raises(CommandFailed, match="more than the channel takes"):
        vm.run("cat /dev/zero", timeout=120)
    assert vm.run("echo here").stdout == "here\n"


def test_binary_files_go_in_and_out_unchanged(vm: Machine, tmp_path: Path) -> None:
    content = bytes(range(256)) * 4096 + os.urandom(1 << 20)
    vm.put("/root/new folder/a", content, mode=0o750)
    assert vm.run(["stat", "-c", "%a %U", "/root/new folder/a"]).stdout == "750 root\n"
    assert vm.get("/root/new folder/a") == content
    (tmp_path / "b").write_bytes(b"\n\0\n")
    vm.put("/b", tmp_path / "b")
    assert vm.get("/b") == b"\n\0\n"
    with pytest.raises(CommandFailed, match="No such file"):
        vm.get("/nowhere")


def test_wait_repeats_until_it_is_so(vm: Machine) -> None:
    vm.run("(sleep 2; touch done) & :")
    vm.wait("test -e done", seconds=30, every=0.1)
    with pytest.raises(MachineFailed, match="not so within 2 s"):
        vm.wait("test -e never", seconds=2, every=0.1)


def test_a_command_is_not_exempt_from_the_oom_killer_as_the_agent_is(vm: Machine) -> None:
    assert vm.run("cat /proc/self/oom_score_adj").stdout == "0\n"
    assert vm.run("cat /proc/$(pgrep -f rig-agent | head -n 1)/oom_score_adj").stdout == "-1000\n"


def test_the_guest_is_the_machine_we_promise(vm: Machine) -> None:
    assert vm.run("stat -fc %T /sys/fs/cgroup").stdout == "cgroup2fs\n"
    controllers = vm.run("cat /sys/fs/cgroup/cgroup.controllers").stdout.split()
    assert {"cpu", "memory", "pids"} <= set(controllers)
    vm.run("test -d /proc/fs/jbd2/vda-8")  # the root file system has a journal
    assert len(vm.run("tpm2_getrandom --hex 8").stdout) == 16
    assert vm.run("systemctl is-system-running").stdout == "running\n"


def test_the_guest_reaches_nothing_outside(vm: Machine) -> None:
    """10.0.2.2 would be this machine's loopback, where somebody does listen."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        vm.run(f"socat -u TCP-LISTEN:{port},fork /dev/null & :")
        vm.wait(f"socat -T3 - TCP:127.0.0.1:{port} </dev/null", seconds=20)
        for there in (f"10.0.2.2:{port}", "1.1.1.1:53", "169.254.169.254:80"):
            done = vm.run(f"socat -T3 - TCP:{there},connect-timeout=3 </dev/null", check=False)
            assert done.exit != 0, there
        server.settimeout(0)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_every_restore_is_fresh_and_different(
    snapshots: Snapshots, folders: Callable[[], Path], machines: list[Machine]
) -> None:
    snapshots.path("plain")
    seen = set()
    for _ in range(3):
        machine = snapshots.restore("plain", folders())
        machines.append(machine)
        assert (
            machine.run("test ! -e /root/made && touch /root/made && sync; echo $?").stdout == "0\n"
        )
        seen.add(machine.run("head -c 32 /dev/urandom | sha256sum").stdout)
        assert abs(float(machine.run("date +%s.%N").stdout) - time.time()) < 60
        machine.stop()
    assert len(seen) == 3, "restored machines draw the same random numbers"


def test_a_reboot_is_a_new_boot_of_the_same_disk_and_tpm(vm: Machine) -> None:
    boot = vm.run("cat /proc/sys/kernel/random/boot_id").stdout
    vm.run("echo kept >kept; touch /run/lost")
    vm.run(
        "tpm2_nvdefine -Q 0x1500020 -C o -s 4 && printf abcd | tpm2_nvwrite -Q 0x1500020 -C o -i -"
    )
    vm.run("tpm2_pcrextend 16:sha256=" + "1" * 64)
    extended = vm.run("tpm2_pcrread sha256:16").stdout
    vm.reboot()
    assert vm.run("cat /proc/sys/kernel/random/boot_id").stdout != boot
    assert vm.run("cat kept; test ! -e /run/lost").stdout == "kept\n"
    assert vm.run("tpm2_nvread -C o 0x1500020").stdout == "abcd"
    assert vm.run("tpm2_pcrread sha256:16").stdout != extended


def test_a_power_cut_keeps_what_was_synced_and_loses_what_was_not(vm: Machine) -> None:
    vm.run(
        "tpm2_nvdefine -Q 0x1500020 -C o -s 4 && printf abcd | tpm2_nvwrite -Q 0x1500020 -C o -i -"
    )
    vm.run("echo kept >kept && sync")
    vm.run("echo lost >lost")
    vm.power_cut()
    assert vm.processes == {}
    vm.boot()
    assert vm.get("/root/kept") == b"kept\n"
    assert vm.run("test -s lost", check=False).exit == 1
    assert vm.run("tpm2_nvread -C o 0x1500020").stdout == "abcd"
    assert "recovery complete" in vm.run("dmesg | grep EXT4-fs").stdout


def test_a_person_gets_a_shell_whose_exit_ends_the_machine() -> None:
    person, terminal = pty.openpty()
    shell = subprocess.Popen(
        [sys.executable, "-m", "tests.vm.shell", "plain"],
        cwd=ROOT, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
    )  # fmt: skip
    os.close(terminal)
    screen = b""

    def until(text: bytes, seconds: float = 60) -> None:
        nonlocal screen
        deadline = time.monotonic() + seconds
        while text not in screen:
            left = deadline - time.monotonic()
            assert left > 0, screen.decode(errors="replace")
            if select.select([person], [], [], left)[0]:
                screen += os.read(person, 4096)
        screen = screen.split(text, 1)[1]

    try:
        until(b"root@rig:~# ")
        os.write(person, b"echo $((6 * 7)); sleep 500\r")
        until(b"42\r\n")
        time.sleep(1)
        os.write(person, b"\x03")
        until(b"root@rig:~# ")
        os.write(person, b"echo $?\r")
        until(b"130\r\n")
        os.write(person, b"exit\r")
        until(b"the machine is gone")
        assert shell.wait(10) == 0
    finally:
        shell.kill()
        shell.wait()
        os.close(person)
