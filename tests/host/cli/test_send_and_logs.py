"""What meets the gateway or a workload's words is never root, and what it shows is harmless."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    Pong,
    Request,
    TextMessage,
)

from supervisor.cli import exits

ESTABLISHED = "01"  # proc_net_tcp(5), include/net/tcp_states.h
REPLY = {"reply": "Dear you\x1b]0;owned\x07", "steps": {"generate_reply": "x"}, "request": "ab"}


def uid_of_peer(client: int, server: int) -> int:
    """The uid that owns the client's end of a connection between two loopback ports.

    Both ports are needed, and the state: other connections, and sockets of uid 0 that only wait
    for late packets (TIME_WAIT), may share the client's port.
    """
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        ports = [int(end.rpartition(":")[2], 16) for end in fields[1:3]]
        if ports == [client, server] and fields[3] == ESTABLISHED:
            return int(fields[7])
    raise AssertionError("no such connection")


class Gateway:
    """A server of the test on loopback: `talk` has each connection in turn."""

    def __init__(self, talk: Callable[[Any, socket.socket], None]) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.uids: list[int] = []
        self.requests: list[Any] = []
        self.talk = talk
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        while True:
            try:
                conn, address = self.listener.accept()
            except OSError:
                return
            with conn:
                conn.settimeout(10)
                self.uids.append(uid_of_peer(address[1], self.port))
                self.talk(self, conn)

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join()


def read_http(conn: socket.socket) -> tuple[bytes, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        data += conn.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1]) for line in head.lower().split(b"\r\n")
        if line.startswith(b"content-length:")
    )  # fmt: skip
    while len(body) < length:
        body += conn.recv(65536)
    return head, body


def rest(status: int, answer: object) -> Callable[[Gateway, socket.socket], None]:
    def talk(gateway: Gateway, conn: socket.socket) -> None:
        gateway.requests.append(read_http(conn))
        raw = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        conn.sendall(b"HTTP/1.1 %d x\r\nContent-Length: %d\r\n\r\n" % (status, len(raw)) + raw)

    return talk


def websocket(*events: Any) -> Callable[[Gateway, socket.socket], None]:
    """A server by wsproto, an implementation that is not ours."""

    def talk(gateway: Gateway, conn: socket.socket) -> None:
        server = WSConnection(ConnectionType.SERVER)
        while True:
            try:
                data = conn.recv(65536)
            except ConnectionResetError:
                return
            if not data:
                return
            server.receive_data(data)
            for event in server.events():
                gateway.requests.append(event)
                if isinstance(event, Request):
                    conn.sendall(server.send(AcceptConnection()))
                elif isinstance(event, TextMessage) and event.message_finished:
                    for each in events:
                        conn.sendall(each if isinstance(each, bytes) else server.send(each))
                elif isinstance(event, CloseConnection):
                    if server.state is ConnectionState.REMOTE_CLOSING:
                        conn.sendall(server.send(event.response()))
                    return

    return talk


@pytest.fixture
def gateway(place: Any) -> Iterator[Callable[..., Gateway]]:
    made: list[Gateway] = []

    async def issue(request: Any) -> object:
        place.seen.append(request.arguments)
        return {"token": "aa.bb.cc"}

    place.serve({"token.issue": issue})

    def make(talk: Callable[[Gateway, socket.socket], None]) -> Gateway:
        made.append(Gateway(talk))
        place.port = made[-1].port
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_rest_message_goes_as_nobody_with_a_token_for_that_adapter(place, gateway, tmp_path):
    mail = tmp_path / "mail.eml"
    mail.write_bytes(b"Subject: caf\xc3\xa9\n\nhello \xff\n")
    mail.chmod(0o600)
    server = gateway(rest(200, REPLY))
    done = place.run("send", str(mail))
    assert done.returncode == exits.OK, done.stderr
    assert done.stdout == "Dear you\\x1b]0;owned\\x07\n"
    assert server.uids == [65534]
    head, body = server.requests[0]
    assert head.startswith(b"POST /rest/messages HTTP/1.1\r\n")
    assert b"authorization: bearer aa.bb.cc" in head.lower()
    assert json.loads(body) == {
        "workflow": "email_management",
        "content": "Subject: café\n\nhello \ufffd\n",
    }
    assert place.seen[0]["workload"] == "adapter.rest"
    assert json.loads(place.run("send", "--json", str(mail)).stdout) == REPLY


def test_refusal_is_shown_with_its_reason(place, gateway):
    gateway(rest(403, {"error": {"code": "model_not_allowed", "message": "executor.toml:42 no"}}))
    done = place.run("send", "-", stdin="hello")
    assert done.returncode == exits.FAILED
    assert "executor.toml:42 no (model_not_allowed, status 403)" in done.stderr


@pytest.mark.parametrize("raw", [b"", b"[]", b"\xff\xfe", b'{"error": 7}', b"[" * 100_000])
def test_odd_answer_is_an_error_and_no_traceback(place, gateway, raw):
    gateway(rest(502, raw))
    done = place.run("send", "-", stdin="hello")
    assert done.returncode == exits.FAILED
    assert "Traceback" not in done.stderr


def test_gateway_that_breaks_off_or_is_absent(place, gateway):
    gateway(lambda _gateway, conn: conn.recv(10) and None)
    done = place.run("send", "-", stdin="x" * 100)
    assert (done.returncode, "broke off" in done.stderr) == (exits.FAILED, True), done.stderr
    with socket.create_server(("127.0.0.1", 0)) as unused:
        place.port = unused.getsockname()[1]
    done = place.run("send", "-", stdin="x")
    assert "nothing listens" in done.stderr


def test_websocket_message_with_fragments_pings_and_steps(place, gateway):
    long = "ü" * 70_000
    server = gateway(
        websocket(
            TextMessage('{"kind": "step", "step": "extract_entities", "status": "started"}'),
            Ping(b"are you there"),
            TextMessage('{"kind": "reply", "text": "', message_finished=False),
            TextMessage(long, message_finished=False),
            TextMessage('"}'),
        )
    )
    done = place.run("send", "--protocol", "websocket", "-", stdin="y" * 70_000)
    assert done.returncode == exits.OK, done.stderr
    assert done.stdout == long + "\n"
    assert server.uids == [65534]
    request = server.requests[0]
    assert request.target == "/websocket/"
    assert dict(request.extra_headers)[b"authorization"] == b"Bearer aa.bb.cc"
    text = "".join(e.data for e in server.requests if isinstance(e, TextMessage))
    assert json.loads(text)["content"] == "y" * 70_000
    assert any(isinstance(e, Pong) and e.payload == b"are you there" for e in server.requests)
    assert place.seen[0]["workload"] == "adapter.websocket"


@pytest.mark.parametrize(
    "events",
    [
        [BytesMessage(b"binary")],
        [CloseConnection(1011, "went wrong")],
        [b"\x81\xff" + b"\xff" * 8],
        [b"\xf1\x00"],
        [b"\x81\x7f" + b"\x7f" * 8],
        [b"\x80\x00"],
    ],
)
def test_broken_websocket_server_is_an_error(place, gateway, events):
    gateway(websocket(*events))
    done = place.run("send", "--protocol", "websocket", "-", stdin="x")
    assert done.returncode == exits.FAILED
    assert "broke off" in done.stderr
    assert "Traceback" not in done.stderr


def test_too_long_a_websocket_message_names_the_limit(place, gateway):
    gateway(websocket(CloseConnection(1009, "a message has at most 1048576 bytes")))
    done = place.run("send", "--protocol", "websocket", "-", stdin="x")
    assert done.returncode == exits.FAILED
    assert "too long" in done.stderr and "at most 1048576 bytes" in done.stderr
    assert "body_max" in done.stderr and "send less" in done.stderr


def test_reason_is_read_although_the_message_was_cut_short(place, gateway):
    def talk(_gateway: Gateway, conn: socket.socket) -> None:
        server = WSConnection(ConnectionType.SERVER)
        server.receive_data(conn.recv(65536))
        list(server.events())
        conn.sendall(server.send(AcceptConnection()))
        conn.recv(1000)
        conn.sendall(server.send(CloseConnection(1009, "at most a little")))
        conn.shutdown(socket.SHUT_WR)
        while conn.recv(65536):
            pass

    gateway(talk)
    done = place.run("send", "--protocol", "websocket", "-", stdin="x" * 2_000_000)
    assert "at most a little" in done.stderr and "send less" in done.stderr


def test_websocket_error_object_and_refused_upgrade(place, gateway):
    error = {"kind": "error", "code": "unknown_workflow", "message": "no such", "status": 404}
    gateway(websocket(TextMessage(json.dumps(error))))
    done = place.run("send", "--protocol", "websocket", "-", stdin="x")
    assert "no such (unknown_workflow, status 404)" in done.stderr
    raw = json.dumps({"error": {"code": "bad_token", "message": "expired"}}).encode()

    def refuse(_gateway: Gateway, conn: socket.socket) -> None:
        conn.recv(65536)
        conn.sendall(b"HTTP/1.1 401 x\r\nContent-Length: %d\r\n\r\n" % len(raw) + raw)

    gateway(refuse)
    done = place.run("send", "--protocol", "websocket", "-", stdin="x")
    assert "expired (bad_token, status 401)" in done.stderr


def test_logs_are_shown_without_escape_sequences(place):
    logs = place.folder / "state/logs"
    (logs / "adapter.rest.log").write_bytes(b"one\ntwo \x1b[2Jgone\n\xc2\x9b31m\n\xff\nhalf")
    (logs / "executor.main.log").write_text("other\n")
    done = place.run("logs", "adapter.rest")
    assert done.returncode == exits.OK, done.stderr
    assert done.stdout == "one\ntwo \\x1b[2Jgone\n\\x9b31m\n\ufffd\n"
    assert place.run("logs", "adapter.rest", "-n", "1").stdout == "\ufffd\n"
    assert "executor.main: other" in place.run("logs").stdout


def test_logs_follow_as_nobody_and_stop_quietly(place):
    import signal
    import subprocess

    path = place.folder / "state/logs/adapter.rest.log"
    path.write_text("one\n")
    path.chmod(0o600)
    command = [*place.run("--help").args[:-1], "logs", "-f", "adapter.rest"]

    def reset() -> None:  # whoever runs the tests in the background ignores it
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=reset) as process:
        try:
            assert process.stdout.readline() == "one\n"
            with path.open("a") as file:
                file.write("two\n")
            assert process.stdout.readline() == "two\n"
            status = Path(f"/proc/{process.pid}/status").read_text()
            fields = dict(line.split(":\t", 1) for line in status.splitlines())
            assert set(fields["Uid"].split()) == set(fields["Gid"].split()) == {"65534"}
            assert [int(fields[f"Cap{n}"], 16) for n in ("Inh", "Prm", "Eff", "Amb")] == [0] * 4
            assert fields["NoNewPrivs"] == "1"
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(5) == exits.INTERRUPTED


def test_audit_is_in_the_order_of_time(place):
    audit = place.folder / "state/audit"
    first = {"time": "2026-11-23T02:00:00Z", "hop": "gateway", "event": "request",
             "workload": "adapter.rest", "verdict": "allowed", "status": 200}  # fmt: skip
    second = {**first, "time": "2026-11-23T02:00:01Z", "hop": "egress", "verdict": "refused"}
    (audit / "service.egress.jsonl").write_text(json.dumps(second) + "\n")
    (audit / "service.ingress.jsonl").write_text(json.dumps(first) + "\nnot json\n")
    done = place.run("logs", "--audit")
    lines = [line for line in done.stdout.splitlines() if "2026" in line]
    assert lines == [
        "2026-11-23T02:00:00Z gateway adapter.rest request allowed status=200",
        "2026-11-23T02:00:01Z egress adapter.rest request refused status=200",
    ]
    raw = place.run("logs", "service.egress", "--json").stdout
    assert json.loads(raw) == second


def test_audit_of_a_workload_without_an_audit_file_points_at_its_log(place):
    (place.folder / "state/logs/adapter.rest.log").write_text("one\n")
    done = place.run("logs", "--audit", "adapter.rest")
    assert done.returncode == exits.FAILED
    assert "adapter.rest keeps its records in its log" in done.stderr
    assert "anchorhold logs adapter.rest\n" in done.stderr
    assert "there is no" in place.run("logs", "--audit", "adapter.nope").stderr


@pytest.mark.parametrize("name", ["../../etc/shadow", "/etc/shadow", "-x", "nope"])
def test_no_other_file_can_be_named(place, name):
    done = place.run("logs", "--", name)
    assert done.returncode in (exits.FAILED, exits.USAGE)
    assert done.stdout == ""


def test_symbolic_link_among_the_logs_is_not_followed(place):
    secret = place.folder / "secret"
    secret.write_text("secret\n")
    (place.folder / "state/logs/adapter.rest.log").symlink_to(secret)
    done = place.run("logs", "adapter.rest")
    assert done.returncode == exits.FAILED
    assert "secret" not in done.stdout
