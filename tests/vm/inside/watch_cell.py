"""watch_cell.py WORD SECONDS: the kernel's counts for the cell of a program with that argument.

Prints JSON: wall and processor time between two looks, how often it was throttled, how many forks
were refused, the most processes seen, and its user id.
"""

import json
import sys
import time
from pathlib import Path

CELLS = Path("/sys/fs/cgroup/anchorhold.slice/anchorhold.service/workloads")


def find(word: bytes) -> Path | None:
    """The cell of the program with this argument."""
    for procs in CELLS.glob("cell-*/cgroup.procs"):
        for pid in procs.read_text().split():
            try:
                if word in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                    return procs.parent
            except OSError:  # ended meanwhile
                continue
    return None


def counts(cell: Path, name: str) -> dict[str, int]:
    """A flat keyed file of the cell."""
    lines = (cell / name).read_text().splitlines()
    return {key: int(value) for key, value in map(str.split, lines)}


deadline = time.monotonic() + 60
while (cell := find(sys.argv[1].encode())) is None:
    if time.monotonic() > deadline:
        sys.exit("no such cell")
    time.sleep(0.05)
pid = (cell / "cgroup.procs").read_text().split()[0]
uid = Path(f"/proc/{pid}").stat().st_uid
time.sleep(1)  # past its start
began, before, most = time.monotonic(), counts(cell, "cpu.stat"), 0
while time.monotonic() < began + float(sys.argv[2]):
    most = max(most, int((cell / "pids.current").read_text()))
    time.sleep(0.1)
after, wall = counts(cell, "cpu.stat"), time.monotonic() - began
print(
    json.dumps({
        "wall": wall,
        "used": (after["usage_usec"] - before["usage_usec"]) / 1e6,
        "throttled": after["nr_throttled"] - before["nr_throttled"],
        "refused": counts(cell, "pids.events")["max"],
        "most": most,
        "uid": uid,
    })
)  # fmt: skip
