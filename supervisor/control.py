"""The control socket: how the command line talks to the supervisor.

A Unix stream socket, mode 0600. The peer's uid (SO_PEERCRED, unix(7)) is checked before one byte is
read. One request per connection: a JSON line `{"verb": ..., "arguments": {...}}`, at most 64 KiB,
with up to four descriptors. Replies: `{"progress": {...}}` lines, then exactly one
`{"result": ...}` or `{"error": {"code", "message", "fix", "exit"}}`. A client that leaves cancels
its handler.

The client part imports no asyncio, because the command line must start fast.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sandbox import passing
from supervisor.cli import exits

if TYPE_CHECKING:
    import asyncio

REQUEST_MAX = 64 * 1024
REPLY_MAX = 8 * 1024 * 1024
FDS_MAX = 4
CLIENTS_MAX = 16
_REQUEST_TIME = 10.0  # seconds in which a request must be complete

Progress = Callable[[Mapping[str, Any]], None]


class ControlError(Exception):
    """A request failed. `code` is stable, `fix` says what to do, `exit` is the CLI's exit code."""

    def __init__(self, code: str, message: str, fix: str = "", exit: int = exits.FAILED) -> None:
        super().__init__(message)
        self.code = code
        self.fix = fix
        self.exit = exit

    def as_json(self) -> dict[str, Any]:
        """The error as it goes over the socket."""
        return {"code": self.code, "message": str(self), "fix": self.fix, "exit": self.exit}


@dataclass(frozen=True, slots=True)
class Request:
    """One request. `fds` are closed after the handler: duplicate what must live longer.

    `progress` sends one progress line; its content is for display.
    """

    verb: str
    arguments: dict[str, Any]
    fds: tuple[int, ...]
    progress: Progress


Handler = Callable[[Request], Awaitable[object]]


# --- client ---------------------------------------------------------------------------------------


def call(
    path: str | Path,
    verb: str,
    arguments: Mapping[str, Any] | None = None,
    fds: tuple[int, ...] = (),
    on_progress: Progress | None = None,
) -> Any:
    """Ask the supervisor at `path` and wait for its result (plain JSON data).

    Raises ControlError: the supervisor's own, `not_running`, `not_allowed` or `broken_off`.
    """
    line = json.dumps({"verb": verb, "arguments": dict(arguments or {})}).encode() + b"\n"
    if len(line) > REQUEST_MAX:
        raise ControlError(
            "too_large", f"{verb}: more than {REQUEST_MAX} bytes of arguments", exit=exits.USAGE
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        _connect(sock, Path(path))
        try:
            sent = socket.send_fds(sock, [line], list(fds))
            sock.sendall(line[sent:])
        except (BrokenPipeError, ConnectionResetError):
            pass  # refused before it read us; its reason is waiting to be read
        with sock.makefile("rb") as replies:
            return _result(replies, verb, on_progress)


def _connect(sock: socket.socket, path: Path) -> None:
    try:
        sock.connect(str(path))
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
        raise ControlError(
            "not_running",
            f"Anchorhold is not running: nothing answers at {path}",
            "start it with `anchorhold up` or `systemctl start anchorhold`",
            exits.NOT_RUNNING,
        ) from None
    except PermissionError:
        raise ControlError(
            "not_allowed",
            f"{path} may be used by root only",
            "run the command with sudo",
            exits.NOT_ALLOWED,
        ) from None


def _result(replies: Any, verb: str, on_progress: Progress | None) -> Any:
    try:
        while line := replies.readline(REPLY_MAX):
            reply = json.loads(line)
            if "progress" in reply:
                if on_progress:
                    on_progress(reply["progress"])
            elif "error" in reply:
                error = reply["error"]
                raise ControlError(
                    error["code"], error["message"], error.get("fix", ""), error["exit"]
                )
            else:
                return reply["result"]
    except (ConnectionResetError, ValueError, KeyError):
        pass
    raise ControlError(
        "broken_off",
        f"the supervisor ended the connection before it answered `{verb}`",
        "look at its log: `journalctl -u anchorhold` or the terminal it runs in",
    )


# --- server ---------------------------------------------------------------------------------------


class ControlServer:
    """Serves `handlers` (verb → coroutine function) at `path` until closed; needs a running loop.

    A handler's ControlError, or any exception with a string `code` (and `fix`), goes to the client
    as it is; anything else is "internal", with the traceback on the supervisor's stderr.
    `uids` are the users who may ask: root and whoever runs the supervisor.
    """

    def __init__(self, path: str | Path, handlers: Mapping[str, Handler]) -> None:
        self._path = Path(path)
        self._handlers = dict(handlers)
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None
        self.uids = frozenset({0, os.geteuid()})

    async def start(self) -> None:
        """Listen. ControlError `already_running` when another supervisor answers there."""
        import asyncio

        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            self._clear_stale()
            mask = os.umask(0o177)  # from the first moment 0600, not after a chmod
            try:
                listener.bind(str(self._path))
            finally:
                os.umask(mask)
            listener.listen(CLIENTS_MAX)
        except BaseException:
            listener.close()
            raise
        self._listener = listener
        asyncio.get_running_loop().add_reader(listener, self._accept)

    async def close(self) -> None:
        """Stop listening, cancel what is under way, remove the socket."""
        import asyncio

        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None
            self._path.unlink(missing_ok=True)
        current = asyncio.current_task()  # `stop` may be a handler that closes its own server
        under_way = [task for task in self._tasks if task is not current]
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)

    def _clear_stale(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(str(self._path))
            except FileNotFoundError:
                return
            except ConnectionRefusedError:
                self._path.unlink()
                return
        raise ControlError(
            "already_running",
            f"another supervisor answers at {self._path}",
            "stop it with `anchorhold stop`, or give the other one its own paths.run",
        )

    def _accept(self) -> None:
        import asyncio

        assert self._listener is not None  # noqa: S101 - only called while listening
        try:
            conn, _address = self._listener.accept()
        except OSError:
            return  # gone again, or out of descriptors: it will ask again
        conn.setblocking(False)
        raw = conn.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        _pid, uid, _gid = struct.unpack("3i", raw)
        if uid not in self.uids:
            text = f"uid {uid} may not control this supervisor"
            _refuse(conn, ControlError("not_allowed", text, "run it as root", exits.NOT_ALLOWED))
        elif len(self._tasks) >= CLIENTS_MAX:
            _refuse(
                conn, ControlError("busy", f"{CLIENTS_MAX} requests are under way", "try again")
            )
        else:
            task = asyncio.get_running_loop().create_task(self._serve(conn))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, conn: socket.socket) -> None:
        import asyncio

        fds: list[int] = []
        try:
            async with asyncio.timeout(_REQUEST_TIME):
                line = await _receive(conn, fds)
            reader, writer = await asyncio.open_unix_connection(sock=conn)
        except (OSError, TimeoutError, ControlError) as error:
            wrong = error if isinstance(error, ControlError) else None
            _refuse(conn, wrong or ControlError("bad_request", "no complete request came"))
            _close(fds)
            return
        handling = asyncio.ensure_future(self._handle(line, tuple(fds), writer))
        leaving = asyncio.ensure_future(reader.read(1))  # EOF, or a second request: both end it
        try:
            await asyncio.wait({handling, leaving}, return_when=asyncio.FIRST_COMPLETED)
            handling.cancel()
            reply = await handling
            with contextlib.suppress(OSError):
                writer.write(json.dumps(reply).encode() + b"\n")
                await writer.drain()
        except asyncio.CancelledError:
            if not handling.cancelled():  # the server closes, not the client
                handling.cancel()
                raise
        finally:
            leaving.cancel()
            writer.close()
            _close(fds)

    async def _handle(
        self, line: bytes, fds: tuple[int, ...], writer: asyncio.StreamWriter
    ) -> dict[str, Any]:
        def progress(what: Mapping[str, Any]) -> None:
            if not writer.is_closing():
                writer.write(json.dumps({"progress": dict(what)}).encode() + b"\n")

        try:
            verb, arguments = _parse(line)
            handler = self._handlers.get(verb)
            if handler is None:
                raise ControlError("unknown_verb", f"unknown verb: {verb}", exit=exits.USAGE)
            return {"result": await handler(Request(verb, arguments, fds, progress))}
        except ControlError as error:
            return {"error": error.as_json()}
        except Exception as error:
            code = getattr(error, "code", None)
            if not isinstance(code, str):
                sys.excepthook(type(error), error, error.__traceback__)
                return {"error": ControlError("internal", _INTERNAL, _INTERNAL_FIX).as_json()}
            exit_code = getattr(error, "exit", exits.FAILED)
            fix = str(getattr(error, "fix", ""))
            return {"error": ControlError(code, str(error), fix, exit_code).as_json()}


