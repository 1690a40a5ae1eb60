"""`demo`: real messages through every layer, the evidence, six attacks. Exit 0: all held.

Root starts a supervisor, or takes the one that runs, and asks it for evidence. Whatever came out
of a workload (replies, logs, the words of an attacker) is only looked at by a child that became
nobody first.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sandbox import syscalls
from supervisor.cli import terminal
from supervisor.cli.privilege import become_nobody
from supervisor.cli.status import layers
from supervisor.control import ControlError, call
from supervisor.host import Host, load_host

APP = Path(__file__).resolve().parents[2]
MAIL = Path(__file__).parent / "mail"
KEY_NAME, PRACTICE, INTRUDED = "practice", "model.practice", "adapter.rest"
_START_TIME = 60.0
# Of its own, so that what a daily supervisor keeps is neither judged nor touched.
PLACE = Path("/run/anchorhold-demo")


def main(host_file: str, running: bool = False) -> int:
    """Run the whole scene; 0 only if every layer held and every attack was refused.

    `running`: with the supervisor of `host_file`, which must be up; else with one of its own.
    """
    say = _Progress()
    try:
        if running:
            host = load_host(host_file)
            return _scene(host, _Supervisor(host), say)
        return _on_its_own(Path(host_file), say)
    except ControlError as error:
        terminal.complain(str(error), error.fix)
        return 1


def _on_its_own(template: Path, say: Callable[[str], None]) -> int:
    if _answers(load_host(template)):
        raise ControlError(
            "runs_already",
            f"a supervisor with the paths of {template} runs already",
            "play with that one: anchorhold demo --running; or stop it first",
        )
    installed = _installed(template)
    host = load_host(installed)
    say(f"starting the supervisor with the policies in {host.paths.policies}")
    supervisor = None
    try:
        supervisor = _Child(host, installed)
        return _scene(host, supervisor, say)
    finally:
        if supervisor is not None:
            supervisor.stop()
        shutil.rmtree(PLACE, ignore_errors=True)


def _scene(host: Host, supervisor: _Supervisor, say: Callable[[str], None]) -> int:
    from supervisor.demo import auditor, client

    # An older supervisor's records are not judged, and its model forgets what it was asked.
    earlier = {name: len(text) for name, text in _written(host).items()}
    supervisor.ask("restart", {"workload": PRACTICE})
    status = supervisor.ask("status")
    say(f"TPM: {status['tpm']['mode']}, level {status['tpm']['level']}. {status['tpm']['note']}")
    for gap in status["degraded"]:
        terminal.say(f"  DEGRADED {gap['guarantee']}: {gap['why']}")
    say("sealing a key for the practice model (random, worth nothing)")
    key = f"sk-practice-{secrets.token_urlsafe(24)}"
    supervisor.add_key(KEY_NAME, key)
    say("sending three e-mails, over WebSocket and REST")
    tokens = {
        protocol: str(
            supervisor.ask(
                "token.issue",
                {"client": "demo", "workload": f"adapter.{protocol}", "lifetime": 600},
            )["token"]
        )
        for protocol in ("websocket", "rest")
    }
    where = _address(host)
    mails = {path.name: path.read_bytes() for path in sorted(MAIL.glob("*.eml"))}
    held = [_as_nobody(lambda: client.send_all(where, tokens, mails))]
    say("trying six attacks")
    attacks = _attack(host, supervisor, where[1])
    held.append(_as_nobody(lambda: client.knock_without_token(where)))
    say("evidence, read from outside")
    status = supervisor.ask("status")
    held.append(_show_layers(status))
    found = auditor.Found(
        key=key,
        key_sha256=hashlib.sha256(key.encode()).hexdigest(),
        mails=mails,
        written={name: text[earlier.get(name, 0) :] for name, text in _written(host).items()},
        environments=_environments(status),
        attacks=attacks,
        denials=host.denials,
        model=_socket_inside(_pid_of(status, PRACTICE)),
    )
    held.append(_as_nobody(lambda: auditor.judge(found)))
    verdict = "every layer held" if all(held) else "SOMETHING DID NOT HOLD"
    say(f"{verdict}; state {status['state'].upper()}")
    return 0 if all(held) else 1


def _answers(host: Host) -> bool:
    try:
        call(Path(host.paths.run) / "control.sock", "status")
    except ControlError as error:
        return error.code != "not_running"
    return True


class _Supervisor:
    """A supervisor that runs, as its administrator reaches it."""

    def __init__(self, host: Host) -> None:
        self._control = Path(host.paths.run) / "control.sock"

    def ask(self, verb: str, arguments: dict[str, Any] | None = None, *fds: int) -> Any:
        """One control request."""
        return call(self._control, verb, arguments, fds)

    @property
    def pid(self) -> int:
        """Its process, told by the kernel: who listens on the control socket. unix(7)."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
            line.connect(str(self._control))
            told = line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return int.from_bytes(told[:4], "little")

    def add_key(self, name: str, key: str) -> None:
        """Hand a key over by a pipe, as `keys set` does."""
        reading, writing = os.pipe()
        os.write(writing, key.encode())
        os.close(writing)
        try:
            self.ask("keys.set", {"name": name, "fds": ["secret"]}, reading)
        finally:
            os.close(reading)


