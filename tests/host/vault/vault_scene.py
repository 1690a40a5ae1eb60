"""A real swtpm, the helper as the launcher starts it, and a recorder on the bus between them."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from supervisor.vault.errors import Fault, fault_of

ROOT = Path(__file__).resolve().parents[3]
# Another interpreter may bring another tpm2-pytss: 3.0.0 was tried, built against libtss2 3.2.1.
PYTHON = os.environ.get("ANCHORHOLD_VAULT_PYTHON", "/usr/bin/python3")
DRIVER = Path(__file__).with_name("driver.py")


def pcr_extend_command(pcr: int) -> bytes:
    """TPM2_PCR_Extend of the SHA-256 bank with an empty-password session, as raw bytes."""
    body = struct.pack("!II", 0x182, pcr) + struct.pack("!IIHBH", 9, 0x40000009, 0, 0, 0)
    body += struct.pack("!IH", 1, 0x000B) + b"\x5a" * 32
    return struct.pack("!HI", 0x8002, 6 + len(body)) + body


def clear_command() -> bytes:
    """TPM2_Clear by the lockout hierarchy with an empty password, as raw bytes."""
    body = struct.pack("!II", 0x126, 0x4000000A) + struct.pack("!IIHBH", 9, 0x40000009, 0, 0, 0)
    return struct.pack("!HI", 0x8002, 6 + len(body)) + body


def owner_auth_command(old: bytes, new: bytes) -> bytes:
    """TPM2_HierarchyChangeAuth of the owner hierarchy, as raw bytes."""
    session = struct.pack("!IHBH", 0x40000009, 0, 0, len(old)) + old
    body = struct.pack("!III", 0x129, 0x40000001, len(session)) + session
    body += struct.pack("!H", len(new)) + new
    return struct.pack("!HI", 0x8002, 6 + len(body)) + body


def nv_define_command(index: int, size: int = 8, *, kind: int = 0) -> bytes:
    """TPM2_NV_DefineSpace by the owner, as raw bytes. Kind 0 is ordinary, 1 a counter."""
    body = struct.pack("!II", 0x12A, 0x40000001) + struct.pack("!IIHBH", 9, 0x40000009, 0, 0, 0)
    public = struct.pack("!IHIHH", index, 0x000B, 0x0204_0004 | kind << 4, 0, size)
    body += struct.pack("!HH", 0, len(public)) + public
    return struct.pack("!HI", 0x8002, 6 + len(body)) + body


def nv_undefine_command(index: int) -> bytes:
    """TPM2_NV_UndefineSpace by the owner, as raw bytes."""
    body = struct.pack("!III", 0x122, 0x40000001, index)
    body += struct.pack("!IIHBH", 9, 0x40000009, 0, 0, 0)
    return struct.pack("!HI", 0x8002, 6 + len(body)) + body


def sha1_only_command() -> bytes:
    """TPM2_PCR_Allocate by the platform: SHA-1 for every PCR, SHA-256 for none; after a restart."""
    body = struct.pack("!II", 0x12B, 0x4000000C) + struct.pack("!IIHBH", 9, 0x40000009, 0, 0, 0)
    body += struct.pack("!I", 2) + bytes.fromhex("000403ffffff") + bytes.fromhex("000b03000000")
    return struct.pack("!HI", 0x8002, 6 + len(body)) + body


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            raise ConnectionResetError
        data += part
    return data


def read_packet(connection: socket.socket) -> bytes:
    """One TPM command or response: the length stands in bytes 2 to 5."""
    head = _exactly(connection, 10)
    return head + _exactly(connection, int.from_bytes(head[2:6], "big") - 10)


class Swtpm:
    """One software TPM: its state directory outlives restarts; `stop` is a power cut."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.directory = directory
        self.path = directory / "sock"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def where(self) -> str:
        return f"socket:{self.path}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        state = self.directory / "state"
        state.mkdir(exist_ok=True)
        self.path.unlink(missing_ok=True)
        # Only swtpm keeps the socket, so that whoever waits on it hears of its death.
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self.path))
            listener.listen(64)
            fd = listener.fileno()
            self._process = subprocess.Popen(
                [
                    *("swtpm", "socket", "--tpm2", "--server", f"type=unixio,fd={fd}"),
                    *("--flags", "not-need-init,startup-clear", "--tpmstate", f"dir={state}"),
                ],
                pass_fds=[fd],
                stderr=subprocess.DEVNULL,
            )

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def command(self, raw: bytes) -> bytes:
        """One raw command; fails the test unless the TPM says success."""
        response = self.ask(raw)
        assert response[6:10] == bytes(4), response.hex()
        return response

    def ask(self, raw: bytes) -> bytes:
        """One raw command and its response."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(20)
            connection.connect(str(self.path))
            connection.sendall(raw)
            return read_packet(connection)

    def nv_indexes(self) -> int:
        """How many NV indexes there are in the vault's range."""
        answer = self.command(
            bytes.fromhex("8001000000160000017a00000001") + struct.pack("!II", 0x01A00000, 64)
        )
        (count,) = struct.unpack_from("!I", answer, 15)
        return sum(i >= 0x01A00000 for i in struct.unpack_from(f"!{count}I", answer, 19))

    def extend(self, pcr: int) -> None:
        self.command(pcr_extend_command(pcr))


