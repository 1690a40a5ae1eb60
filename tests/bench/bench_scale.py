"""What two hundred workloads at once cost: memory, starting, stopping, the supervisor's idle CPU.

Under `anchorhold up` with the shipped policies and 200 more of a program that sleeps, against the
same without them. Also how long a fork bomb of 1,000 processes lives after the kill.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.bench.bench_idle import children, cpu, host_file
from tests.bench.figure import Figure

ROOT = Path(__file__).resolve().parents[2]
WORKLOADS, BOMB, WATCH = 200, 1000, 20.0
# What the kernel holds for all processes and namespaces together. proc(5)
KERNEL = ("Slab", "PageTables", "KernelStack", "Percpu")

POLICY = """
schema    = "anchorhold.policy/1"
id        = "tool.sleeper-{number}"
kind      = "tool"
version   = 1
owner     = "security@anchorhold.invalid"
review_by = 2027-11-01
why       = "Sleeps"
run       = {{ command = [{command}], restart = "never" }}
requires  = ["seccomp", "userns"]

[[allow]]
id   = "program"
why  = "The program itself"
file = {{ path = "{program}", access = ["read", "exec"] }}

[[allow]]
id   = "libraries"
why  = "The C library"
file = {{ path = "/usr/lib/x86_64-linux-gnu/**", access = ["read", "exec"] }}

[[allow]]
id   = "loader"
why  = "The ELF loader"
file = {{ path = "/usr/lib64/ld-linux-x86-64.so.2", access = ["read", "exec"] }}

[[allow]]
id       = "calls"
why      = "More than it needs"
syscalls = {{ group = "python-tool/1" }}

[[allow]]
id     = "null"
why    = "Standard input"
device = {{ path = "/dev/null" }}

[limits]
memory = "64MiB"
pids   = 4
cpu    = "50%"

[watch]
on_high_risk = "stop"
on_unseen    = "alert"
"""


def add_policies(directory: Path, number: int, *command: str) -> None:
    """`number` more policies whose workloads run `command`."""
    words = ", ".join(f'"{word}"' for word in command)
    for n in range(number):
        text = POLICY.format(number=n, command=words, program=command[0])
        (directory / f"tool-sleeper-{n}.toml").write_text(text)


@contextmanager
def supervisor(workloads: int) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any], float]]:
    """A running one with so many sleepers, its status, and the seconds until it was ready."""
    from supervisor.control import call
    from supervisor.host import load_host

    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        directory.chmod(0o711)
        shutil.copytree(ROOT / "policies", directory / "policies")
        add_policies(directory / "policies", workloads, "/usr/bin/sleep", "1000000")
        file = host_file(directory)
        old = f'policies = "{ROOT / "policies"}"'
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, f'policies = "{directory / "policies"}"'))
        program = ["/usr/bin/python3", "-IS", str(ROOT / "supervisor"), "up", "--host-file"]
        began = time.monotonic()
        process = subprocess.Popen([*program, str(file)], stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "anchorhold: ready\n"
            ready = time.monotonic() - began
            status = call(Path(load_host(file).paths.run) / "control.sock", "status")
            time.sleep(3)
            yield process, status, ready
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(120)


def measure(workloads: int) -> dict[str, float]:
    """Everything of one run, bytes and seconds."""
    before = kernel()
    with supervisor(workloads) as (process, status, ready):
        running = [one for one in status["workloads"] if one["state"] == "running"]
        sleepers = [one for one in running if one["id"].startswith("tool.sleeper")]
        assert len(sleepers) == workloads, [
            (one["id"], one["error"]) for one in status["workloads"] if one["state"] != "running"
        ][:3]
        cells = {one["pid"] for one in sleepers}
        ours = [pid for pid in children(process.pid) if pid not in cells]
        found = {
            "ready": ready,
            "kernel": kernel() - before,
            "ours": sum(private(pid) for pid in ours),
            "sleeper": sum(private(pid) for pid in cells) / max(1, workloads),
            "supervisor": private(process.pid),
        }
        used = cpu(process.pid)
        time.sleep(WATCH)
        found["cpu"] = (cpu(process.pid) - used) / WATCH * 100
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.wait(120)
        found["stop"] = time.monotonic() - began
    return found


def kernel() -> float:
    """Bytes of the kernel's own."""
    text = Path("/proc/meminfo").read_text()
    return sum(int(re.findall(rf"(?m)^{name}: +(\d+)", text)[0]) * 1024 for name in KERNEL)


def private(pid: int) -> float:
    """Proportional set size in bytes."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(re.findall(r"(?m)^Pss: +(\d+)", text)[0]) * 1024


def bomb() -> float:
    """Seconds from the kill until a cgroup of 1,000 processes is gone, by sandbox/cgroup.py."""
    from sandbox.cgroup import Slice, find_mount

    tree = Slice(find_mount() / f"anchorhold-bench-{os.getpid()}")
    try:
        leaf = tree.leaf()
        fork = "import os, time\nfor _ in range(%d):\n  if not os.fork(): break\ntime.sleep(60)"
        code = f"open('{leaf.path}/cgroup.procs', 'w').write('0')\n{fork % (BOMB - 1)}"
        process = subprocess.Popen(["/usr/bin/python3", "-IS", "-c", code])
        late = time.monotonic() + 60
        while len(leaf.processes()) < BOMB:
            assert time.monotonic() < late, "the bomb does not go off"
            time.sleep(0.05)
        began = time.perf_counter()
        leaf.destroy()
        took = time.perf_counter() - began
        process.wait(10)
        return took
    finally:
        tree.remove()


def main() -> list[Figure]:
    """Per workload, as the difference of two runs."""
    few, many = measure(0), measure(WORKLOADS)
    each = {name: (many[name] - few[name]) / WORKLOADS for name in ("kernel", "ours", "ready")}
    return [
        Figure(f"kernel memory per workload, of {WORKLOADS}", each["kernel"] / 1e6, "MB"),
        Figure("memory of our processes per workload", each["ours"] / 1e6, "MB"),
        Figure(
            "memory per workload beyond its own process",
            (each["kernel"] + each["ours"]) / 1e6, "MB", bound=1.0,
        ),
        Figure("the idle program itself", many["sleeper"] / 1e6, "MB"),
        Figure(f"start with {WORKLOADS} more", many["ready"], "s", few["ready"], "without"),
        Figure("start per workload", each["ready"] * 1000, "ms"),
        Figure(f"stop with {WORKLOADS} more", many["stop"], "s", few["stop"], "without"),
        Figure(f"CPU of the idle supervisor with {WORKLOADS}", many["cpu"], "%", bound=0.5),
        Figure(f"kill of {BOMB} processes", min(bomb() for _ in range(3)) * 1000, "ms", bound=200),
    ]  # fmt: skip
