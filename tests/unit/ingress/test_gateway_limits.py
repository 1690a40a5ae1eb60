"""Limits, outages and endings, each on a gateway with its own settings."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from gateway_rig import REST, ROOT, SOCKET, Client, Gateway, read_answer
from wsproto import events as ws

Start = Callable[..., Gateway]


def test_a_slow_head_is_cut_off(start: Start) -> None:
    gateway = start(head_timeout=0.5)
    began = time.monotonic()
    with gateway.connect() as sock:
        sock.sendall(b"GET /rest/echo HTTP/1.1\r\n")
        answer = read_answer(sock)
    assert (answer.status, answer.code) == (408, "head_timeout")
    assert 0.4 < time.monotonic() - began < 3
    assert gateway.record(answer)["verdict"] == "refused"
    assert gateway.ask().status == 200  # positive control


def test_a_dripping_head_does_not_extend_its_time(start: Start) -> None:
    gateway = start(head_timeout=0.6)
    with gateway.connect() as sock:
        began = time.monotonic()
        try:
            for byte in gateway.head():
                sock.sendall(bytes([byte]))
                time.sleep(0.1)
                if time.monotonic() - began > 3:
                    break
        except OSError:
            pass
        assert time.monotonic() - began < 3


def test_a_silent_connection_is_closed_without_a_record(start: Start) -> None:
    gateway = start(head_timeout=0.3)
    with gateway.connect() as sock:
        assert sock.recv(1) == b""
    assert gateway.records() == []


def test_held_heads_lock_nobody_out(start: Start) -> None:
    gateway = start(connections=8, head_timeout=30.0)
    proven = Client(gateway)
    held = [gateway.connect() for _ in range(7)]
    for sock in held:
        sock.sendall(b"GET /rest/echo HTTP/1.1\r\n")
    time.sleep(0.4)
    for _ in range(3):
        assert gateway.ask().status == 200
    assert proven.say("still here") == "still here", "who has shown a token keeps the place"
    gone = 0
    for sock in held:
        sock.setblocking(False)
        try:
            gone += sock.recv(1) == b""
        except BlockingIOError:
            pass
        except ConnectionResetError:
            gone += 1
        sock.close()
    assert 1 <= gone <= 3, "no more than were needed"
    proven.close()


def test_refusals_without_end_are_not_kept(start: Start) -> None:
    """Up to twice the limit are told why; what comes beyond is closed unread."""
    gateway = start(connections=4, head_timeout=30.0, unproven=64)
    held = [gateway.connect() for _ in range(4)]
    time.sleep(0.2)
    crowd = [gateway.connect() for _ in range(40)]
    answers = []
    for sock in crowd:
        try:
            answers.append(sock.recv(64)[:12])
        except ConnectionResetError:
            answers.append(b"")
    assert answers.count(b"HTTP/1.1 503") >= 4
    assert answers.count(b"") >= 20
    for sock in held + crowd:
        sock.close()
    time.sleep(0.3)
    assert gateway.ask().status == 200


def test_a_stalled_body_is_cut_off(start: Start) -> None:
    gateway = start(idle_timeout=0.5)
    with gateway.connect() as sock:
        sock.sendall(gateway.head("POST", "/rest/echo", "Content-Length: 10") + b"half")
        answer = read_answer(sock)
    assert (answer.status, answer.code) == (408, "body_timeout")
    assert not gateway.adapter.seen[-1].whole


def test_a_dripping_body_is_cut_off(start: Start) -> None:
    gateway = start(body_timeout=0.6)
    with gateway.connect() as sock:
        sock.sendall(gateway.head("POST", "/rest/echo", "Content-Length: 100"))
        began = time.monotonic()
        sock.settimeout(0.1)
        got = b""
        while not got and time.monotonic() - began < 5:
            sock.sendall(b"x")
            try:
                got = sock.recv(4096)
            except TimeoutError:
                continue
    assert got.startswith(b"HTTP/1.1 408")


def test_a_silent_adapter_is_given_up(start: Start) -> None:
    gateway = start(answer_timeout=0.5)
    answer = gateway.ask("GET", "/rest/mute")
    assert (answer.status, answer.code) == (504, "adapter_timeout")
    assert gateway.record(answer)["verdict"] == "failed"


def test_a_client_that_takes_nothing_is_dropped(start: Start) -> None:
    gateway = start(idle_timeout=0.5)
    with gateway.connect() as sock:
        sock.sendall(gateway.head("GET", "/rest/big"))
        record = gateway.wait_for(gateway.records)[0]
    assert (record["verdict"], record["reason"]) == ("failed", "client_gone")


def test_an_idle_websocket_is_closed(start: Start) -> None:
    gateway = start(websocket_idle=0.5)
    client = Client(gateway)
    assert client.say("hi") == "hi"
    event = client.next()
    assert (event.code, event.reason) == (1001, "idle")
    client.close()


def test_connections_at_once(start: Start) -> None:
    gateway = start(connections=3, head_timeout=30.0, unproven=3)
    held = [gateway.connect() for _ in range(3)]
    time.sleep(0.1)
    answer = gateway.ask()
    assert (answer.status, answer.code) == (503, "too_many_connections")
    assert gateway.record(answer)["reason"] == "too_many_connections"
    for sock in held:
        sock.close()
    time.sleep(0.1)
    assert gateway.ask().status == 200


def test_requests_at_once_of_one_client(start: Start) -> None:
    gateway = start(client_concurrent=2)
    clients = [Client(gateway) for _ in range(2)]
    answer = gateway.ask()
    assert (answer.status, answer.code) == (429, "too_many_concurrent")
    assert answer.headers["retry-after"] == "1"
    assert gateway.ask(token=gateway.issuer.token(sub="bob")).status == 200  # nobody else suffers
    for client in clients:
        client.close()
    gateway.wait_for(lambda: gateway.ask().status == 200)


def test_requests_per_second_of_one_client(start: Start) -> None:
    gateway = start(client_rate=1.0, client_burst=3)
    answers = [gateway.ask() for _ in range(4)]
    assert [answer.status for answer in answers] == [200, 200, 200, 429]
    assert answers[-1].code == "too_fast"
    assert gateway.ask(token=gateway.issuer.token(sub="bob")).status == 200
    time.sleep(1.1)
    assert gateway.ask().status == 200


@pytest.mark.parametrize(
    ("reply", "status", "code"),
    [((2, "workload is not running"), 503, "adapter_down"),
     ((1, "not allowed"), 502, "adapter_unreachable"),
     ((5, "no route"), 503, "adapter_down")],
)  # fmt: skip
def test_the_broker_refuses(start: Start, reply: tuple[int, str], status: int, code: str) -> None:
    gateway = start(routes={f"workload.{REST}:8080": reply})
    answer = gateway.ask()
    assert (answer.status, answer.code) == (status, code)
    assert reply[1].encode() in answer.body
    assert gateway.record(answer)["verdict"] == "failed"
    client = Client(gateway)  # the other workload is served
    assert client.say("hi") == "hi"
    client.close()


def test_nothing_listens_in_the_workload(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    answer = start(routes={f"workload.{REST}:8080": port}).ask()
    assert (answer.status, answer.code) == (503, "adapter_down")


def test_nothing_is_forwarded_that_cannot_be_recorded(start: Start) -> None:
    gateway = start(log="/dev/full")
    answer = gateway.ask()
    assert (answer.status, answer.code) == (503, "audit_unwritable")
    assert gateway.ask(token=None).code == "audit_unwritable"
    assert Client(gateway).opening.status_code == 503
    assert gateway.adapter.connections == 0
    assert gateway.broker.asked == []
    assert "audit_unwritable" in gateway.close()


def test_records_that_stop_fitting(start: Start, tmp_path: Path) -> None:
    """A file size limit stands in for a full disk: it fails in the middle of a line."""
    gateway = start()
    assert gateway.ask().status == 200
    gateway.wait_for(gateway.records)
    import resource

    room = gateway.log.stat().st_size + 100
    resource.prlimit(gateway.process.pid, resource.RLIMIT_FSIZE, (room, -1))
    seen = len(gateway.adapter.seen)
    assert gateway.ask().code == "audit_unwritable"
    assert gateway.ask().code == "audit_unwritable"
    assert len(gateway.adapter.seen) == seen
    resource.prlimit(gateway.process.pid, resource.RLIMIT_FSIZE, (1 << 30, -1))
    answer = gateway.ask()
    assert answer.status == 200
    gateway.wait_for(lambda: gateway.log.read_bytes().endswith(b"}\n"))
    lines = gateway.log.read_text().splitlines()
    broken = [line for line in lines if not line.endswith("}")]
    assert len(broken) == 1  # the torn one, and the next begins on a line of its own
    assert json.loads(lines[-1])["request"] == answer.headers["x-request-id"]


@pytest.mark.parametrize("used", [True, False])
def test_lost_broker_ends_the_process_so_that_it_is_started_again(start: Start, used: bool) -> None:
    gateway = start()
    if used:
        assert gateway.ask().status == 200
    else:
        assert gateway.raw(b"nonsense\r\n\r\n").status == 400  # it is up
    assert gateway.process.poll() is None
    gateway.broker.close()
    assert gateway.process.wait(5) == 1
    assert "broker_lost" in gateway.close()


def test_sigterm_ends_everything_within_two_seconds(start: Start) -> None:
    gateway = start()
    client = Client(gateway)
    assert client.say("hi") == "hi"
    sock = gateway.connect()
    sock.sendall(gateway.head("GET", "/rest/vanish"))
    while b"first" not in sock.recv(4096):
        pass
    seen = gateway.adapter.seen[-1]
    began = time.monotonic()
    gateway.process.send_signal(signal.SIGTERM)
    event = client.next()
    assert isinstance(event, ws.CloseConnection)
    assert event.code == 1001
    assert gateway.process.wait(2) == 0
    assert time.monotonic() - began < 2
    assert seen.vanished.wait(2)
    assert {record["reason"] for record in gateway.records()} == {"gateway_stopping"}
    with pytest.raises(ConnectionRefusedError):
        gateway.connect()
    client.close()
    sock.close()


def test_tokens_never_reach_log_or_stderr(start: Start) -> None:
    gateway = start()
    token = gateway.issuer.token(SOCKET)
    client = Client(gateway, token=None, protocols=("bearer", token))
    assert client.say("hi") == "hi"
    client.close()
    gateway.ask(token=token)
    gateway.ask(token=token + "x")
    gateway.raw(f"GET /rest/ HTTP/1.1\r\nAuthorization: Bearer {token}\r\nX\r\n\r\n".encode())
    out = gateway.close() + gateway.log.read_text()
    assert all(part not in out for part in token.split("."))


def test_idle_memory(start: Start) -> None:
    """The budget of the process table: 34 MB resident, with requests already served."""
    gateway = start()
    for _ in range(20):
        assert gateway.ask().status == 200
    status = Path(f"/proc/{gateway.process.pid}/status").read_text()
    assert int(status.split("VmRSS:")[1].split()[0]) < 34 * 1024


def test_ssl_is_not_loaded(start: Start) -> None:
    gateway = start()
    assert gateway.ask().status == 200
    maps = Path(f"/proc/{gateway.process.pid}/maps").read_text()
    assert "_asyncio" in maps  # positive control: extension modules are seen here
    assert "_ssl" not in maps


@pytest.mark.parametrize(
    ("env", "said"),
    [({}, "LISTEN_FDS is missing"),
     ({"LISTEN_FDS": "1", "LISTEN_FDNAMES": "config"}, "Descriptor missing: audit, broker"),
     ({"LISTEN_FDS": "2", "LISTEN_FDNAMES": "config"}, "LISTEN_FDNAMES names 1")],
)  # fmt: skip
def test_a_start_without_descriptors(env: dict[str, str], said: str) -> None:
    command = [sys.executable, "-I", str(ROOT / "proxy"), "ingress"]
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$@" 3</dev/null', "sh", *command],
        env=env, capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert done.returncode == 78
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_usage() -> None:
    done = subprocess.run(
        [sys.executable, "-I", str(ROOT / "proxy"), "sideways"],
        capture_output=True, text=True, timeout=20, check=False, env=os.environ | {},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("usage: python3 -I <app>/proxy egress|ingress|")
