"""One virtual machine: QEMU and the TPM beside it, and what a test does with them.

Three socket pairs lead into QEMU (commands to the guest, QEMU's control, the TPM), so there is no
path to wait for, and each side notices at once when the other dies.
"""

from __future__ import annotations

import re
import shlex
import shutil
import socket
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

from tests.vm.channel import Channel, ChannelLost, TooSlow
from tests.vm.failures import (
    CommandFailed,
    CommandTimedOut,
    Done,
    MachineFailed,
    RigFailure,
)
from tests.vm.programs import need, tied
from tests.vm.qmp import Qmp

Firmware = Literal["ovmf", "secure-boot"]

# secretmem: Linux 6.1 has memfd_secret off by default.
COMMAND_LINE = "root=/dev/vda rw console=ttyS0 quiet net.ifnames=0 secretmem.enable=1"
MEMORY_MIB = 2048
# What the guest may take longer than a command's own limit before the machine counts as hung. The
# guest's clock and ours are the same, so this is for a busy host only.
SLACK = 30.0

OVMF = Path("/usr/share/OVMF")
FIRMWARE: dict[Firmware, tuple[Path, Path]] = {
    "ovmf": (OVMF / "OVMF_CODE_4M.fd", OVMF / "OVMF_VARS_4M.fd"),
    # Enrolled: the "snakeoil" key that Debian's ovmf package ships for tests.
    "secure-boot": (OVMF / "OVMF_CODE_4M.secboot.fd", OVMF / "OVMF_VARS_4M.snakeoil.fd"),
}


@dataclass(frozen=True)
class Start:
    """What the machine boots: a kernel with initrd and command line, or (firmware) a UKI alone."""

    kernel: Path
    initrd: Path | None = None
    command_line: str | None = None
    firmware: Firmware | None = None


