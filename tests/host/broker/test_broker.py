"""The broker keeps its promises: identity, allow-lists, bounded work, no way back to root."""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import struct
import time
from pathlib import Path

import pytest

from sandbox import broker


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines)


def descriptors_of(pid: int) -> list[str]:
    return [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()]


def children_of(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in children.split()]


def connected(sock: socket.socket) -> bool:
    _r, writable, _x = select.select([], [sock], [], 5)
    return bool(writable) and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


def wait_gone(pid: int) -> bool:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            if status_of(pid)["State"].startswith("Z"):
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.01)
    return False


def test_privileges_are_gone(handle):
    mine, his = status_of(os.getpid()), status_of(handle.pid)
    assert int(mine["CapEff"], 16) & (1 << 21), "control: this test runs with CAP_SYS_ADMIN"
    assert (int(his["CapEff"], 16), int(his["CapPrm"], 16)) == (1 << 21, 1 << 21)
    assert [int(his[name], 16) for name in ("CapInh", "CapBnd", "CapAmb")] == [0, 0, 0]
    assert (his["Seccomp"], his["Seccomp_filters"], his["NoNewPrivs"]) == ("2", "1", "1")
    assert set(his["Uid"].split()) == {"1879050990"} == set(his["Gid"].split())
    assert his["Groups"].strip() == ""
    assert his["Threads"] == "1"
    assert Path(f"/proc/{handle.pid}/mem").stat().st_uid == 0, "not dumpable: /proc is root's"
    limits = Path(f"/proc/{handle.pid}/limits").read_text()
    assert re.search(r"Max core file size +0 +0 ", limits)


def test_broker_sees_no_files_and_holds_no_foreign_descriptor(handle):
    assert list(Path(f"/proc/{handle.pid}/root/").iterdir()) == []
    links = descriptors_of(handle.pid)
    allowed = ("/dev/null", "socket:", "net:", "anon_inode:[eventpoll]")
    stderr = str(Path(f"/proc/{handle.pid}/fd/2").readlink())
    assert [link for link in links if not link.startswith(allowed) and link != stderr] == []


def test_resolver_has_no_capability_at_all(handle):
    (pid,) = children_of(handle.pid)
    status = status_of(pid)
    assert [int(status[f"Cap{s}"], 16) for s in ("Inh", "Prm", "Eff", "Bnd", "Amb")] == [0] * 5
    assert set(status["Uid"].split()) == {"65534"}
    assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1")


def test_listening_socket_is_inside_the_namespace_and_nowhere_else(handle, room, dialler):
    one, two = room(), room()
    handle.register("one", one.netns)
    handle.register("two", two.netns)
    listener = handle.listen("one", 8000)
    client = dialler("gateway", {
        "workload.one:8000": {"workload": "one", "port": 8000},
        "workload.two:8000": {"workload": "two", "port": 8000},
    })  # fmt: skip
    status, _reason, made = client.dial("workload.one:8000")
    assert status == 0
    assert connected(made)
    listener.setblocking(True)
    listener.settimeout(5)
    accepted, _address = listener.accept()
    made.send(b"hello")
    assert accepted.recv(5) == b"hello"
    # The same port in the other namespace has no listener, and neither has the host.
    status, reason, other = client.dial("workload.two:8000")
    assert (status, reason) == (5, "ECONNREFUSED") or not connected(other)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", 8000), 2)


def test_broker_is_back_in_the_host_namespace_after_every_dial(handle, room, dialler):
    handle.register("one", room().netns)
    client = dialler("gateway", {"t": {"workload": "one", "port": 8000}})
    for _ in range(50):
        client.dial("t")
    host = Path("/proc/self/ns/net").stat()
    his = Path(f"/proc/{handle.pid}/ns/net").stat()
    assert (his.st_dev, his.st_ino) == (host.st_dev, host.st_ino)


def test_dial_to_a_workload_that_is_down(handle, room, dialler):
    handle.register("one", room().netns)
    client = dialler("gateway", {"t": {"workload": "one", "port": 8000}})
    assert client.dial("t")[0] in (0, 5), "control: known while registered"
    handle.unregister("one")
    assert client.dial("t")[:2] == (2, "workload is down")


