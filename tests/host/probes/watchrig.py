"""What the watch's tests need of a host: a private bpffs, test cgroups, a loader, a reader.

Everything is made in a mount namespace of its own and under one cgroup of its own, and removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from probes import layout
from probes.events import Event, decode
from probes.maps import Watch, clear
from probes.ring import Ring
from probes.rules import WatchRules
from supervisor.policy.context import newest_headers

PYTHON = "/usr/bin/python3"  # Debian's, which has bcc; the loader runs under no other
PROBES = Path(__file__).parents[3] / "probes"
UNIFIED = next(
    Path(line.split()[1])
    for line in Path("/proc/mounts").read_text().splitlines()
    if line.split()[2] == "cgroup2"
)
LEVEL = 2
READER_UID = 61000
_uids = itertools.count(61001 + os.getpid() % 4096 * 64)  # every host's loader has its own

_SETUP = """
set -e
mount --make-rprivate /
mount -t bpf -o mode=0711 bpf "$1"
mkdir "$1/watch"; chown {uid} "$1/watch"; chmod 0700 "$1/watch"
mount -t tmpfs none /lib/modules
if [ -n "$2" ]; then
  mkdir "/lib/modules/$(uname -r)"
  ln -s "$2" "/lib/modules/$(uname -r)/build"
  ln -s "$3" "/lib/modules/$(uname -r)/source"
fi
echo ready
read _
"""


class Host:
    """A mount namespace with a private bpffs and, unless told otherwise, the header links."""

    def __init__(self, with_headers: bool = True) -> None:
        self._dir = Path(tempfile.mkdtemp(prefix="watch-", dir="/tmp"))
        self._dir.chmod(0o755)
        self.uid = next(_uids)
        found = newest_headers()
        assert found is not None, "no kernel headers: make setup installs them"
        links = [found.build, found.source] if with_headers else ["", ""]
        self._holder = subprocess.Popen(
            [
                "unshare",
                "-m",
                "sh",
                "-c",
                _SETUP.format(uid=self.uid),
                "sh",
                str(self._dir),
                *links,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout
        assert self._holder.stdout.readline() == b"ready\n"
        self.holder = self._holder.pid
        self.inside = self._dir / "watch"
        self.pins = Path(f"/proc/{self._holder.pid}/root{self.inside}")

    def close_pins(self) -> None:
        clear(self.pins)

    def close(self) -> None:
        self.close_pins()
        self._holder.communicate(b"\n")
        shutil.rmtree(self._dir)

    def start_loader(
        self,
        denials: bool = False,
        pins: Path | None = None,
        capabilities: str = "+bpf,+perfmon",
    ) -> tuple[subprocess.Popen[bytes], int]:
        """Start the loader as the supervisor does; returns it and the `result` pipe's read end."""
        body = {
            "level": LEVEL,
            "denials": denials,
            "pins": str(pins or self.inside),
        }
        config = os.memfd_create("config")
        os.write(config, json.dumps(body).encode())
        read, write = os.pipe()
        caps = f"-all,{capabilities}" if capabilities else "-all"
        command = ["nsenter", "-t", str(self._holder.pid), "-m", "setpriv", f"--reuid={self.uid}"]
        command += [f"--regid={self.uid}", "--clear-groups", f"--inh-caps={caps}"]
        command += [f"--ambient-caps={caps}", f"--bounding-set={caps}", "--no-new-privs"]
        loader = start(
            [*command, PYTHON, "-I", str(PROBES), "load"],
            {"config": config, "result": write},
            {"TMPDIR": "/tmp", "HOME": "/tmp"},
        )
        os.close(config)
        os.close(write)
        return loader, read

    def load(self, **options: Any) -> dict[str, Any]:
        """Run the loader to its end; its status line, with the exit code as "code"."""
        loader, read = self.start_loader(**options)
        with os.fdopen(read, "rb") as pipe:
            line = pipe.read()
        code = loader.wait(60)
        status: dict[str, Any] = json.loads(line)
        return status | {"code": code}


def start(
    command: list[str], fds: dict[str, int], env: dict[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start `command` with descriptors by the sd_listen_fds(3) convention."""
    # Moved out of the way first: any of them may have a number that another one is to get.
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 64) for fd in fds.values()]
    moves = " ".join(f"{3 + n}<&{fd} {fd}<&-" for n, fd in enumerate(high))
    env = dict(env or {}, LISTEN_FDS=str(len(fds)), LISTEN_FDNAMES=":".join(fds))
    try:
        return subprocess.Popen(
            ["/bin/bash", "-c", f'exec "$@" {moves}', "bash", *command], pass_fds=high, env=env
        )
    finally:
        for fd in high:
            os.close(fd)


class Cgroups:
    """A slice at the top of the v2 hierarchy with workloads in it; removed by close()."""

    def __init__(self) -> None:
        self.top = UNIFIED / f"anchorhold-test-{os.getpid()}-{time.monotonic_ns()}"
        self.top.mkdir()
        self._count = 0

    def workload(self) -> Path:
        self._count += 1
        path = self.top / f"w{self._count}"
        path.mkdir()
        return path

    def close(self) -> None:
        for path in sorted(self.top.rglob("*/"), key=lambda p: -len(p.parts)):
            _remove(path)
        _remove(self.top)


def _remove(path: Path) -> None:
    for pid in (path / "cgroup.procs").read_text().split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    for _ in range(100):
        with contextlib.suppress(OSError):
            path.rmdir()
            return
        time.sleep(0.02)
    raise AssertionError(f"{path} is still busy")


def cgroup_id(path: Path) -> int:
    return path.stat().st_ino


def run_in(
    cgroup: Path | None,
    code: str,
    command: Sequence[str] = (PYTHON, "-I", "-S", "-c"),
    **options: Any,
) -> subprocess.Popen[bytes]:
    """Run Python code in a cgroup; it is inside before the interpreter starts."""

    def enter() -> None:
        if cgroup is not None:
            (cgroup / "cgroup.procs").write_text("0")

    return subprocess.Popen(
        [*command, code],
        preexec_fn=enter,
        **options,
    )


def quiet(*, but: set[int] = frozenset(), **over: Any) -> WatchRules:  # type: ignore[assignment]
    """Rules that allow every call except `but`."""
    fields: dict[str, Any] = {
        "allowed": frozenset(range(layout.CALLS)) - but,
        "high_risk": frozenset(),
        "on_high_risk": "alert",
        "on_unseen": "alert",
        "denials": False,
    }
    return WatchRules(**(fields | over))


class Tail:
    """The ring, read in this process."""

    def __init__(self, watch: Watch) -> None:
        fds = watch.fds_for_reader()
        self._ring = Ring(fds["ring"], layout.RING_BYTES)
        for fd in fds.values():
            os.close(fd)  # the mapping stays
        self.read()

    def read(self) -> list[Event]:
        events = [decode(data) for data in self._ring.read(1 << 20)]
        assert None not in events, "the kernel sent bytes that are no event"
        return [event for event in events if event]


def until(check: Callable[[], Any], seconds: float = 5.0) -> Any:
    """The first true answer of `check`, or AssertionError after `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if answer := check():
            return answer
        time.sleep(0.001)
    raise AssertionError("did not happen in time")


@contextlib.contextmanager
def registered(watch: Watch, cgroup: Path, rules: WatchRules) -> Iterator[int]:
    """Watch `cgroup` for the time of the block; gives its id."""
    number = cgroup_id(cgroup)
    watch.register(number, rules)
    try:
        yield number
    finally:
        watch.unregister(number)
