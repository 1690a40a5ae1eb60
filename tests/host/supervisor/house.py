"""A whole Anchorhold for tests: real processes, directories, ids and a port of its own.

`House.open` starts `anchorhold up` through pytest-xprocess and waits for its "ready"; `close` stops
it and finds out whether anything was left behind.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import re
import secrets
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest
from xprocess import ProcessStarter, XProcess

from sandbox import syscalls
from sandbox.cgroup import Slice, find_mount
from supervisor.cli.send import over_rest, over_websocket
from supervisor.control import call

ROOT = Path(__file__).resolve().parents[3]
MAIL = (ROOT / "supervisor/demo/mail/ordinary.eml").read_text()
READY = 60.0
_number = itertools.count()
_T = TypeVar("_T")


def poll(
    question: Callable[[], _T | None],
    seconds: float,
    what: str | Callable[[], object],
    pause: float = 0.02,
) -> _T:
    """Ask until the answer is true, at most `seconds`; the answer."""
    end = time.monotonic() + seconds
    while not (answer := question()):
        if time.monotonic() > end:
            pytest.fail(f"not within {seconds:g} s: {what() if callable(what) else what}")
        time.sleep(pause)
    return answer


def free_port() -> int:
    """A port of the loopback that nobody has right now."""
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return int(trial.getsockname()[1])


class House:
    """One supervisor. `folder` is its state, `policies` a copy that may be spoilt before `open`."""

    def __init__(self, xprocess: XProcess) -> None:
        self._xprocess = xprocess
        # Short, for the paths of Unix sockets; never used before, so that nobody else's pid file
        # or cgroup is taken for ours.
        self.name = f"anchorhold-test-{os.getpid()}-{next(_number)}-{secrets.token_hex(2)}"
        self.run = Path("/run") / self.name
        self.folder = Path(tempfile.mkdtemp(prefix="anchorhold-test-"))
        self.folder.chmod(0o711)  # workloads reach their own directory below it
        self.state = self.folder / "state"
        self.policies = self.folder / "policies"
        shutil.copytree(ROOT / "policies", self.policies)
        self.id_base = 1879100000 + 4096 * secrets.randbelow(60000)
        self.port = free_port()
        self.host_file = self.folder / "host.toml"
        self.write_host(str)
        self.slice = find_mount() / f"run-{self.name}"
        self.process: Any = None
        self.pid = 0
        self.ready_after = 0.0
        self._seen: dict[int, psutil.Process] = {}

    def write_host(self, change: Callable[[str], str]) -> None:
        """Write the shipped host file with our own places in it, then changed by `change`."""
        text = (ROOT / "policies/hosts/demo.toml").read_text()
        values = {
            "app": ROOT,
            "policies": self.policies,
            "runtime": ROOT / ".runtime",
            "state": self.state,
            "run": self.run,
            "listen": f"127.0.0.1:{self.port}",
        }
        for key, value in values.items():
            text, found = re.subn(rf"(?m)^{key} +=.*$", f'{key} = "{value}"', text)
            assert found == 1, key
        text = re.sub(r"(?m)^base =.*$", f"base = {self.id_base}", text)
        text = re.sub(r"(?m)^origins =.*$", f'origins = ["http://127.0.0.1:{self.port}"]', text)
        text = re.sub(r'(?m)^mode = "auto"$', 'mode = "swtpm"', text)
        self.host_file.write_text(change(text))

    def open(self, *before: str, flags: str = "-IS") -> None:
        """Start it, behind the command `before` if given, and wait until it is ready."""
        program = [*before, "/usr/bin/python3", *flags.split(), str(ROOT / "supervisor"), "up"]

        class Starter(ProcessStarter):
            pattern = "^anchorhold: ready$"
            args = (*program, "--host-file", str(self.host_file))
            timeout = READY
            max_read_lines = 100_000

            def get_lines(self, log_file: Any) -> Iterator[str]:
                popen = self.process.resources[-1].popen
                for line in super().get_lines(log_file):
                    yield line
                    if not line and popen.poll() is not None:
                        log_file.seek(0)
                        pytest.fail(f"it ended with {popen.returncode}:\n{log_file.read()}")

        began = time.monotonic()
        try:
            self._xprocess.ensure(self.name, Starter, persist_logs=False)
            self.ready_after = time.monotonic() - began
        finally:
            self.log = Path(str(self._xprocess.getinfo(self.name).logpath))
            self.process = self._xprocess.resources[-1].popen
            self.pid = self.process.pid
            self.family()

    # --- talking to it ---

    def ask(self, verb: str, arguments: dict[str, Any] | None = None, *fds: int) -> Any:
        """One request over the control socket."""
        return call(self.run / "control.sock", verb, arguments, fds)

    def workload(self, id_: str) -> dict[str, Any]:
        """One workload's part of the status."""
        return next(one for one in self.ask("status")["workloads"] if one["id"] == id_)

    def states(self) -> dict[str, str]:
        """Every workload's state."""
        return {one["id"]: one["state"] for one in self.ask("status")["workloads"]}

    def wait_state(self, id_: str, state: str, seconds: float = 20.0) -> dict[str, Any]:
        """The workload, once it is in `state`."""

        def there() -> dict[str, Any] | None:
            found = self.workload(id_)
            return found if found["state"] == state else None

        return poll(there, seconds, f"{id_} {state}")

    def leaf(self, id_: str) -> Path:
        """The workload's cgroup."""
        lines = Path(f"/proc/{self.workload(id_)['pid']}/cgroup").read_text().splitlines()
        return find_mount() / next(line[4:] for line in lines if line.startswith("0::/"))

    def frozen(self, leaf: Path) -> bool:
        """Whether every task in the cgroup is frozen, says the kernel."""
        return "frozen 1" in (leaf / "cgroup.events").read_text()

    def add_key(self, key: str, name: str = "practice") -> None:
        """Hand a key over by a pipe, as `keys set` does."""
        self.vault("set", {"name": name}, secret=key)

    def vault(self, verb: str, values: dict[str, Any] | None = None, **secrets: str) -> Any:
        """One verb of the vault, each of `secrets` in a pipe of its own."""
        pipes = []
        for value in secrets.values():
            reading, writing = os.pipe()
            os.write(writing, value.encode())
            os.close(writing)
            pipes.append(reading)
        fds = [name.replace("_", "-") for name in secrets]
        try:
            return self.ask(f"keys.{verb}", {**(values or {}), "fds": fds}, *pipes)
        finally:
            for pipe in pipes:
                os.close(pipe)

    def token(self, workload: str = "adapter.rest") -> str:
        """A fresh token of a client called "test"."""
        wanted = {"client": "test", "workload": workload, "lifetime": 600}
        return str(self.ask("token.issue", wanted)["token"])

    def send(self, protocol: str = "rest", token: str = "") -> dict[str, Any]:
        """A real e-mail through everything; the answer. Raises ControlError with the refusal."""
        token = token or self.token(f"adapter.{protocol}")
        message = {"workflow": "email_management", "content": MAIL}
        over = over_rest if protocol == "rest" else over_websocket
        return over(("127.0.0.1", self.port), token, message)

    def http(
        self, path: str, token: str | None, body: bytes = b"{}", method: str = "POST"
    ) -> tuple[int, dict[str, Any]]:
        """One bare request to the gateway: status and JSON answer."""
        headers = {"Content-Type": "application/json"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        return _exchange(connection, path, headers, body, method)

    def model_call(
        self, body: bytes, token: str | None = None, id_: str = "executor.main"
    ) -> tuple[int, dict[str, Any]]:
        """A completion as the executor would ask for it: from its network, with its placeholder."""
        connection = http.client.HTTPConnection("127.0.0.1", timeout=30)
        connection.sock = self.connect_inside(id_, 8100)
        token = self.placeholder(id_) if token is None else token
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
        return _exchange(connection, "/v1/chat/completions", headers, body, "POST")

    def placeholder(self, id_: str = "executor.main") -> str:
        """What the workload holds in place of a key."""
        environment = Path(f"/proc/{self.workload(id_)['pid']}/environ").read_text().split("\0")
        return dict(line.split("=", 1) for line in environment if line)["OPENAI_API_KEY"]

    def connect_inside(self, id_: str, port: int) -> socket.socket:
        """A connection to 127.0.0.1:`port` in the workload's network namespace."""
        home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        there = os.open(f"/proc/{self.workload(id_)['pid']}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            syscalls.setns(there, syscalls.CLONE_NEWNET)
            try:
                inside = socket.socket()
            finally:
                syscalls.setns(home, syscalls.CLONE_NEWNET)
        finally:
            os.close(home)
            os.close(there)
        inside.settimeout(30)
        inside.connect(("127.0.0.1", port))
        return inside

    def model_saw(self) -> list[dict[str, Any]]:
        """The requests that reached the practice model."""
        connection = http.client.HTTPConnection("127.0.0.1", timeout=30)
        connection.sock = self.connect_inside("model.practice", 8000)
        _, answer = _exchange(connection, "/practice/requests", {}, b"", "GET")
        return list(answer["requests"])

    # --- what it wrote ---

    def audit(self, name: str) -> list[dict[str, Any]]:
        """The records of one audit file; a line that is being written is left out."""
        text = (self.state / f"audit/{name}.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def wait_record(self, name: str, seconds: float = 10.0, **fields: object) -> dict[str, Any]:
        """The first record of audit file `name` that has all `fields`."""

        def there() -> dict[str, Any] | None:
            return next((r for r in self.audit(name) if fields.items() <= r.items()), None)

        return poll(there, seconds, f"{name} record with {fields}")

    def written(self) -> Iterator[tuple[str, bytes]]:
        """Everything below the state directory, and what the supervisor itself printed."""
        for path in sorted(self.state.rglob("*")):
            if path.is_file():
                yield str(path.relative_to(self.state)), path.read_bytes()
        yield "terminal", self.log.read_bytes()

    # --- its processes ---

    def family(self) -> dict[int, psutil.Process]:
        """The supervisor and everything it started, as of now; remembered for `close`."""
        found = {}
        try:
            top = psutil.Process(self.pid)
            found = {one.pid: one for one in (top, *top.children(recursive=True))}
        except psutil.NoSuchProcess:
            pass
        self._seen |= found
        return found

    def child(self, kind: str) -> int:
        """The pid of the "broker", the "resolver" or the "zygote"."""
        names = {"broker": "anchor-broker", "resolver": "anchor-resolve"}
        for pid, one in self.family().items():
            if kind in names and one.name() == names[kind]:
                return pid
            if kind == "zygote" and one.ppid() == self.pid and one.name() not in names.values():
                return pid
        raise AssertionError(f"no {kind}")

    def alive(self) -> list[str]:
        """What still runs of all that was ever seen, or under any uid of ours.

        A zombie is dead: it waits for whoever adopted it.
        """
        mine = range(self.id_base, self.id_base + 4096)
        found = []
        for one in psutil.process_iter():
            try:
                seen = self._seen.get(one.pid) == one
                if (seen or one.uids().real in mine) and one.status() != psutil.STATUS_ZOMBIE:
                    found.append(f"{one.pid} {one.name()}")
            except psutil.NoSuchProcess:
                continue
        return found

    def kill(self, pid: int) -> float:
        """SIGKILL to a process that this house started; the moment."""
        assert pid in self.family(), pid
        moment = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        return moment

    def measured(self, what: str, began: float) -> None:
        """Say how long something took; pytest shows it with -s, or when the test fails."""
        print(f"figure: {what}: {time.monotonic() - began:.3f} s")

    def leftovers(self) -> list[str]:
        """What an orderly stop must not leave: processes, cgroups, sockets, a listener."""
        found = self.alive()
        found += [str(path) for path in (self.slice,) if path.exists()]
        found += [str(path) for path in self.run.rglob("*") if path.is_socket()]
        with socket.socket() as trial:
            if trial.connect_ex(("127.0.0.1", self.port)) == 0:
                found.append(f"port {self.port}")
        return found

    def stop(self) -> int:
        """SIGTERM, then nothing of it is left; the exit code."""
        self.family()
        info = self._xprocess.getinfo(self.name)
        info.terminate(kill_proc_tree=False, timeout=30)
        code = int(self.process.wait(5))
        poll(lambda: not self.leftovers(), 2, lambda: f"gone: {self.leftovers()}")
        return code

    def close(self) -> None:
        """Stop it if it runs, and take away what a killed one could not."""
        try:
            if self.process is not None and self.process.poll() is None:
                self.stop()
            elif self.process is not None:
                poll(lambda: not self.alive(), 5, lambda: f"gone: {self.alive()}")
        finally:
            for one in self._seen.values():  # only after a failure
                if one.is_running():
                    one.kill()
            if self.slice.exists():
                Slice(self.slice).remove()
            shutil.rmtree(self.run, ignore_errors=True)
            shutil.rmtree(self.folder, ignore_errors=True)
            self._xprocess.config.__dict__.get("_extlogfiles", {}).pop(self.name, None)
            shutil.rmtree(str(self._xprocess.getinfo(self.name).controldir), ignore_errors=True)


def _exchange(
    connection: http.client.HTTPConnection,
    path: str,
    headers: dict[str, str],
    body: bytes,
    method: str,
) -> tuple[int, dict[str, Any]]:
    try:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            # Refused before all of it was sent? Then the reason is there to read.
            connection.request(method, path, body or None, headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read() or b"{}")
    finally:
        connection.close()