def test_bad_requests_get_a_status_and_do_no_harm(handle, room, dialler):
    handle.register("one", room().netns)
    listener = handle.listen("one", 8000)
    client = dialler("gateway", {"t": {"workload": "one", "port": 8000}})
    for message, status in (
        (b"", 1),
        (b"\0", 1),
        (struct.pack("!IB", 3, 1), 1),
        (struct.pack("!IB", 3, 9) + b"t", 1),
        (struct.pack("!IB", 3, 1) + b"unknown", 2),
        (struct.pack("!IB", 3, 1) + b"\xff\xfe", 1),
        (struct.pack("!IB", 3, 1) + b"t\0", 2),
        (struct.pack("!IB", 3, 1) + b"x" * 201, 1),
        (struct.pack("!IB", 3, 1) + b"x" * 100_000, 1),
    ):
        client.sock.send(message)
        number, got, reason, made = client.receive()
        assert (got, made) == (status, None), (message[:20], reason)
        assert number == (3 if len(message) >= 5 else 0)
    assert client.dial("t")[0] == 0, "control: still served"
    listener.close()


def test_descriptors_sent_by_a_client_are_not_taken(handle, room, dialler):
    handle.register("one", room().netns)
    client = dialler("gateway", {"t": {"workload": "one", "port": 8000}})
    before = len(descriptors_of(handle.pid))
    for _ in range(20):
        socket.send_fds(client.sock, [struct.pack("!IB", 1, 1) + b"x"], [0, 1, 2])
        client.receive()
    assert len(descriptors_of(handle.pid)) == before


def test_a_flood_that_reads_nothing_starves_nobody(handle, room, dialler):
    handle.register("one", room().netns)
    listener = handle.listen("one", 8000)
    targets = {"t": {"workload": "one", "port": 8000}}
    rude, polite = dialler("rude", targets), dialler("polite", targets)
    rude.sock.setblocking(False)
    sent = 0
    slowest = 0.0
    for _ in range(100):
        try:
            for _ in range(50):
                rude.send(1, b"unknown")
                sent += 1
        except BlockingIOError:
            pass
        before = time.perf_counter()
        assert polite.dial("t")[0] == 0
        slowest = max(slowest, time.perf_counter() - before)
    assert sent > 100, "control: there was a flood"
    assert slowest < 0.25
    assert len(descriptors_of(handle.pid)) < 40
    listener.close()


def test_private_addresses_are_refused_unless_the_target_names_them(handle, dialler):
    server = socket.create_server(("127.0.0.1", 0))
    port = server.getsockname()[1]
    client = dialler("egress", {
        "literal": {"host": "127.0.0.1", "port": port},
        "bracketed": {"host": "[::1]", "port": port},
        "named": {"host": "localhost", "port": port},
        "metadata": {"host": "169.254.169.254", "port": 80},
        "mapped": {"host": "::ffff:127.0.0.1", "port": port, "addresses": ["127.0.0.0/8"]},
        "explicit": {"host": "127.0.0.1", "port": port, "addresses": ["127.0.0.0/8"]},
        "explicit-name": {"host": "localhost", "port": port, "addresses": ["127.0.0.0/8"]},
    })  # fmt: skip
    assert client.dial("literal")[:2] == (4, "127.0.0.1 is loopback")
    assert client.dial("bracketed")[:2] == (4, "::1 is loopback")
    assert client.dial("named")[0] == 4
    assert client.dial("metadata")[:2] == (4, "169.254.169.254 is metadata service")
    assert client.dial("mapped")[0] == 4
    for name in ("explicit", "explicit-name"):
        status, reason, made = client.dial(name)
        assert status == 0, reason
        assert connected(made)
    server.close()


def test_the_host_namespace_cannot_be_registered(handle):
    fd = os.open("/proc/self/ns/net", os.O_RDONLY)
    with pytest.raises(broker.BrokerError, match="host's network namespace"):
        handle.register("one", fd)
    os.close(fd)


def test_a_descriptor_that_is_no_network_namespace_is_refused(handle):
    fd = os.open("/proc/self/ns/mnt", os.O_RDONLY)
    with pytest.raises(broker.BrokerError, match="no network namespace"):
        handle.register("one", fd)
    os.close(fd)


@pytest.mark.parametrize(
    "target",
    [{}, {"workload": "a"}, {"workload": "a", "port": 0}, {"workload": "a", "port": True},
     {"workload": "a", "host": "b", "port": 1}, {"host": "b", "port": 1, "adresses": []},
     {"host": "b", "port": 1, "addresses": ["10.0.0.1/8"]}, {"host": "é", "port": 1}],
)  # fmt: skip
def test_bad_orders_are_errors_and_the_broker_lives(handle, dialler, target):
    with pytest.raises(broker.BrokerError) as raised:
        dialler("egress", {"t": target})
    assert raised.value.code == "bad_request"
    assert dialler("egress", {"t": {"workload": "a", "port": 1}}).dial("t")[0] == 2


def test_listen_needs_a_registered_workload_and_a_free_port(handle, room):
    with pytest.raises(broker.BrokerError) as raised:
        handle.listen("one", 8000)
    assert raised.value.code == "unknown_workload"
    handle.register("one", room().netns)
    with handle.listen("one", 8000), pytest.raises(broker.BrokerError, match="in use"):
        handle.listen("one", 8000)


