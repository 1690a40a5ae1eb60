"""The line to the egress proxy: every order has its own answer, also after one that came late."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable

import pytest

from supervisor import egress
from supervisor.egress import Egress, EgressRefused

Scene = Callable[[Egress, socket.socket], Awaitable[None]]


def _play(scene: Scene) -> None:
    async def run() -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            await asyncio.wait_for(scene(Egress(ours), theirs), 10)

    asyncio.run(run())


def test_an_order_carries_its_descriptors_and_takes_one_byte() -> None:
    async def scene(line: Egress, proxy: socket.socket) -> None:
        with open(os.devnull) as file:  # noqa: PTH123 - a descriptor is what is wanted
            order = asyncio.create_task(line.order([file.fileno()], op="log", workload="w"))
            await asyncio.sleep(0)
            data, fds, _, _ = socket.recv_fds(proxy, 4096, 4)
            os.close(fds[0])
        assert (data, len(fds)) == (b'{"op": "log", "workload": "w"}', 1)
        proxy.send(b"\0")
        await order

    _play(scene)


def test_an_error_byte_and_the_end_of_the_line_are_refusals() -> None:
    async def scene(line: Egress, proxy: socket.socket) -> None:
        proxy.send(b"\4")
        with pytest.raises(EgressRefused, match="listen: refused with code 4"):
            await line.order(op="listen")
        proxy.close()
        with pytest.raises(EgressRefused, match="keys"):
            await line.order(op="keys")

    _play(scene)


def test_a_late_answer_is_not_taken_for_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(egress, "_START_TIME", 0.05)

    async def scene(line: Egress, proxy: socket.socket) -> None:
        with pytest.raises(EgressRefused, match=r"keys: no answer within 0\.05 s"):
            await line.order(op="keys")
        proxy.send(b"\5")  # the late one
        proxy.send(b"\0")
        await line.order(op="log")
        proxy.send(b"\3")
        with pytest.raises(EgressRefused, match="log: refused with code 3"):
            await line.order(op="log")

    _play(scene)


def test_closing_ends_an_order_that_waits() -> None:
    async def scene(line: Egress, proxy: socket.socket) -> None:
        order = asyncio.create_task(line.order(op="log"))
        await asyncio.sleep(0.01)
        line.close()
        with pytest.raises(EgressRefused, match="end of file"):
            await order

    _play(scene)