class Machine:
    """A machine whose disk, TPM state and logs are in `folder`, which the caller removes."""

    def __init__(self, folder: Path, disk: Path, start: Start, accelerator: str) -> None:
        self.folder = folder
        self.disk = disk
        self.start = start
        self.accelerator = accelerator
        self._qemu: subprocess.Popen[bytes] | None = None
        self._swtpm: subprocess.Popen[bytes] | None = None
        self._lines: list[socket.socket] = []
        self._seen = 0
        (folder / "tpm").mkdir(exist_ok=True)

    # --- For tests ---------------------------------------------------------------------------

    def run(
        self,
        command: str | list[str],
        *,
        timeout: float = 60,
        stdin: bytes | str = b"",
        check: bool = True,
    ) -> Done:
        """Run a command in the guest as root: a text by bash, a list as it is.

        Raises CommandFailed unless it exits with 0 (with `check`), CommandTimedOut when `timeout`
        seconds are over, and MachineFailed when the machine does not even say that.
        """
        answer = self._ask(command, stdin, timeout)
        done = Done(
            answer["stdout"].decode(errors="replace"),
            answer["stderr"].decode(errors="replace"),
            answer["exit"],
            answer["signal"],
            answer["seconds"],
        )
        if answer["cut"] == "timeout":
            raise CommandTimedOut(command, done, f"was not done within {timeout:g} s")
        if answer["cut"]:
            raise CommandFailed(command, done, "wrote more than the channel takes")
        if check and done.exit != 0:
            raise CommandFailed(command, done)
        return done

    def put(self, path: str, content: bytes | Path, mode: int = 0o644) -> None:
        """Write a file into the guest, its folders included; a Path is a file of this machine."""
        data = content.read_bytes() if isinstance(content, Path) else content
        self.run(["install", "-D", "-m", f"{mode:o}", "/dev/stdin", path], stdin=data, timeout=120)

    def get(self, path: str) -> bytes:
        """A file of the guest."""
        command = ["cat", "--", path]
        answer = self._ask(command, b"", 120)
        if answer["exit"] != 0:
            error = answer["stderr"].decode(errors="replace")
            raise CommandFailed(command, Done("", error, answer["exit"], answer["signal"], 0))
        content: bytes = answer["stdout"]
        return content

    def wait(self, command: str | list[str], seconds: float, every: float = 0.5) -> Done:
        """Repeat a command until it exits with 0. Raises MachineFailed with its last outputs."""
        deadline = time.monotonic() + seconds
        while True:
            left = max(1.0, deadline - time.monotonic())
            try:
                return self.run(command, timeout=left)
            except CommandFailed as failure:
                if time.monotonic() + every > deadline:
                    what = f"not so within {seconds:g} s: {failure}"
                    raise MachineFailed(what, self.console()) from None
            time.sleep(every)

    def reboot(self, seconds: float = 300) -> None:
        """Reboot in order; returns when the agent answers from the new boot."""
        # The guest may be gone before it has said that the command ended.
        with suppress(ChannelLost):
            self._channel.ask(["systemctl", "reboot"], b"", 60, 0)
        self._come_up(seconds)

    def power_off(self, seconds: float = 120) -> None:
        """Shut down in order: the guest writes everything and tells the TPM."""
        with suppress(ChannelLost):
            self._channel.ask(["systemctl", "poweroff"], b"", 60, 0)
        assert self._qemu
        try:
            self._qemu.wait(seconds)
        except subprocess.TimeoutExpired:
            self._fail(f"the guest did not power off within {seconds:g} s")
        self.stop()

    def power_cut(self) -> None:
        """Pull the plug. `boot` starts again with the same disk and the same TPM.

        What the guest had not written to its disk is lost: its page cache, its journal commit
        under way. What it had written but not flushed survives, since that is in this machine's
        page cache and not in QEMU. So this proves that our programs write and sync in the right
        order with respect to their own crash and the kernel's; it does not prove what a drive
        that drops its own cache would do to a file system that forgot a flush.
        """
        self.stop()

    def boot(self, seconds: float = 300, **changes: Any) -> None:
        """Boot, after a power cut or for the first time; `changes` replace fields of `start`."""
        self.start = replace(self.start, **changes)
        self._launch()
        self._come_up(seconds)

    def console(self) -> str:
        """Everything the guest has written to its serial console, over all boots."""
        path = self.folder / "console.log"
        return path.read_text(errors="replace").replace("\r", "") if path.exists() else ""

    # --- Its life ----------------------------------------------------------------------------

    def resume(self, state: Path, serial: int | None = None, seconds: float = 60) -> None:
        """Come out of a snapshot's saved state; `serial` is a socket for the console."""
        self._launch(["-incoming", f"exec:cat {shlex.quote(str(state))}"], serial)
        deadline = time.monotonic() + seconds
        while self.qmp("query-status")["status"] == "inmigrate":
            self._watch()
            if time.monotonic() > deadline:
                self._fail(f"the saved state was not loaded within {seconds:g} s")
            time.sleep(0.01)
        self.qmp("cont")
        try:
            self._channel.wake(max(1.0, deadline - time.monotonic()))
        except (TooSlow, ChannelLost):
            self._fail(f"the agent did not answer within {seconds:g} s of the restore")

    def save(self, state: Path, seconds: float = 120) -> None:
        """Stop the guest and write its memory and its TPM to a file; the machine is over then."""
        self.run("sync", timeout=seconds)
        self.qmp("stop")
        self.qmp("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
        self.qmp("migrate", uri=f"exec:cat > {shlex.quote(str(state))}")
        deadline = time.monotonic() + seconds
        while (status := self.qmp("query-migrate")["status"]) != "completed":
            if status == "failed" or time.monotonic() > deadline:
                self._fail(f"the state was not saved within {seconds:g} s ({status})")
            time.sleep(0.02)
        self.qmp("quit")
        assert self._qemu
        self._qemu.wait(20)
        self.stop()

    def stop(self) -> None:
        """End QEMU and the TPM at once. Harmless when they have ended."""
        for process in (self._qemu, self._swtpm):
            if process is not None:
                process.kill()
                process.wait()
        for line in self._lines:
            line.close()
        self._qemu = self._swtpm = None
        self._lines = []

    @property
    def processes(self) -> dict[str, int]:
        """The process ids of what runs for this machine."""
        both = {"qemu": self._qemu, "swtpm": self._swtpm}
        return {name: process.pid for name, process in both.items() if process is not None}

    def qmp(self, command: str, **arguments: Any) -> Any:
        """One command to QEMU itself. Raises MachineFailed."""
        try:
            return self._qmp.execute(command, **arguments)
        except (RigFailure, OSError) as error:
            self._watch()
            self._fail(str(error))

    @property
    def channel(self) -> Channel:
        """The line to the agent, for who does without `run`."""
        return self._channel

    # --- Inside ------------------------------------------------------------------------------

    def _ask(self, command: str | list[str], stdin: bytes | str, timeout: float) -> dict[str, Any]:
        argv = ["/bin/bash", "-c", command] if isinstance(command, str) else command
        data = stdin.encode() if isinstance(stdin, str) else stdin
        if self._qemu is None:
            raise RigFailure("the machine is off: boot() it first")
        try:
            self._channel.ask(argv, data, timeout, SLACK)
            return self._channel.answer(timeout + SLACK)
        except TooSlow:
            self._fail(
                f"the guest hangs: no answer to {command!r} {SLACK:g} s after its time limit"
            )
        except ChannelLost as lost:
            self._fail(f"{lost} while it ran {command!r}")

    def _come_up(self, seconds: float) -> None:
        try:
            self._channel.await_boot(seconds)
        except TooSlow:
            self._fail(f"the guest did not come up within {seconds:g} s")
        except ChannelLost as lost:
            self._fail(f"{lost} before the guest was up")

    def _watch(self) -> None:
        """Raise if the machine cannot answer any more, with the reason."""
        assert self._qemu and self._swtpm
        if (status := self._qemu.poll()) is not None:
            self._fail(f"QEMU ended (status {status})", "qemu.log")
        if (status := self._swtpm.poll()) is not None:
            self._fail(f"swtpm ended (status {status})", "swtpm.log")
        self._qmp.poll()
        for event in self._qmp.events:
            if event["event"] == "BLOCK_IO_ERROR":
                self._fail(f"the machine's disk failed ({event['data']['reason']}): {self.folder}")
        with suppress(FileNotFoundError), (self.folder / "console.log").open("rb") as file:
            file.seek(self._seen)
            if found := re.search(rb"Kernel panic - not syncing[^\r\n]*", file.read()):
                self._fail(f"the guest's kernel gave up: {found[0].decode(errors='replace')}")

    def _fail(self, what: str, log: str | None = None) -> NoReturn:
        path = self.folder / (log or "qemu.log")
        text = path.read_text(errors="replace") if path.exists() else ""
        raise MachineFailed(what, self.console(), text)

    def _launch(self, extra: list[str] | None = None, serial: int | None = None) -> None:
        self.stop()
        console = self.folder / "console.log"
        self._seen = console.stat().st_size if console.exists() else 0
        pairs = {name: socket.socketpair() for name in ("agent", "qmp", "tpm")}
        far = {name: pair[1].fileno() for name, pair in pairs.items()}
        try:
            # swtpm and QEMU are the two ends of the TPM's line; we keep neither.
            tpm = pairs["tpm"][0].fileno()
            self._swtpm = self._spawn(
                [
                    *("swtpm", "socket", "--tpm2", "--terminate"),
                    *("--tpmstate", f"dir={self.folder}/tpm"),
                    *("--ctrl", f"type=unixio,clientfd={tpm}"),
                ],
                (tpm,),
                "swtpm.log",
            )
            fds = (*far.values(), *([serial] if serial is not None else []))
            self._qemu = self._spawn(self._arguments(far, serial) + (extra or []), fds, "qemu.log")
        finally:
            for _, end in pairs.values():
                end.close()
            pairs["tpm"][0].close()
            self._lines = [pairs["agent"][0], pairs["qmp"][0]]
        self._channel = Channel(pairs["agent"][0], self._watch)
        self._qmp = Qmp(pairs["qmp"][0])

    def _spawn(self, command: list[str], fds: tuple[int, ...], log: str) -> subprocess.Popen[bytes]:
        with (self.folder / log).open("ab") as output:
            return subprocess.Popen(
                tied(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=fds,
                # Not in our process group: Ctrl-C at a terminal is for us to handle.
                start_new_session=True,
            )

    def _arguments(self, fds: dict[str, int], serial: int | None) -> list[str]:
        """QEMU's command line."""
        start, kvm = self.start, self.accelerator == "kvm"
        log = f"{self.folder}/console.log"
        console = f"file,id=serial,path={log},append=on"
        if serial is not None:
            console = f"socket,id=serial,fd={serial},logfile={log},logappend=on"
        secure = start.firmware == "secure-boot"
        words = [
            *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none"),
            *("-machine", "q35,smm=on" if secure else "q35"),
            *("-accel", "kvm" if kvm else "tcg,thread=multi,tb-size=512"),
            *("-cpu", "host" if kvm else "max", "-smp", "2", "-m", str(MEMORY_MIB)),
            *("-chardev", console, "-serial", "chardev:serial"),
            *("-chardev", f"socket,id=qmp,fd={fds['qmp']}", "-mon", "chardev=qmp,mode=control"),
            *("-device", "virtio-rng-pci", "-device", "virtio-serial-pci"),
            *("-chardev", f"socket,id=agent,fd={fds['agent']}"),
            *("-device", "virtserialport,chardev=agent,name=rig.agent"),
            # A full disk of ours shall show as an error, not as a guest that waits for ever.
            *("-drive", f"file={self.disk},if=none,id=root,format=qcow2,cache=writeback"),
            *("-device", "virtio-blk-pci,drive=root,serial=root"),
            # restrict: nothing goes out, not even to this machine.
            *(
                "-netdev",
                "user,id=net,restrict=on",
                "-device",
                "virtio-net-pci,netdev=net,romfile=",
            ),
            *(
                "-chardev",
                f"socket,id=tpm,fd={fds['tpm']}",
                "-tpmdev",
                "emulator,id=tpm0,chardev=tpm",
            ),
            *("-device", "tpm-crb,tpmdev=tpm0"),
            *("-kernel", str(start.kernel)),
        ]
        if start.initrd:
            words += ["-initrd", str(start.initrd)]
        if start.command_line:
            words += ["-append", start.command_line]
        if start.firmware:
            code, variables = FIRMWARE[start.firmware]
            own = self.folder / "vars.fd"
            if not own.exists():
                shutil.copy(variables, own)
            words += ["-drive", f"if=pflash,format=raw,readonly=on,file={code}"]
            words += ["-drive", f"if=pflash,format=raw,file={own}"]
        if secure:
            words += ["-global", "driver=cfi.pflash01,property=secure,value=on"]
        return words


def overlay(base: Path, form: str, target: Path) -> Path:
    """A new empty disk over `base`, which must never change."""
    subprocess.run(
        [need("qemu-img"), "create", "-q", "-f", "qcow2", "-b", str(base), "-F", form, str(target)],
        check=True,
        capture_output=True,
    )
    return target
