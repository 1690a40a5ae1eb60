"""Runs in private network and mount namespaces: a broker, and a DNS server that the scene owns.

Prints one JSON object. Not a test by itself; see test_resolving.py.
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from sandbox import broker

PUBLIC = "93.184.216.34"  # put on lo here, so that something public can be reached
ANSWERS = {
    "good.example": [PUBLIC],
    "private.example": ["10.0.0.5"],
    "metadata.example": ["169.254.169.254"],
    "mixed.example": ["127.0.0.1", PUBLIC],
    "mapped.example": ["::ffff:127.0.0.1"],
    "nat64.example": ["64:ff9b::7f00:1"],
    "six.example": ["::1"],
    "empty.example": [],
    "rebind.example": [PUBLIC],
}


def serve_dns(sock: socket.socket, log: int) -> None:
    """Answer A and AAAA from ANSWERS; hang.example never; rebind.example turns private later."""
    asked = 0
    while True:
        query, client = sock.recvfrom(512)
        name, at = [], 12
        while query[at]:
            name.append(query[at + 1 : at + 1 + query[at]].decode())
            at += 1 + query[at]
        host, kind = ".".join(name), struct.unpack_from("!H", query, at + 1)[0]
        os.write(log, (host + "\n").encode())
        if host == "hang.example":
            continue
        if host == "garbage.example":
            sock.sendto(query[:2] + os.urandom(200), client)
            continue
        found = ANSWERS.get(host, [])
        if host == "rebind.example":
            asked += 1
            found = found if asked <= 2 else ["127.0.0.1"]
        records = b""
        count = 0
        for text in found:
            if (":" in text) == (kind == 28):
                raw = socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
                records += struct.pack("!HHHIH", 0xC00C, kind, 1, 1, len(raw)) + raw
                count += 1
        header = query[:2] + struct.pack("!HHHHH", 0x8180, 1, count, 0, 0)
        sock.sendto(header + query[12 : at + 5] + records, client)


def main() -> None:
    """Set the scene, dial every name, print what came back."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["ip", "addr", "add", PUBLIC + "/32", "dev", "lo"], check=True)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        for name, text in (
            ("resolv.conf", "nameserver 127.0.0.1\noptions timeout:30 attempts:1\n"),
            ("nsswitch.conf", "hosts: files dns\n"),
            ("hosts", "127.0.0.1 localhost\n"),
        ):
            path = Path(folder, name)
            path.write_text(text)
            path.chmod(0o644)
            subprocess.run(["mount", "--bind", str(path), f"/etc/{name}"], check=True)
        handle = broker.start(1879050991)
        reader, writer = os.pipe()
        dns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        dns.bind(("127.0.0.1", 53))
        pid = os.fork()
        if pid == 0:
            serve_dns(dns, writer)
        server = socket.create_server((PUBLIC, 4430))
        inside = socket.create_server(("127.0.0.1", 4430))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        names = [*ANSWERS, "hang.example", "garbage.example"]
        targets = {name: {"host": name, "port": 4430} for name in names}
        handle.client("egress", targets, theirs)
        ours.settimeout(15)

        def receive() -> tuple[int, int, str, str]:
            raw, fds, _flags, _address = socket.recv_fds(ours, 300, 1)
            number, status = struct.unpack_from("!IB", raw)
            peer = ""
            if fds:
                made = socket.socket(fileno=fds[0])
                select.select([], [made], [], 5)
                peer = made.getpeername()[0]
            return number, status, raw[5:].decode(), peer

        def dial(name: str) -> tuple[int, str, str]:
            ours.send(struct.pack("!IB", 1, 1) + name.encode())
            return receive()[1:]

        # While one lookup hangs, all others are answered.
        started = time.monotonic()
        ours.send(struct.pack("!IB", 99, 1) + b"hang.example")
        ours.send(struct.pack("!IB", 98, 1) + b"garbage.example")
        result = {name: dial(name) for name in ANSWERS}
        others = time.monotonic() - started
        again = [dial("rebind.example") for _ in range(5)]
        slow = [receive()[:2] for _ in range(2)]
        hang = time.monotonic() - started
        os.set_blocking(reader, False)
        asked = os.read(reader, 65536).decode().split()
        server.close()
        inside.close()
        handle.close()
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        for name in ("resolv.conf", "nsswitch.conf", "hosts"):
            subprocess.run(["umount", f"/etc/{name}"], check=True)
    print(
        json.dumps(
            {
                "result": result,
                "again": again,
                "others": others,
                "slow": sorted(slow),
                "hang": hang,
                "rebind_queries": asked.count("rebind.example"),
            }
        )
    )


main()
