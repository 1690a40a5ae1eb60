"""A shell in a fresh machine: `make vm-shell`. Leaving the shell ends the machine.

    python -m tests.vm.shell [SNAPSHOT]      else $SNAPSHOT, else plain

The shell is on the guest's serial console, so that job control, Ctrl-C and full-screen programs
work; the agent starts it there and says when it has ended.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager

from tests.vm import places
from tests.vm.channel import Channel, ChannelLost
from tests.vm.failures import RigFailure
from tests.vm.image import chosen_suite, image
from tests.vm.machine import Machine
from tests.vm.snapshot import Snapshots

DAY = 86400.0
KEYBOARD, SCREEN = 0, 1


@contextmanager
def every_key_passed_on() -> Iterator[None]:
    """The terminal in raw mode, if it is one."""
    if not os.isatty(KEYBOARD):
        yield
        return
    before = termios.tcgetattr(KEYBOARD)
    try:
        tty.setraw(KEYBOARD)
        yield
    finally:
        termios.tcsetattr(KEYBOARD, termios.TCSADRAIN, before)


def start_shell(machine: Machine) -> None:
    """Let the agent start a login shell on the serial console, which it waits for."""
    machine.run("dmesg -n 1")
    size = os.get_terminal_size(KEYBOARD) if os.isatty(KEYBOARD) else (80, 24)
    machine.run(f"stty -F /dev/ttyS0 cols {size[0]} rows {size[1]} sane")
    terminal = os.environ.get("TERM", "vt100")
    streams = [f"--property=Standard{name}=tty" for name in ("Input", "Output", "Error")]
    shell = [
        *("systemd-run", "--quiet", "--collect", "--wait", "--property=TTYPath=/dev/ttyS0"),
        *(*streams, "--working-directory=/root", f"--setenv=TERM={terminal}"),
        *("--setenv=HOME=/root", "--setenv=LANG=C.UTF-8", "/bin/bash", "--login"),
    ]
    machine.channel.ask(shell, b"", DAY, 0)


def relay(machine: Machine, console: socket.socket) -> None:
    """Carry keys and screen between the terminal and the console until the shell has ended."""
    inputs: list[int | socket.socket | Channel] = [KEYBOARD, console, machine.channel]
    while True:
        ready = select.select(inputs, [], [])[0]
        if console in ready:
            if not (data := console.recv(1 << 16)):
                return
            os.write(SCREEN, data)
        elif machine.channel in ready:
            machine.channel.answer(DAY)
            return
        elif KEYBOARD in ready:
            keys = os.read(KEYBOARD, 1 << 12)
            if not keys:  # end of a piped input: the shell reads Ctrl-D
                inputs.remove(KEYBOARD)
            console.sendall(keys or b"\x04")


def main(name: str) -> None:
    """Restore the snapshot and be its console."""
    snapshots = Snapshots(image(chosen_suite()))
    with places.working_folder(places.cache() / "run") as folder:
        here, there = socket.socketpair()
        machine = snapshots.restore(name, folder, there.fileno())
        there.close()
        try:
            print(f"vm: {name}, Debian {snapshots.image.suite}; exit ends the machine", flush=True)
            start_shell(machine)
            with every_key_passed_on():
                relay(machine, here)
        finally:
            machine.stop()
    print("vm: the machine is gone")


if __name__ == "__main__":
    try:
        main(sys.argv[1] if len(sys.argv) > 1 else os.environ.get("SNAPSHOT", "plain"))
    except (RigFailure, ChannelLost) as failure:
        sys.exit(f"vm: {failure}")
