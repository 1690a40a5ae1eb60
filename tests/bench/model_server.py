"""A model server for benches, in processes of its own, so that it shares no interpreter with us.

Two kinds. `Server` answers completions, whole or as a stream of 50 events, one process for each
connection. `Choir` sings to a thousand streams at once from one process, a token each by turns.
"""

from __future__ import annotations

import json
import mmap
import os
import selectors
import socket
import struct
import time

from tests.unit.egress.harness import completion, delta

EVENTS = 50
# A KB of JSON, and 50 tokens of about 6 characters: what a model says that holds no secret.
REPLY = json.dumps(completion("Thank you, we have found your order and sent it on. " * 16)).encode()
TOKENS = ("thank ", "you, ", "we ", "have ", "found ", "your ", "order ", "and ", "sent ", "it ")
STREAM = tuple(delta(TOKENS[n % len(TOKENS)]) for n in range(EVENTS))
DONE = b"data: [DONE]\n\n"
WHOLE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (
    len(REPLY),
    REPLY,
)
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body. RFC 9112, section 7.1."""
    return b"%x\r\n%s\r\n" % (len(data), data)


class Clock:
    """When each event of the stream under way was sent: seconds of the monotonic clock, shared."""

    def __init__(self) -> None:
        self._slots = mmap.mmap(-1, 8 * EVENTS)

    def tick(self, number: int) -> None:
        """Event `number` is being sent."""
        struct.pack_into("d", self._slots, 8 * number, time.monotonic())

    def of(self, number: int) -> float:
        """When it was."""
        return float(struct.unpack_from("d", self._slots, 8 * number)[0])


class _Process:
    """A listener on loopback and the process that serves it."""

    def __init__(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port: int = listener.getsockname()[1]
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.setpgid(0, 0)
                self.serve(listener)
            finally:
                os._exit(0)
        listener.close()

    def serve(self, listener: socket.socket) -> None:
        """Run in the process; it may end at any time."""
        raise NotImplementedError

    def close(self) -> None:
        """End it, and the processes that it has forked."""
        os.killpg(self.pid, 9)
        os.waitpid(self.pid, 0)


class Server(_Process):
    """`pause` seconds between the events of a stream; with one, `clock` has their times."""

    def __init__(self, pause: float = 0.0) -> None:
        self.clock = Clock()
        self._pause = pause
        super().__init__()

    def serve(self, listener: socket.socket) -> None:
        """One process per connection."""
        while True:
            sock, _ = listener.accept()
            if os.fork():
                sock.close()
                continue
            listener.close()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while body := read_request(sock):
                if b'"stream": true' in body or b'"stream":true' in body:
                    self._stream(sock)
                else:
                    sock.sendall(WHOLE)
            os._exit(0)

    def _stream(self, sock: socket.socket) -> None:
        sock.sendall(STREAM_HEAD)
        for number, event in enumerate(STREAM):
            if self._pause:
                time.sleep(self._pause)
                self.clock.tick(number)
            sock.sendall(chunk(event))
        sock.sendall(chunk(DONE) + b"0\r\n\r\n")


class Choir(_Process):
    """Waits until `voices` streams have been asked for, then sends each its tokens by turns."""

    def __init__(self, voices: int, pause: float) -> None:
        self._voices, self._pause = voices, pause
        super().__init__()

    def serve(self, listener: socket.socket) -> None:
        """One process for all."""
        choir: list[socket.socket] = []
        with selectors.DefaultSelector() as selector:
            selector.register(listener, selectors.EVENT_READ)
            while len(choir) < self._voices:
                for key, _ in selector.select():
                    if key.fileobj is listener:
                        selector.register(listener.accept()[0], selectors.EVENT_READ)
                        continue
                    sock = key.fileobj
                    assert isinstance(sock, socket.socket)
                    selector.unregister(sock)
                    read_request(sock)
                    sock.sendall(STREAM_HEAD)
                    choir.append(sock)
        for event in STREAM:
            began = time.monotonic()
            for sock in choir:
                sock.sendall(chunk(event))
            time.sleep(max(0.0, self._pause - (time.monotonic() - began)))
        for sock in choir:
            sock.sendall(chunk(DONE) + b"0\r\n\r\n")
        time.sleep(3600)


def read_request(sock: socket.socket) -> bytes:
    """The body of one request with a content-length; empty at the end of the connection."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = sock.recv(65536)
        if not part:
            return b""
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    while len(body) < int(fields[b"content-length"]):
        body += sock.recv(65536)
    return body
