"""The workloads' output on its way to their log files: read, masked, stamped, bounded."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime

from .guard import KeyGuard
from .redaction.scan import ScanFailed, Scanner
from .redaction.stream import Channel, HoldBack
from .redaction.text import Masker

LINE_MAX = 16 * 1024
RATE, BURST = 256 * 1024, 1024 * 1024  # bytes per second and at once; past it lines are dropped
_LINE_COST = 32  # bytes charged for a line besides its own: its stamp, so that empty ones count too
_READ = 64 * 1024
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
        self._channel = Channel(Masker(scanner, guard, "strict"), hold)
        self._report = report
        self._buffer = bytearray()
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
        return more

    def _take(self, line: bytes) -> None:
        now = time.monotonic()
        self._allowance = min(BURST, self._allowance + (now - self._filled) * RATE)
        self._filled = now
        cost = len(line) + _LINE_COST
        if self._allowance < cost:
            self._lose("flood")
            return
        self._allowance -= cost
        cut = len(line) > LINE_MAX
        text = line[:LINE_MAX].decode("utf-8", "backslashreplace")
        was_in_block = self._channel.in_block
        try:
            masked = self._channel.feed(text if cut else text + "\n")
            if cut:
                # What is held may be the head of a secret whose rest was cut off.
                self._channel.drop()
                masked += self._channel.feed("\n")
            if not self._channel.in_block:
                masked += self._channel.flush()
        except ScanFailed:
            self._channel.drop()
            self._lose("scan_failed")
            return
        masked = masked.rstrip("\n")
        if was_in_block and not masked:
            return  # inside a masked block every line would be an empty one
        if cut:
            masked += " [cut]"
        self._write(masked)

    def _write(self, text: str) -> None:
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        # Control characters could forge lines or drive the terminal of whoever reads the log.
        safe = "".join(c if c.isprintable() or c == "\t" else repr(c)[1:-1] for c in text)
        data = f"{stamp} {safe}\n".encode("utf-8", "backslashreplace")
        try:
            if os.write(self._log, data) != len(data):
                self._lose("disk_full")
        except OSError:
            self._lose("disk_full")

    def _lose(self, why: str) -> None:
        self._lost[why] = self._lost.get(why, 0) + 1

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
