"""What a whole Anchorhold costs when nothing happens: memory of every process, CPU of the root one.

Started as `anchorhold up` with the shipped policies; read from /proc after it has settled.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from tests.bench.figure import Figure

ROOT = Path(__file__).resolve().parents[2]
SETTLE, WATCH = 5.0, 20.0


def children(pid: int) -> list[int]:
    """`pid` and everything below it."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += children(int(child))
    return found


def memory(pid: int) -> tuple[float, float]:
    """(RSS, PSS) in MB of 10^6 bytes."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    sizes = [int(re.search(rf"(?m)^{name}: +(\d+)", text)[1]) for name in ("Rss", "Pss")]  # type: ignore[index]
    return sizes[0] * 1024 / 1e6, sizes[1] * 1024 / 1e6


def cpu(pid: int) -> float:
    """CPU seconds used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def name(pid: int, workloads: dict[int, str], root: int) -> str:
    """What a process is called in the table."""
    if pid in workloads:
        return workloads[pid]
    if pid == root:
        return "supervisor"
    return Path(f"/proc/{pid}/comm").read_text().strip()


def host_file(directory: Path) -> Path:
    """The shipped host file with places of its own, and without the demo's extra probe."""
    text = (ROOT / "policies/hosts/demo.toml").read_text()
    values = {"app": ROOT, "policies": ROOT / "policies", "runtime": ROOT / ".runtime",
              "state": directory / "state", "run": f"/run/anchorhold-bench-{os.getpid()}",
              "listen": "127.0.0.1:18443"}  # fmt: skip
    for key, value in values.items():
        text = re.sub(rf"(?m)^{key} +=.*$", f'{key} = "{value}"', text)
    text = text.replace("denials = true", "denials = false")
    made = directory / "host.toml"
    made.write_text(text)
    return made


def main() -> list[Figure]:
    """Every process, the totals, and the supervisor's idle CPU in per cent of one core."""
    from supervisor.control import call
    from supervisor.host import load_host

    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        directory.chmod(0o711)
        file = host_file(directory)
        program = ["/usr/bin/python3", "-IS", str(ROOT / "supervisor"), "up", "--host-file"]
        process = subprocess.Popen([*program, str(file)], stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "anchorhold: ready\n"
            status = call(Path(load_host(file).paths.run) / "control.sock", "status")
            time.sleep(SETTLE)
            before = cpu(process.pid)
            time.sleep(WATCH)
            used = (cpu(process.pid) - before) / WATCH * 100
            workloads = {each["pid"]: each["id"] for each in status["workloads"]}
            sizes = {pid: memory(pid) for pid in children(process.pid)}
            named = [(name(pid, workloads, process.pid), *size) for pid, size in sizes.items()]
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
    rss, pss = (sum(column) for column in zip(*(row[1:] for row in named), strict=True))
    figures = [Figure(f"RSS {who}", size, "MB") for who, size, _ in sorted(named)]
    return [
        *figures,
        Figure("RSS, all processes, idle", rss, "MB", bound=220),
        Figure("PSS, all processes, idle", pss, "MB"),
        Figure("CPU of the idle supervisor", used, "%", bound=0.5),
    ]
