"""What the attempts are about: programs, bait, policies, and a house in which workloads run them.

The policies are the shipped ones with one file rule added to the executor's, which makes the
programs visible. Beside them stands the weakest policy that still validates: every group, a
just-in-time compiler, all of /usr, no limit, nothing required but a filter, nothing stopped.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.host.supervisor.house import House

HERE = Path(__file__).resolve().parent
SHIPPED, WEAKEST = "executor.main", "tool.weakest"
SECTIONS = ("descriptors", "mounts", "privilege", "filter", "network", "resources")
# cap_net_raw+ep in version 3, owned by root: capabilities(7), "File capability extended attribute".
_CAPABLE = bytes.fromhex("0100000300200000000000000000000000000000" + "00000000")
LIBRARY = "/usr/lib/x86_64-linux-gnu/libm.so.6"
_GROUPS = (
    "python-service", "python-tool", "storage", "fork", "durable-log", "secret-memory",
    "unix-client", "swtpm",
)  # fmt: skip


def compile_programs(folder: Path) -> None:
    """The attack programs, static, and a 32-bit one without a C library. Needs gcc."""
    source = HERE / "programs"
    flags = ("-static", "-O1", "-Wall", "-Wextra", "-Werror")
    jobs = [
        subprocess.Popen(["gcc", *flags, "-pthread", "-o", folder / name, source / f"{name}.c"])
        for name in SECTIONS
    ]
    small = ["gcc", "-m32", "-nostdlib", *flags[:1], "-o", folder / "exit32", source / "exit32.S"]
    jobs.append(subprocess.Popen(small))
    assert all(job.wait(120) == 0 for job in jobs), "the attack programs do not compile"


class Place:
    """Files of the host: `programs`, which workloads see read-only, and `scratch` for controls."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="anchorhold-attacks-", dir="/opt"))
        self.folder.chmod(0o755)
        self.programs = self.folder / "programs"
        self.scratch = self.folder / "scratch"
        self.programs.mkdir(mode=0o755)
        self.scratch.mkdir(mode=0o777)
        self.scratch.chmod(0o777)
        self.marker = self.folder / "marker"
        self.marker.write_text("nobody inside reads or changes this\n")
        compile_programs(self.programs)
        shutil.copy(self.programs / "descriptors", self.programs / "idle")
        self.lay_bait()

    def lay_bait(self) -> None:
        """What a control may have taken away."""
        (self.programs / "bait").write_text("bait\n")
        for gone in (self.programs / "gone", self.programs / "moved"):
            gone.unlink(missing_ok=True)
        self.furnish(self.scratch)
        for name, mode in {"setuid": 0o4755, "capable": 0o755}.items():
            if not (self.programs / name).exists():
                shutil.copy(self.programs / "privilege", self.programs / name)
                (self.programs / name).chmod(mode)
        os.setxattr(self.programs / "capable", "security.capability", _CAPABLE)

    def furnish(self, scratch: Path) -> None:
        """A writable directory as the attempts expect it, seen from the host."""
        for path in scratch.iterdir():
            if path.name in (
                "own",
                "setuid",
                "linked",
                "copy",
                "modes",
                "created",
                "given",
                "attribute",
            ):
                path.unlink()
        (scratch / "own").write_text("own\n")
        (scratch / "own").chmod(0o666)
        shutil.copy(self.programs / "privilege", scratch / "setuid")
        (scratch / "setuid").chmod(0o4755)

    def facts(self) -> dict[str, str]:
        """What the words of an attempt stand for."""
        return {
            "programs": str(self.programs),
            "marker": str(self.marker),
            "library": LIBRARY,
        }

    def close(self) -> None:
        """Take everything away."""
        shutil.rmtree(self.folder)


class Bystanders:
    """What lives on the host and must not notice anything: services, IPC objects, a process."""

    def __init__(self, place: Path) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.sentinel = subprocess.Popen(["sleep", "3600"])
        self.address = _own_address()
        self.listeners = [_listener(socket.AF_INET, "0.0.0.0")]
        self.port = self.listeners[0].getsockname()[1]
        self.listeners.append(_listener(socket.AF_INET6, "::1", self.port))
        self.datagrams = [
            _bound(socket.AF_INET, "0.0.0.0", self.port), _bound(socket.AF_INET6, "::1", self.port)
        ]  # fmt: skip
        self.abstract = f"anchorhold-attack-{secrets.token_hex(4)}"
        self.listeners += [_unix(f"\0{self.abstract}"), _unix(str(place / "socket"))]
        (place / "socket").chmod(0o777)
        self.socket = place / "socket"
        self.key = secrets.randbelow(1 << 30) + 1
        self.ids = {
            "shm": self._libc.shmget(self.key, 4096, 0o1666),
            "sem": self._libc.semget(self.key, 1, 0o1666),
            "msg": self._libc.msgget(self.key, 0o1666),
        }
        self.queue = f"anchorhold-attack-{secrets.token_hex(4)}"
        self.queue_fd = self._libc.mq_open(
            f"/{self.queue}".encode(), os.O_CREAT | os.O_RDWR, 0o666, None
        )
        self.shared = Path("/dev/shm") / self.queue
        self.shared.write_text("the host's\n")
        assert min(*self.ids.values(), self.queue_fd) >= 0, self.ids

    def drain(self) -> int:
        """Connections and datagrams that arrived since the last time; how many."""
        count = 0
        for listener in self.listeners:
            try:
                while True:
                    listener.accept()[0].close()
                    count += 1
            except BlockingIOError:
                pass
        for receiver in self.datagrams:
            try:
                while receiver.recv(64):
                    count += 1
            except BlockingIOError:
                pass
        return count

    def facts(self) -> dict[str, str]:
        """What the words of an attempt stand for."""
        return {
            "port": str(self.port),
            "address": self.address,
            "key": str(self.key),
            "queue": self.queue,
            "shared": str(self.shared),
            "socket": str(self.socket),
            "abstract": f"@{self.abstract}",
        }

    def close(self) -> None:
        """End all of them."""
        self.sentinel.kill()
        self.sentinel.wait()
        for one in (*self.listeners, *self.datagrams):
            one.close()
        self._libc.shmctl(self.ids["shm"], 0, None)
        self._libc.semctl(self.ids["sem"], 0, 0)
        self._libc.msgctl(self.ids["msg"], 0, None)
        os.close(self.queue_fd)
        self._libc.mq_unlink(f"/{self.queue}".encode())
        self.shared.unlink()


