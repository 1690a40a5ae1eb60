"""kill.py WHO SECONDS: SIGKILL to one process of ours, then look until all is well again.

WHO is a workload's id, the name of a helper in `ps`, or "supervisor". Prints JSON: after how many
seconds the status said RUNNING with a new process in place of the old; the processes that went and
the old ones that stayed; who was seen frozen; and any workload's program that ran without its
filter meanwhile.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, "/usr/lib/anchorhold/app")
from supervisor.control import ControlError, call

UNIT = Path("/sys/fs/cgroup/anchorhold.slice/anchorhold.service")
SOCKET = Path("/run/anchorhold/control.sock")
OURS = b"/usr/lib/anchorhold/app/supervisor\0up\0"  # forks of it, before their own program

Known = dict[tuple[int, str], str]


def processes() -> Known:
    """Everything in the unit: pid and start time (which no other process has), and its name."""
    found: Known = {}
    for cell, _, _ in os.walk(UNIT):  # passes over what vanishes meanwhile
        try:
            for pid in Path(cell, "cgroup.procs").read_text().split():
                started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
                found[int(pid), started] = Path(f"/proc/{pid}/comm").read_text().strip()
        except OSError:  # gone meanwhile
            continue
    return found


def free(pid: int) -> bool:
    """Whether it runs a program of its own without filter or with a right to gain more."""
    try:
        if Path(f"/proc/{pid}/comm").read_text().startswith("("):
            return False  # systemd's own child, on its way to the supervisor's first instruction
        program = Path(f"/proc/{pid}/cmdline").read_bytes()
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return False
    said = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    if not program or program.endswith(OURS) or said["State"][0] in "ZX":
        return False
    return (said["Seccomp"], said["NoNewPrivs"], said["Uid"][:2] == "0\t") != ("2", "1", False)


def status() -> dict[str, Any] | None:
    """What the supervisor says, if it says anything."""
    try:
        found: dict[str, Any] = call(SOCKET, "status", {}, ())
        return found
    except (ControlError, OSError):
        return None


def main(who: str, seconds: float) -> dict[str, Any]:
    """Kill and look."""
    first = status()
    assert first is not None, "no supervisor answers"
    pids = {one["id"]: one["pid"] for one in first["workloads"]}
    main_pid = int((UNIT / "main/cgroup.procs").read_text().split()[0])
    names = {name: pid for (pid, _), name in processes().items()}
    victim = {"supervisor": main_pid, **names, **pids}[who]
    cells = {
        id_: UNIT.parent.parent / Path(f"/proc/{pid}/cgroup").read_text().strip()[4:]
        for id_, pid in pids.items()
    }
    before = processes()
    told: dict[str, Any] = {"back": None, "frozen": [], "free": [], "looks": 0}
    told["control"] = free(1)  # that the look finds who has no filter: init has none
    began = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    asked = 0.0
    while time.monotonic() - began < seconds:
        now = processes()
        told["looks"] += 1
        told["free"] += [f"{pid} {name}" for (pid, _), name in now.items() if free(pid)]
        for id_, cell in cells.items():
            if id_ not in told["frozen"] and frozen(cell):
                told["frozen"].append(id_)
        if time.monotonic() - asked > 0.2 and SOCKET.exists():
            if told["looks"] > 1 and well(status(), who, victim, pids):
                told["back"] = round(time.monotonic() - began, 2)
                break
            asked = time.monotonic()
        time.sleep(0.005)
    now = processes()
    told["went"] = [name for key, name in before.items() if key not in now]
    told["stayed"] = [name for key, name in before.items() if key in now]
    told["victim"] = next(name for (pid, _), name in before.items() if pid == victim)
    return told


def frozen(cell: Path) -> bool:
    """Whether the kernel holds everything in it."""
    try:
        return "frozen 1" in (cell / "cgroup.events").read_text()
    except OSError:
        return False


def well(said: dict[str, Any] | None, who: str, victim: int, pids: dict[str, int]) -> bool:
    """RUNNING, and by another process than the killed one, or all others if it was a root."""
    if said is None or said["state"] != "running" or Path(f"/proc/{victim}").exists():
        return False
    now = {one["id"]: one["pid"] for one in said["workloads"]}
    if who in pids:
        return bool(now[who] != victim)
    return who == "anchor-cell" or not set(now.values()) & set(pids.values())


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], float(sys.argv[2]))))
