"""The real programs as subprocesses, wired by real sockets as the launcher wires them."""

from __future__ import annotations

import http.client
import http.server
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

APP = Path(__file__).resolve().parents[3]
MAIL = APP / "supervisor" / "demo" / "mail"
TOKEN = "anchorhold-placeholder-" + "0123456789abcdef" * 2


class Program:
    """One `python -I assistant ...` process; its log lines are collected as they come."""

    def __init__(
        self, *arguments: str, channels: dict[str, socket.socket] | None = None, **environment: str
    ) -> None:
        channels = channels or {}
        command = [sys.executable, "-I", str(APP / "assistant"), *arguments]
        if channels:
            environment["LISTEN_FDS"] = str(len(channels))
            environment["LISTEN_FDNAMES"] = ":".join(channels)
            command = _with_descriptors(command, [s.fileno() for s in channels.values()])
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            pass_fds=[s.fileno() for s in channels.values()],
        )
        self.lines: list[dict[str, Any]] = []
        self.raw = ""
        self._thread = threading.Thread(target=self._collect, daemon=True)
        self._thread.start()

    def _collect(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.raw += line.decode()
            self.lines.append(json.loads(line))

    def wait_for(self, event: str, seconds: float = 10.0, **fields: object) -> dict[str, Any]:
        """The first log line of that event, with those fields."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for line in list(self.lines):
                if line["event"] == event and fields.items() <= line.items():
                    return line
            if self.process.poll() is not None and not self._thread.is_alive():
                break
            time.sleep(0.01)
        raise AssertionError(f"no {event} {fields} in {self.lines}; exit {self.process.poll()}")

    @property
    def port(self) -> int:
        """The port it listens on."""
        port: int = self.wait_for("listening")["port"]
        return port

    def stop(self, number: int = signal.SIGTERM, seconds: float = 5.0) -> int:
        """Signal it and return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        status = self.process.wait(seconds)
        self._thread.join(seconds)
        return status


def _with_descriptors(command: list[str], numbers: list[int]) -> list[str]:
    """Put `numbers` at 3, 4, ... as the launcher does, then become `command`."""
    move = (
        "import os,sys,fcntl;n=[int(x) for x in sys.argv[1].split(',')];"
        "high=[fcntl.fcntl(x,fcntl.F_DUPFD,100) for x in n];"
        "[os.dup2(x,3+i) for i,x in enumerate(high)];[os.close(x) for x in high];"
        "os.execv(sys.argv[2],sys.argv[2:])"
    )
    return [sys.executable, "-I", "-c", move, ",".join(map(str, numbers)), *command]


class House:
    """A practice model, an executor and adapters that find each other."""

    def __init__(self, start: Callable[..., Program], directory: Path, pace: str = "0") -> None:
        self._start = start
        self.directory = directory
        self.state = directory / "state"
        self.state.mkdir()
        self.model = start("practice-model", "--port", "0", "--pace", pace)
        self.base = f"http://127.0.0.1:{self.model.port}/v1"
        self.paths = {
            peer: directory / f"{peer}.sock" for peer in ("adapter.rest", "adapter.websocket")
        }
        self.channels: dict[str, socket.socket] = {}
        for peer, path in self.paths.items():
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listener.bind(str(path))
            listener.listen(16)
            self.channels[f"channel.{peer}"] = listener
        self.executor = self.start_executor()

    def start_executor(self, **options: str) -> Program:
        """Start (again) an executor on the same channels and state."""
        arguments = ["executor", "--state", str(self.state)]
        environment = {"OPENAI_BASE_URL": self.base, "OPENAI_API_KEY": TOKEN, **options}
        self.executor = self._start(*arguments, channels=self.channels, **environment)
        self.executor.wait_for("channel_open", peer="adapter.websocket")
        return self.executor

    def adapter(self, name: str) -> Program:
        """Start an adapter that is connected to the executor."""
        program = self._start(
            "adapter", name, "--port", "0", "--executor", str(self.paths[f"adapter.{name}"])
        )
        program.wait_for("executor_connected")
        return program

    def seen(self) -> list[dict[str, Any]]:
        """What reached the model."""
        port = int(self.base.split(":")[2].split("/")[0])
        status, body = call(port, "GET", "/practice/requests")
        assert status == 200
        seen: list[dict[str, Any]] = body["requests"]
        return seen

    def close(self) -> None:
        for listener in self.channels.values():
            listener.close()


def call(
    port: int, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
) -> tuple[int, Any]:
    """One HTTP request by the standard library's client; status and parsed JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    try:
        connection.request(method, path, data, headers or {})
        response = connection.getresponse()
        return response.status, json.loads(response.read() or b"null")
    finally:
        connection.close()


def letter(name: str) -> str:
    """The text of a test e-mail."""
    return (MAIL / f"{name}.eml").read_bytes().decode()


class Hold:
    """An answer that never comes: `reached` is set when it is asked for, `release` hangs up."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.release = threading.Event()


class ScriptedModel(http.server.ThreadingHTTPServer):
    """A model that answers what the test wrote down, in order, and keeps the requests.

    An answer is (status, JSON data), a Hold, or byte chunks to stream before hanging up.
    """

    daemon_threads = True

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        super().__init__(("127.0.0.1", 0), _ScriptedHandler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def say(self, *texts: str) -> None:
        """Answer the next requests with these completions."""
        for text in texts:
            message = {"role": "assistant", "content": text}
            self.answers.append((200, {"choices": [{"index": 0, "message": message}]}))


class _ScriptedHandler(http.server.BaseHTTPRequestHandler):
    server: ScriptedModel

    def do_POST(self) -> None:
        length = int(self.headers["content-length"])
        self.server.requests.append(json.loads(self.rfile.read(length)))
        self.server.headers.append(dict(self.headers.items()))
        answer = self.server.answers.pop(0)
        if isinstance(answer, Hold):
            answer.reached.set()
            answer.release.wait(20)
            return
        if isinstance(answer, list):
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.end_headers()
            for chunk in answer:
                self.wfile.write(chunk)
                self.wfile.flush()
            return
        status, value = answer
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""
