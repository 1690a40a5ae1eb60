"""The control socket: who may ask, what a request is, what happens when somebody leaves."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from supervisor.cli import exits
from supervisor.control import REQUEST_MAX, ControlError, ControlServer, Request, call


class Running:
    """A real server in its own thread and loop."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cancelled = threading.Event()
        self.started = threading.Event()
        self.loop = asyncio.new_event_loop()
        handlers = {
            "echo": self.echo, "fail": self.fail, "bug": self.bug, "foreign": self.foreign,
            "wait": self.wait, "read": self.read,
        }  # fmt: skip
        self.server = ControlServer(path, handlers)
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.run(self.server.start())

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(10)

    def close(self) -> None:
        self.run(self.server.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    async def echo(self, request: Request) -> object:
        for number in range(3):
            request.progress({"step": number})
        return {"verb": request.verb, **request.arguments}

    async def fail(self, request: Request) -> object:
        raise ControlError("no_such_workload", "no workload is called x", "see status", 1)

    async def bug(self, request: Request) -> object:
        raise ZeroDivisionError

    async def foreign(self, request: Request) -> object:
        error = RuntimeError("the launch failed")
        error.code, error.fix = "launch_failed", "see doctor"  # type: ignore[attr-defined]
        raise error

    async def wait(self, request: Request) -> object:
        self.started.set()
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return None

    async def read(self, request: Request) -> object:
        return [os.read(fd, 100).decode() for fd in request.fds]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    server = Running(tmp_path / "control.sock")
    yield server
    server.close()


def raw(path: Path, data: bytes, *, shut: bool = False) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(path))
        sock.sendall(data)
        if shut:
            sock.shutdown(socket.SHUT_WR)
        return json.loads(sock.makefile().readline())


def test_result_and_progress_arrive_in_order(running: Running) -> None:
    seen: list[Any] = []
    result = call(running.path, "echo", {"a": [1, "é"]}, on_progress=seen.append)
    assert result == {"verb": "echo", "a": [1, "é"]}
    assert seen == [{"step": 0}, {"step": 1}, {"step": 2}]


def test_socket_belongs_to_its_owner_alone(running: Running) -> None:
    assert stat.S_IMODE(running.path.stat().st_mode) == 0o600


def test_error_keeps_code_fix_and_exit(running: Running) -> None:
    with pytest.raises(ControlError, match="no workload is called x") as raised:
        call(running.path, "fail")
    assert (raised.value.code, raised.value.fix) == ("no_such_workload", "see status")


def test_error_of_another_room_is_passed_on(running: Running) -> None:
    with pytest.raises(ControlError, match="the launch failed") as raised:
        call(running.path, "foreign")
    assert (raised.value.code, raised.value.fix) == ("launch_failed", "see doctor")


def test_bug_in_a_handler_is_said_and_the_server_lives(
    running: Running, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ControlError) as raised:
        call(running.path, "bug")
    assert raised.value.code == "internal"
    assert "ZeroDivisionError" in capfd.readouterr().err
    assert call(running.path, "echo")


def test_unknown_verb(running: Running) -> None:
    with pytest.raises(ControlError, match="unknown verb: nope") as raised:
        call(running.path, "nope")
    assert raised.value.exit == exits.USAGE


@pytest.mark.parametrize(
    "data",
    [b"\n", b"{}\n", b"[]\n", b"\xff\n", b'{"verb": 1, "arguments": {}}\n',
     b'{"verb": "echo"}\n', b'{"verb": "echo", "arguments": []}\n',
     b'{"verb": "echo", "arguments": {}, "more": 1}\n', b"[" * 60000 + b"\n"],
)  # fmt: skip
def test_malformed_requests_are_errors(running: Running, data: bytes) -> None:
    assert raw(running.path, data)["error"]["code"] == "bad_request"
    assert call(running.path, "echo"), "control: still serving"


def test_request_without_newline(running: Running) -> None:
    assert raw(running.path, b'{"verb"', shut=True)["error"]["code"] == "bad_request"


def test_request_over_the_limit(running: Running) -> None:
    assert raw(running.path, b"x" * (REQUEST_MAX + 1))["error"]["code"] == "too_large"
    with pytest.raises(ControlError) as raised:
        call(running.path, "echo", {"x": "y" * REQUEST_MAX})
    assert raised.value.code == "too_large"


def test_descriptors_reach_the_handler_and_are_closed_after_it(running: Running) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    pairs = [os.pipe() for _ in range(3)]
    for number, (_reader, writer) in enumerate(pairs):
        os.write(writer, b"word %d" % number)
    fds = tuple(reader for reader, _writer in pairs)
    assert call(running.path, "read", fds=fds) == ["word 0", "word 1", "word 2"]
    for pair in pairs:
        for fd in pair:
            os.close(fd)
    running.run(asyncio.sleep(0.05))
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_client_that_leaves_cancels_its_handler(running: Running) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(running.path))
        sock.sendall(b'{"verb": "wait", "arguments": {}}\n')
        assert running.started.wait(5)
        assert not running.cancelled.is_set(), "control: it ran while the client was there"
    assert running.cancelled.wait(5)


def test_only_root_and_the_own_uid_may_ask(running: Running) -> None:
    """Over a connection that a stranger opened: mode 0600 is not the only barrier."""
    if os.geteuid():
        pytest.fail("the host tier runs as root")
    for part in running.path.parents:
        if part.stat().st_mode & 0o005 != 0o005 and part.is_relative_to("/tmp"):
            part.chmod(0o755)
    running.path.chmod(0o666)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            call(running.path, "echo")
        except ControlError as error:
            os.write(writer, json.dumps({"error": error.as_json()}).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    answer = json.loads(os.read(reader, 4096))
    os.close(reader)
    assert answer["error"]["code"] == "not_allowed"
    assert "65534" in answer["error"]["message"]
    assert call(running.path, "echo"), "control: root is served"


def test_not_running_names_the_fix(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="not running") as raised:
        call(tmp_path / "control.sock", "status")
    assert raised.value.exit == exits.NOT_RUNNING
    assert "anchorhold up" in raised.value.fix


def test_stale_socket_is_replaced_and_a_live_one_is_not(running: Running, tmp_path: Path) -> None:
    stale = tmp_path / "stale.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(stale))
    second = Running(stale)
    assert call(stale, "echo")
    second.close()
    assert not stale.exists()
    with pytest.raises(ControlError) as raised:
        running.run(ControlServer(running.path, {}).start())
    assert raised.value.code == "already_running"


def test_supervisor_that_dies_is_said(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def die() -> None:
        listener.accept()[0].close()

    thread = threading.Thread(target=die)
    thread.start()
    with pytest.raises(ControlError) as raised:
        call(path, "status")
    thread.join()
    listener.close()
    assert raised.value.code == "broken_off"


def test_client_does_not_import_asyncio() -> None:
    import subprocess
    import sys

    code = "import sys, supervisor.control; assert 'asyncio' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