@dataclass
class Recorder:
    """A relay in front of a TPM that keeps every byte and may meddle.

    `before(upstream, command)` runs before a command goes on; `change(command, response)` returns
    the response to deliver; `answer(command)` may answer in the TPM's place.
    """

    tpm: Swtpm
    path: Path
    seen: bytearray = field(default_factory=bytearray)
    before: Callable[[socket.socket, bytes], None] | None = None
    change: Callable[[bytes, bytes], bytes] | None = None
    answer: Callable[[bytes], bytes | None] | None = None

    @property
    def where(self) -> str:
        return f"socket:{self.path}"

    def start(self) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen(8)
        threading.Thread(target=self._serve, daemon=True).start()

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client, socket.socket(socket.AF_UNIX) as upstream, contextlib.suppress(OSError):
                upstream.connect(str(self.tpm.path))
                while True:
                    command = read_packet(client)
                    self.seen += command
                    if self.before:
                        self.before(upstream, command)
                    if self.answer and (forged := self.answer(command)) is not None:
                        client.sendall(forged)
                        continue
                    upstream.sendall(command)
                    response = read_packet(upstream)
                    self.seen += response
                    if self.change:
                        response = self.change(command, response)
                    client.sendall(response)


@dataclass
class Outcome:
    """What one run of the helper left behind."""

    code: int
    stdout: bytes
    stderr: bytes
    result: bytes
    seconds: float
    rss_kib: int

    @property
    def fault(self) -> Fault | None:
        return fault_of(self.code)

    @property
    def json(self) -> Any:
        assert self.code == 0, self.stderr
        assert self.result.endswith(b"\n")
        return json.loads(self.result)


class Running:
    """A helper that was started; `wait` collects it."""

    def __init__(self, argv: list[str], descriptors: dict[str, int]) -> None:
        self._result: int | None = None
        ends: list[int] = []
        if "result" not in descriptors:
            self._result, write = os.pipe()
            ends.append(write)
            descriptors = {**descriptors, "result": write}
        self._out, out = os.pipe()
        self._err, err = os.pipe()
        ends += [out, err]
        self.environment = {
            "LISTEN_FDS": str(len(descriptors)),
            "LISTEN_FDNAMES": ":".join(descriptors),
            "LISTEN_PID": "1",
        }
        # High numbers first, so that no source is overwritten by an earlier target.
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 200) for fd in descriptors.values()]
        actions = [(os.POSIX_SPAWN_DUP2, out, 1), (os.POSIX_SPAWN_DUP2, err, 2)]
        actions += [(os.POSIX_SPAWN_DUP2, fd, 3 + n) for n, fd in enumerate(high)]
        self._began = time.monotonic()
        self.pid = os.posix_spawn(argv[0], argv, self.environment, file_actions=actions)
        for fd in high + ends:
            os.close(fd)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> Outcome:
        out, err = _drain(self._out), _drain(self._err)
        result = _drain(self._result) if self._result is not None else b""
        _, status, usage = os.wait4(self.pid, 0)
        seconds = time.monotonic() - self._began
        code = os.waitstatus_to_exitcode(status)
        return Outcome(code, out, err, result, seconds, usage.ru_maxrss)


