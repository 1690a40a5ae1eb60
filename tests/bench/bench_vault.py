"""The key vault on a software TPM: unlock, change a key, memory, and what the TPM is asked."""

from __future__ import annotations

import mmap
import os
import shutil
import socket
import statistics
import struct
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "host" / "vault"))
sys.path.insert(0, str(Path(__file__).parents[2]))

from vault_scene import Helper, Outcome, Recorder, Swtpm

from tests.bench.figure import Figure

ROOT = Path(__file__).parents[2]
ROUNDS = 11
UNSEAL = struct.pack("!I", 0x15E)
VALUE = b"sk-practice-0123456789"


class Bus:
    """Watches a relay: seconds the TPM took, commands, unseals."""

    def __init__(self, relay: Recorder) -> None:
        self.seconds, self.commands, self.unseals = 0.0, 0, 0
        self._asked = 0.0
        relay.before, relay.change = self._ask, self._answer

    def _ask(self, _: socket.socket, command: bytes) -> None:
        self.commands += 1
        self.unseals += command[6:10] == UNSEAL
        self._asked = time.perf_counter()

    def _answer(self, _: bytes, response: bytes) -> bytes:
        self.seconds += time.perf_counter() - self._asked
        return response


def unlock(helper: Helper) -> float:
    """Seconds from the start of the helper until the keys are mapped where the proxy would be."""
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with mine, theirs:
        began = time.perf_counter()
        running = helper.start("unlock", handover=theirs.fileno())
        _, (fd,), _, _ = socket.recv_fds(mine, 16, 1)
        with mmap.mmap(fd, os.fstat(fd).st_size, prot=mmap.PROT_READ) as keys:
            if VALUE not in keys[:]:
                raise RuntimeError("the keys did not arrive")
        taken = time.perf_counter() - began
        os.close(fd)
        done(running.wait())
    return taken


def done(outcome: Outcome) -> Outcome:
    """The outcome of a verb that must not fail."""
    if outcome.code:
        raise RuntimeError(outcome.stderr.decode())
    return outcome


def change(helper: Helper) -> float:
    """Seconds for a key that is replaced."""
    began = time.perf_counter()
    done(helper.set("practice", VALUE))
    return time.perf_counter() - began


def peak(helper: Helper) -> float:
    """The most memory that an unlock had resident, in MB (started by a small process)."""
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with mine, theirs:
        outcome = done(
            helper.run(
                "unlock", wrap=("/bin/sh", "-c", '"$@"; exit $?', "sh"), handover=theirs.fileno()
            )
        )
    return outcome.rss_kib * 1024 / 1e6


def measure(helper: Helper, relay: Recorder) -> list[Figure]:
    """The figures of one vault, with either backend."""
    figures = []
    for backend, bound in (("raw", True), ("esapi", False)):
        helper.backend, helper.where = backend, helper.tpm.where
        name = f"vault, {backend}: "
        took = statistics.median(unlock(helper) for _ in range(ROUNDS))
        changed = statistics.median(change(helper) for _ in range(ROUNDS))
        helper.where = relay.where
        bus = Bus(relay)
        for _ in range(ROUNDS):
            unlock(helper)
        helper.where = helper.tpm.where
        figures += [
            Figure(name + "helper starts until the proxy holds the keys", took, "s",
                   bound=0.8 if bound else None),
            Figure(name + "of which the TPM", bus.seconds / ROUNDS * 1000, "ms",
                   bound=20 if bound else None),
            Figure(name + "unseals per start", bus.unseals / ROUNDS, "", bound=1),
            Figure(name + "commands per start", bus.commands / ROUNDS, ""),
            Figure(name + "a key is replaced", changed, "s", bound=0.5 if bound else None),
            Figure(name + "resident memory of the helper", peak(helper), "MB",
                   bound=45 if bound else None),
        ]  # fmt: skip
    return figures


def main() -> list[Figure]:
    """Measure on a fresh software TPM."""
    if shutil.which("swtpm") is None:
        raise RuntimeError("swtpm is not installed")
    with tempfile.TemporaryDirectory() as place:
        base = Path(place)
        package = Path("supervisor") / "vault"
        shutil.copytree(ROOT / package, base / "app" / package)
        (base / "vault").mkdir()
        tpm = Swtpm(base / "tpm")
        tpm.start()
        relay = Recorder(tpm, base / "bus")
        relay.start()
        try:
            helper = Helper(base / "app", base / "vault", tpm)
            helper.ok("init", "--pcrs", "7")
            done(helper.give("confirm-recovery", secret=helper.new_code()))
            done(helper.set("practice", VALUE))
            return measure(helper, relay)
        finally:
            relay.stop()
            tpm.stop()


if __name__ == "__main__":
    for figure in main():
        print(*figure.row(), sep="  ")