def _own_address() -> str:
    """An address of this host that is not its loopback; the loopback where there is none."""
    for found in psutil.net_if_addrs().values():
        for one in found:
            if one.family == socket.AF_INET and not one.address.startswith("127."):
                return one.address
    return "127.0.0.1"


def _listener(family: int, address: str, port: int = 0) -> socket.socket:
    made = socket.create_server((address, port), family=family, backlog=64)
    made.setblocking(False)
    return made


def _bound(family: int, address: str, port: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_DGRAM)
    made.bind((address, port))
    made.setblocking(False)
    return made


def _unix(path: str) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made.bind(path)
    made.listen(64)
    made.setblocking(False)
    return made


@dataclass(frozen=True)
class Scene:
    """All of it, and what the words of an attempt stand for on either side."""

    place: Place
    others: Bystanders
    house: House

    def inside(self) -> dict[str, str]:
        """The words in a workload: real targets, as the host knows them."""
        house = self.house
        targets = {
            "supervisor": str(house.pid),
            "zygote": str(house.child("zygote")),
            "scratch": "/state",
            "setgroups": "allow",
            "run": str(house.run),
            "channel": str(house.run / "channel/adapter.rest/executor.main.sock"),
            "leaf": str(house.leaf("adapter.rest")),
        }
        return {**self.others.facts(), **self.place.facts(), **targets}

    def outside(self) -> dict[str, str]:
        """The words of the control: the same things where that is harmless, else the sentinel."""
        victim = str(self.others.sentinel.pid)
        mine = {"supervisor": victim, "zygote": victim, "scratch": str(self.place.scratch),
                "setgroups": "deny"}  # fmt: skip
        return {**self.inside(), **mine}


def command(
    place: Place, program: str, id_: str, words: tuple[str, ...], facts: Mapping[str, str]
) -> list[str]:
    """The command line of an attempt: program, act, name, words."""
    act, *rest = (word.format_map(facts) for word in words)
    return [str(place.programs / program), act, id_, *rest]


def write_policies(house: House, place: Place) -> None:
    """Make the programs visible in the executor's policy, and add the weakest one."""
    rule = f'''
[[allow]]
id   = "attack-programs"
why  = "The programs of the attack suite"
file = {{ path = "{place.programs}/**", access = ["read", "exec"] }}
'''
    shipped = house.policies / "executor-main.toml"
    shipped.write_text(shipped.read_text() + rule)
    groups = "".join(
        f'\n[[allow]]\nid = "calls-{name}"\nwhy = "all"\nsyscalls = {{ group = "{name}/1" }}\n'
        for name in _GROUPS
    )
    devices = "".join(
        f'\n[[allow]]\nid = "device-{name}"\nwhy = "all"\ndevice = {{ path = "/dev/{name}" }}\n'
        for name in ("null", "zero", "full", "random", "urandom")
    )
    command = f'["{place.programs}/descriptors", "harmless", "weakest"]'
    (house.policies / "tool-weakest.toml").write_text(f'''
schema    = "anchorhold.policy/1"
id        = "{WEAKEST}"
kind      = "tool"
version   = 1
owner     = "security@anchorhold.invalid"
review_by = 2027-11-01
why       = "All that a policy can give, and still a sandbox"
run       = {{ command = {command}, restart = "never" }}
requires  = ["seccomp"]
{rule}{groups}{devices}
[[allow]]
id   = "all-programs"
why  = "all"
file = {{ path = "/usr/**", access = ["read", "exec"] }}

[[allow]]
id    = "state"
why   = "all"
state = {{ size = "256MiB" }}

[[allow]]
id    = "scratch"
why   = "all"
tmpfs = {{ path = "/tmp", size = "16MiB", files = 256 }}

[[allow]]
id  = "jit"
why = "all"
jit = {{ engine = "any" }}

[watch]
on_high_risk = "record"
on_unseen    = "record"
''')


if __name__ == "__main__":
    compile_programs(Path(sys.argv[1]))
