"""Starts the same program under other sandboxes and container runtimes, one on each request.

Run by start_sandboxes as ``start_others.py DIRECTORY``. First it prints the names that run here;
then, for every line with a name, the seconds up to the program's first byte.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sandbox import syscalls

ECHO = "/usr/bin/echo"
SYSTEM = ("/usr", "/lib", "/lib64", "/bin")


def bundle(directory: Path) -> None:
    """What `crun spec` proposes, with the system's directories in its root and nothing measured
    away: no terminal, no resource limits, no cgroup mount."""
    subprocess.run(["crun", "spec"], cwd=directory, check=True)
    config = json.loads((directory / "config.json").read_text())
    config["process"] |= {"terminal": False, "args": [ECHO, "x"]}
    config["mounts"] = [m for m in config["mounts"] if m["destination"] != "/sys/fs/cgroup"]
    for path in SYSTEM:
        (directory / "rootfs" / path[1:]).mkdir(parents=True, exist_ok=True)
        options = ["rbind", "ro"]
        config["mounts"].append(
            {"destination": path, "type": "none", "source": path, "options": options}
        )
    config["linux"] |= {
        "resources": {},
        "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")],
        "cgroupsPath": f"/anchorhold-bench-{os.getpid()}",
    }
    (directory / "config.json").write_text(json.dumps(config))


def pure_cgroup2() -> None:
    """In a mount namespace of our own, where the runtimes look: they take no hybrid tree."""
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount("", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    syscalls.mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0)


def commands(directory: Path) -> dict[str, list[str]]:
    """What is installed, by name."""
    state = ["--root", f"{directory}/state"]
    known = {
        "bwrap": ["bwrap", "--unshare-all", "--ro-bind", "/", "/", ECHO, "x"],
        "crun": ["crun", *state, "--cgroup-manager=disabled", "run", "-b", str(directory), "b"],
        "runc": ["runc", *state, "run", "-b", str(directory), "b"],
        "firejail": ["firejail", "--quiet", "--noprofile", "--net=none", ECHO, "x"],
        "systemd-run": ["systemd-run", "--quiet", "--pipe", "--wait", "--collect", ECHO, "x"],
    }
    if not Path("/run/systemd/system").is_dir():
        del known["systemd-run"]
    return {name: words for name, words in known.items() if shutil.which(words[0])}


def start(words: list[str]) -> float:
    """Seconds, without a shell or a Python fork in them."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    began = time.perf_counter()
    redirect = [(os.POSIX_SPAWN_DUP2, writing, 1)]
    pid = os.posix_spawnp(words[0], words, os.environ, file_actions=redirect)
    os.close(writing)
    first = os.read(reading, 1)
    taken = time.perf_counter() - began
    os.waitpid(pid, 0)
    os.close(reading)
    if first != b"x":
        raise SystemExit(f"{words[0]} did not start {ECHO}")
    return taken


def main(directory: Path) -> None:
    """Serve until stdin ends."""
    known = commands(directory)
    if "crun" in known:
        bundle(directory)
        pure_cgroup2()
    print(*known, flush=True)
    for line in sys.stdin:
        print(start(known[line.strip()]), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