def _drain(fd: int) -> bytes:
    with os.fdopen(fd, "rb") as file:
        return file.read()


class Helper:
    """Starts the helper as the launcher does: isolated, only `supervisor/vault` in view."""

    def __init__(self, app: Path, state: Path, tpm: Swtpm) -> None:
        self.app = app
        self.state = state
        self.tpm = tpm
        self.where = tpm.where
        self.backend = "raw"
        self.code = b""

    @property
    def file(self) -> Path:
        return self.state / "vault.json"

    def start(self, *arguments: str, wrap: tuple[str, ...] = (), **descriptors: int) -> Running:
        program = [PYTHON, "-I", str(self.app / "supervisor" / "vault")]
        options = ["--dir", str(self.state), "--tpm", self.where, "--backend", self.backend]
        return Running([*wrap, *program, *arguments, *options], descriptors)

    def run(self, *arguments: str, wrap: tuple[str, ...] = (), **descriptors: int) -> Outcome:
        return self.start(*arguments, wrap=wrap, **descriptors).wait()

    def ok(self, *arguments: str) -> Outcome:
        outcome = self.run(*arguments)
        assert outcome.code == 0, outcome.stderr.decode()
        return outcome

    def begin(self, *arguments: str, **given: bytes) -> Running:
        """Start a verb with descriptors that give these bytes."""
        ends = {name: os.pipe() for name in given}
        running = self.start(*arguments, **{name: read for name, (read, _) in ends.items()})
        for name, (read, write) in ends.items():
            os.close(read)
            with contextlib.suppress(BrokenPipeError), os.fdopen(write, "wb") as file:
                file.write(given[name])
        return running

    def give(self, *arguments: str, **given: bytes) -> Outcome:
        return self.begin(*arguments, **given).wait()

    def new_code(self) -> bytes:
        """What `recovery-code` writes to the terminal."""
        read, write = os.pipe()
        outcome = self.run("recovery-code", code=write)
        os.close(write)
        code = _drain(read)
        assert outcome.code == 0, outcome.stderr.decode()
        return code

    def begin_set(self, name: str, value: bytes) -> Running:
        return self.begin("set", name, secret=value)

    def set(self, name: str, value: bytes) -> Outcome:
        return self.begin_set(name, value).wait()

    @contextlib.contextmanager
    def server(self) -> Iterator[Callable[..., Fault | None]]:
        """A function that runs a verb in one long-lived process and gives its fault.

        `trouble` is (kind, step) of driver.Trouble; a verb that was killed gives INTERNAL.
        """
        served = subprocess.Popen(
            [PYTHON, "-I", str(DRIVER), str(self.app), self.where, "serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert served.stdin is not None and served.stdout is not None
        into, out = served.stdin, served.stdout

        def ask(
            *arguments: str, trouble: tuple[str, int] | None = None, **given: bytes
        ) -> Fault | None:
            options = ["--dir", str(self.state), "--backend", self.backend]
            texts = {name: value.decode() for name, value in given.items()}
            line = [[*arguments, *options], texts, trouble and [*trouble, self.tpm.pid]]
            into.write(json.dumps(line).encode() + b"\n")
            into.flush()
            answer = out.readline()
            assert answer, "the process is gone"
            return fault_of(int(answer))

        try:
            yield ask
        finally:
            into.close()
            served.wait()
            out.close()

    def driver(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        """A step of driver.py on the same code with the same TPM."""
        return subprocess.run(
            [PYTHON, "-I", str(DRIVER), str(self.app), self.where, *arguments],
            capture_output=True,
            timeout=60,
        )