_INTERNAL = "the supervisor failed at this request; that is a bug"
_INTERNAL_FIX = "its log has the traceback: `journalctl -u anchorhold` or the terminal it runs in"


async def _receive(conn: socket.socket, fds: list[int]) -> bytes:
    """The request line. Descriptors are taken from the first message only and put into `fds`."""
    import asyncio

    loop = asyncio.get_running_loop()
    line = b""
    while not line.endswith(b"\n"):
        readable: asyncio.Future[None] = loop.create_future()
        loop.add_reader(conn, lambda done=readable: done.done() or done.set_result(None))  # type: ignore[misc]  # a default argument binds the future
        try:
            await readable
        finally:
            loop.remove_reader(conn)
        room = REQUEST_MAX + 1 - len(line)
        if line:
            part = conn.recv(room)
        else:
            part, taken, flags = passing.receive(conn, room, FDS_MAX)
            fds.extend(taken)
            if flags & socket.MSG_CTRUNC:
                raise ControlError("bad_request", f"more than {FDS_MAX} descriptors")
        line += part
        if not part:
            raise ControlError("bad_request", "the request did not end with a newline")
        if len(line) > REQUEST_MAX:
            raise ControlError("too_large", f"a request has at most {REQUEST_MAX} bytes")
    return line


def _parse(line: bytes) -> tuple[str, dict[str, Any]]:
    try:
        request = json.loads(line)
        verb, arguments = request["verb"], request["arguments"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ControlError(
            "bad_request", 'a request is one line: {"verb": ..., "arguments": {...}}'
        ) from None
    if len(request) != 2 or not isinstance(verb, str) or not isinstance(arguments, dict):
        raise ControlError("bad_request", "verb is text, arguments an object, and nothing else")
    return verb, arguments


def _refuse(conn: socket.socket, error: ControlError) -> None:
    with contextlib.suppress(OSError):
        conn.send(json.dumps({"error": error.as_json()}).encode() + b"\n", socket.MSG_NOSIGNAL)
    conn.close()


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
