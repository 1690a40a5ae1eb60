"""The workloads' output on its way to their log files: read, masked, stamped, bounded."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime

from .guard import KeyGuard
from .redaction.hold import HoldBack
from .redaction.scan import ScanFailed, Scanner
from .redaction.stream import Channel
from .redaction.text import Masker

LINE_MAX = 16 * 1024
RATE, BURST = 256 * 1024, 1024 * 1024  # bytes per second and at once; past it lines are dropped
_LINE_COST = 32  # bytes charged for a line besides its own: its stamp, so that empty ones count too
_READ = 64 * 1024
_CONTEXT = 64
_TURN_LINES, _TURN_BYTES = 64, 16 * 1024  # then everybody else gets a turn
_REPORT = 10.0  # seconds between two notes about lost lines

# Called with (workload, what happened, how many lines); writes an audit record.
Report = Callable[[str, str, int], None]


class LogPump:
    """Moves one workload's output. Every line is masked; never more than 80 KiB is in memory.

    A flood or a full disk costs lines, which are counted and reported; the pipe is always read,
    so the workload never waits, and each turn is short, so the others do not either.
    """

    def __init__(
        self,
        workload: str,
        pipe: int,
        log: int,
        scanner: Scanner,
        guard: KeyGuard,
        hold: HoldBack,
        report: Report,
    ) -> None:
        self.workload = workload
        self._pipe, self._log = pipe, log
        self._masker = Masker(scanner, guard, "strict")
        self._channel = Channel(self._masker, hold)
        self._before = ""  # the end of what was written: a keyword there may tell of what follows
        # Of such a rule's keywords every one stands at a beginning, in capitals or not.
        words = {w for rule in scanner.book.rules if rule.hold == "block" for w in rule.keywords}
        self._blocks = tuple(spelt for word in words for spelt in (word, word.upper()))
        self._report = report
        self._buffer = bytearray()
        self._batch: list[str] = []
        self._paused = False
        self._cut = False
        self._lost: dict[str, int] = {}
        self._told = 0.0
        self._allowance, self._filled = float(BURST), time.monotonic()
        os.set_blocking(pipe, False)

    @property
    def open(self) -> bool:
        """False once the workload's end of the pipe was closed."""
        return self._pipe >= 0

    def start(self) -> None:
        """Begin to read."""
        asyncio.get_running_loop().add_reader(self._pipe, self._readable)

    def close(self) -> None:
        """Write what is left and close both descriptors."""
        if self._pipe < 0:
            return
        asyncio.get_running_loop().remove_reader(self._pipe)
        while self._lines():
            pass
        if self._buffer and not self._cut:
            self._take(bytes(self._buffer))
            self._pass_on()
        self._tell(at_once=True)
        os.close(self._pipe)
        os.close(self._log)
        self._pipe = self._log = -1

    def _readable(self) -> None:
        try:
            data = os.read(self._pipe, _READ)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        self._buffer += data
        self._turn()

    def _turn(self) -> None:
        """Work for a moment; reading goes on when all that was read is done."""
        if self._pipe < 0:
            return
        loop = asyncio.get_running_loop()
        if self._lines():
            if not self._paused:
                loop.remove_reader(self._pipe)
                self._paused = True
            loop.call_soon(self._turn)
        elif self._paused:
            self._paused = False
            loop.add_reader(self._pipe, self._readable)
        self._tell()

    def _lines(self) -> bool:
        """Take one turn's worth of lines out of the buffer; True: there are more."""
        buffer, at = self._buffer, 0
        more = False
        for number in range(_TURN_LINES + 1):
            end = buffer.find(b"\n", at)
            if end < 0:
                break
            if number == _TURN_LINES or at > _TURN_BYTES:
                more = True
                break
            if self._cut:
                self._cut = False  # the rest of a line that was too long
            else:
                self._take(bytes(buffer[at:end]))
            at = end + 1
        del buffer[:at]
        if not more and (self._cut or len(buffer) > LINE_MAX):
            if not self._cut:
                self._take(bytes(buffer))
            self._cut = True
            buffer.clear()
        self._pass_on()
        return more

    def _take(self, line: bytes) -> None:
        """Put a line into the turn's batch, unless its workload writes too much."""
        now = time.monotonic()
        self._allowance = min(BURST, self._allowance + (now - self._filled) * RATE)
        self._filled = now
        cost = len(line) + _LINE_COST
        if self._allowance < cost:
            self._lose("flood")
            return
        self._allowance -= cost
        text = line[:LINE_MAX].decode("utf-8", "backslashreplace")
        if len(line) <= LINE_MAX:
            self._batch.append(text)
        else:
            self._pass_on()
            self._cut_off(text)

    def _pass_on(self) -> None:
        """Mask the batch in one go, which costs hardly more than one line would, and write it."""
        lines, self._batch = self._batch, []
        if not lines:
            return
        try:
            masked = self._masked("\n".join(lines) + "\n")
        except ScanFailed:
            self._channel.drop()
            for line in lines:  # so that it costs no more lines than it must
                self._alone(line)
            return
        self._write(masked)

    def _alone(self, line: str) -> None:
        try:
            self._write(self._masked(line + "\n"))
        except ScanFailed:
            self._channel.drop()
            self._lose("scan_failed")

    def _masked(self, text: str) -> str:
        """Mask whole lines, of which no end is a secret's middle: a finished text, which is cheap.

        Only a block such as a private key goes on over lines. It is a stream's business, and
        inside a masked one there are no lines: then what comes back may be empty.
        """
        was_in_block = self._channel.in_block
        if not was_in_block and not any(mark in text for mark in self._blocks):
            masked = self._masker.text(text, self._before)
        else:
            masked = self._channel.feed(text)
            if not self._channel.in_block:
                masked += self._channel.flush()
            if was_in_block:
                masked = masked.lstrip("\n")
        self._before = masked[-_CONTEXT:]
        return masked

    def _cut_off(self, text: str) -> None:
        try:
            masked = self._channel.feed(text)
            # What is held may be the head of a secret whose rest was cut off.
            self._channel.drop()
            masked += self._channel.feed("\n")
            if not self._channel.in_block:
                masked += self._channel.flush()
        except ScanFailed:
            self._channel.drop()
            self._lose("scan_failed")
            return
        self._write(masked.rstrip("\n") + " [cut]")

    def _write(self, text: str) -> None:
        """Write the lines of `text`, each with the time in front of it."""
        if not text:
            return
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        lines = text.removesuffix("\n").split("\n")
        data = "".join(f"{stamp} {_harmless(line)}\n" for line in lines)
        encoded = data.encode("utf-8", "backslashreplace")
        try:
            written = os.write(self._log, encoded)
        except OSError:
            written = 0
        if written != len(encoded):
            self._lose("disk_full", len(lines) - encoded[:written].count(b"\n"))

    def _lose(self, why: str, lines: int = 1) -> None:
        self._lost[why] = self._lost.get(why, 0) + lines

    def _tell(self, *, at_once: bool = False) -> None:
        now = time.monotonic()
        if not self._lost or not (at_once or now - self._told >= _REPORT):
            return
        self._told = now
        lost, self._lost = self._lost, {}
        for why, lines in lost.items():
            self._report(self.workload, why, lines)
            if why != "disk_full":
                self._write(f"[anchorhold: {lines} lines dropped: {why}]")


def _harmless(line: str) -> str:
    """The line without control characters, which forge lines or drive a reader's terminal."""
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() or c == "\t" else repr(c)[1:-1] for c in line)