def test_dropped_client_sees_eof(handle, dialler):
    client = dialler("egress", {})
    assert client.dial("t")[0] == 2, "control: served before"
    handle.drop_client("egress")
    with pytest.raises((EOFError, BrokenPipeError)):
        client.dial("t")


def test_killed_broker_is_eof_for_clients_and_supervisor(handle, dialler):
    client = dialler("egress", {})
    (resolver,) = children_of(handle.pid)
    os.kill(handle.pid, signal.SIGKILL)
    with pytest.raises((EOFError, ConnectionResetError)):
        client.receive()
    with pytest.raises(broker.BrokerError) as raised:
        handle.unregister("one")
    assert raised.value.code == "broker_gone"
    assert wait_gone(resolver), "the resolver dies with the broker"


def test_broker_ends_without_its_resolver(handle, dialler):
    client = dialler("egress", {})
    (resolver,) = children_of(handle.pid)
    os.kill(resolver, signal.SIGKILL)
    with pytest.raises((EOFError, ConnectionResetError)):
        client.receive()


def test_broker_that_cannot_lock_down_says_why_and_is_gone():
    started = broker.fork()
    with pytest.raises(broker.BrokerError) as raised:
        started.lock_down(-1000)
    assert raised.value.code == "broker_start"
    assert wait_gone(started.pid)


def test_without_a_resolver_literals_work_and_names_do_not(room):
    server = socket.create_server(("127.0.0.1", 0))
    handle = broker.start(1879050990, resolver_uid=None)
    assert children_of(handle.pid) == []
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    common = {"port": server.getsockname()[1], "addresses": ["127.0.0.0/8"]}
    targets = {"a": {"host": "127.0.0.1", **common}, "b": {"host": "localhost", **common}}
    handle.client("egress", targets, theirs)
    answers = []
    for name in (b"a", b"b"):
        ours.send(struct.pack("!IB", 1, 1) + name)
        raw, fds, _flags, _address = socket.recv_fds(ours, 300, 1)
        answers.append((raw[4], len(fds)))
        for fd in fds:
            os.close(fd)
    assert answers == [(0, 1), (3, 0)]
    for sock in (ours, theirs, server):
        sock.close()
    handle.close()


def test_closed_control_socket_ends_the_broker():
    started = broker.start(1879050990)
    (resolver,) = children_of(started.pid)
    started.close()
    assert wait_gone(started.pid)
    assert wait_gone(resolver)


def test_broker_dies_with_the_process_that_started_it():
    reader, writer = os.pipe()
    middle = os.fork()
    if middle == 0:
        try:
            started = broker.start(1879050990)
            # The control socket survives in nobody else: only PDEATHSIG and EOF are left.
            os.write(writer, struct.pack("i", started.pid))
            signal.pause()
        finally:
            os._exit(1)
    os.close(writer)
    (pid,) = struct.unpack("i", os.read(reader, 4))
    assert not status_of(pid)["State"].startswith("Z"), "control: alive before"
    os.kill(middle, signal.SIGKILL)
    os.waitpid(middle, 0)
    assert wait_gone(pid)


def test_what_is_allowed_for_a_while_is_one_target_more_and_is_used_up(handle, dialler):
    """A name decides, so loopback stays refused; what is used up is not even looked at."""
    client = dialler("egress", {})
    assert client.dial("ask.a.host:443")[0] == 2
    handle.allow("egress", "ask.a.host:443", {"host": "127.0.0.1", "port": 443},
                 seconds=60, uses=2)  # fmt: skip
    for _ in range(2):
        status, reason, _ = client.dial("ask.a.host:443")
        assert status == 4, reason
    assert client.dial("ask.a.host:443")[:2] == (1, "what was allowed is used up")
    assert client.dial("ask.a.host:443")[0] == 2, "and then forgotten"
    with pytest.raises(broker.BrokerError, match="no client"):
        handle.allow("nobody", "x", {"host": "a.example", "port": 1}, seconds=1, uses=1)
    with pytest.raises(broker.BrokerError, match="whole numbers"):
        handle.allow("egress", "x", {"host": "a.example", "port": 1}, seconds=0, uses=1)


def test_a_pattern_dials_hosts_below_its_domain_alone(handle, dialler):
    client = dialler("egress", {"net.a": {"host": "*.chat.invalid", "port": 443}})
    for name in ("net.a", "net.a=evil.invalid", "net.a=\0.chat.invalid", "net.a=*.chat.invalid"):
        assert client.dial(name)[0] == 2
    assert client.dial("net.a=api.chat.invalid")[0] == 3, "looked up, and not there"