class _Child(_Supervisor):
    """One of our own."""

    def __init__(self, host: Host, host_file: Path) -> None:
        super().__init__(host)
        program = [sys.executable, "-IS", str(APP / "supervisor"), "up"]
        program += ["--host-file", str(host_file)]
        self._process = subprocess.Popen(program, stdout=subprocess.PIPE, text=True)  # noqa: S603
        self._wait_ready()

    def _wait_ready(self) -> None:
        assert self._process.stdout is not None  # noqa: S101 - we asked for the pipe
        alarm = signal.signal(signal.SIGALRM, lambda *_: self._process.kill())
        signal.alarm(int(_START_TIME))
        line = self._process.stdout.readline()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, alarm)
        if not line:
            code = self._process.wait()
            raise ControlError(
                "not_started", f"the supervisor ended with {code}", "its words: above"
            )

    def stop(self) -> None:
        """SIGTERM, then wait."""
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class _Progress:
    """A line per step with the seconds so far."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def __call__(self, text: str) -> None:
        terminal.say(f"[{time.monotonic() - self._start:5.1f} s] {text}")
        sys.stdout.flush()


def _installed(template: Path) -> Path:
    """The host file with this tree as the installed application, in a place that is removed."""
    text = template.read_text()
    paths = {
        "app": APP,
        "runtime": runtime if (runtime := APP / ".runtime").exists() else APP.parent / "runtime",
        "policies": APP / "policies",
        "run": PLACE,
        "state": PLACE / "state",
    }
    for name, path in paths.items():
        text = re.sub(rf"(?m)^{name}( +)=.*$", rf'{name}\1= "{path}"', text)
    shutil.rmtree(PLACE, ignore_errors=True)  # of a demo that was killed
    PLACE.mkdir(mode=0o700)
    made = PLACE / "host.toml"
    made.write_text(text)
    return made


def _address(host: Host) -> tuple[str, int]:
    address, _, port = host.listen.rpartition(":")
    return address.strip("[]"), int(port)


def _attack(host: Host, supervisor: _Supervisor, port: int) -> dict[str, tuple[str, bytes, bytes]]:
    """Every attempt inside a sandbox and, as control, outside: how it ended and what it said."""
    from supervisor.demo.auditor import ATTEMPTS

    program = (Path(__file__).parent / "intruder.py").read_bytes()
    path = f"{host.paths.state}/w-executor-main/workflows.sqlite"
    found = {}
    for name in ATTEMPTS:
        words = ["/usr/bin/python3", "-I", "-", name, str(port), path]
        # The directory's disk is mounted where only the supervisor and its cells see it.
        outside = [*words[:-1], f"/proc/{supervisor.pid}/root{path}"]
        control = subprocess.run(outside, input=program, capture_output=True, timeout=20)  # noqa: S603
        text = os.memfd_create("intruder")
        os.write(text, program)
        os.lseek(text, 0, os.SEEK_SET)
        reading, writing = os.pipe()
        try:
            ended = supervisor.ask(
                "try", {"workload": INTRUDED, "argv": words}, text, writing, writing
            )
            os.close(writing)
            said = os.read(reading, 4096)
        finally:
            os.close(reading)
            os.close(text)
        how = f"signal {ended['signal']}" if ended["signal"] else f"exit {ended['exit']}"
        found[name] = (how, said, control.stdout)
    return found


def _show_layers(status: dict[str, Any]) -> bool:
    good = True
    for workload in status["workloads"]:
        layers(workload["id"], workload["layers"])
        good = good and workload["state"] == "running" and bool(workload["layers"])
        good = good and all(layer["verdict"] != "FAIL" for layer in workload["layers"])
    return good


def _written(host: Host) -> dict[str, bytes]:
    """Every log and audit file, by name; root reads the bytes and looks at none of them."""
    state = Path(host.paths.state)
    return {
        str(path.relative_to(state)): path.read_bytes()
        for folder in ("logs", "audit")
        for path in sorted((state / folder).iterdir())
    }


def _environments(status: dict[str, Any]) -> dict[str, bytes]:
    return {
        workload["id"]: Path(f"/proc/{workload['pid']}/environ").read_bytes()
        for workload in status["workloads"]
        if workload["pid"]
    }


def _pid_of(status: dict[str, Any], workload: str) -> int:
    return next(int(each["pid"]) for each in status["workloads"] if each["id"] == workload)


def _socket_inside(pid: int) -> socket.socket:
    """An unconnected TCP socket that belongs to the network namespace of `pid`."""
    home, there = (
        os.open(f"/proc/{who}/ns/net", os.O_RDONLY | os.O_CLOEXEC) for who in ("self", pid)
    )
    try:
        syscalls.setns(there, syscalls.CLONE_NEWNET)
        try:
            return socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        finally:
            syscalls.setns(home, syscalls.CLONE_NEWNET)
    finally:
        os.close(home)
        os.close(there)


def _as_nobody(job: Callable[[], bool]) -> bool:
    """Run `job` in a child without any privilege; whether it found everything as it should be."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            become_nobody()
            code = 0 if job() else 1
        except BaseException as error:
            terminal.complain(f"{type(error).__name__}: {error}")
        finally:
            sys.stdout.flush()
            os._exit(code)
    return os.waitpid(pid, 0)[1] == 0
