"""What can go wrong with a machine, as sentences that say what was wanted and what was seen."""

from __future__ import annotations

from dataclasses import dataclass
from signal import Signals

TAIL = 25


def tail(text: str, lines: int = TAIL) -> str:
    """The last lines of a text, indented; what a report has room for."""
    last = text.rstrip().splitlines()[-lines:]
    return "\n".join(f"    | {line[:200]}" for line in last) or "    | (nothing)"


@dataclass(frozen=True)
class Done:
    """A command that ended in the guest: by its `exit` status or by a `signal`, never both."""

    stdout: str
    stderr: str
    exit: int | None
    signal: int | None
    seconds: float


class RigFailure(Exception):
    """The rig itself cannot go on: something is missing, full, dead or too slow."""


class MachineFailed(RigFailure):
    """QEMU, the TPM or the guest died, hangs, or did not come up; ends with the console."""

    def __init__(self, what: str, console: str, log: str = "") -> None:
        parts = [what]
        if log.strip():
            parts.append(f"  its log ends:\n{tail(log, 10)}")
        parts.append(f"  the console ends:\n{tail(console)}")
        super().__init__("\n".join(parts))


class CommandFailed(Exception):
    """A command in the guest ended otherwise than wanted; `done` has all of its output."""

    def __init__(self, command: str | list[str], done: Done, how: str | None = None) -> None:
        self.command = command
        self.done = done
        if how is None and done.signal is not None:
            how = f"was ended by signal {Signals(done.signal).name}"
        super().__init__(
            f"in the guest: {command!r} {how or f'exited with status {done.exit}'}"
            f" after {done.seconds:.1f} s\n"
            f"  stdout:\n{tail(done.stdout)}\n  stderr:\n{tail(done.stderr)}"
        )


class CommandTimedOut(CommandFailed):
    """The command ran longer than its time limit; it was killed and the machine goes on."""
