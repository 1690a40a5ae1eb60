"""The executor's desk counts what runs, whatever way a run ends."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path

from assistant.router.desk import Bounds, Desk, Emit
from assistant.router.messages import Ask, Event, Reply

BOUNDS = Bounds(per_peer=2, per_client=1)


def ask(name: str) -> bytes:
    order = {
        "id": name, "request": name, "protocol": "rest", "client": "laptop",
        "workflow": "email_management", "content": "x",
    }  # fmt: skip
    return json.dumps(order).encode() + b"\n"


def cancel(name: str) -> bytes:
    return json.dumps({"id": name, "kind": "cancel"}).encode() + b"\n"


def test_cancelled_runs_give_their_place_back(tmp_path: Path) -> None:
    begun: list[str] = []
    gone = asyncio.Event()

    async def work(peer: str, order: Ask, emit: Emit) -> Event:
        begun.append(order.id)
        if order.id == "long":
            await gone.wait()
        return Reply(id=order.id, text="done", steps={})

    async def scene() -> list[str]:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(tmp_path / "channel"))
        listener.listen()
        desk = Desk(work, BOUNDS)
        await desk.open("adapter.rest", listener.detach())
        reader, writer = await asyncio.open_unix_connection(tmp_path / "channel")

        async def answer() -> str:
            event = json.loads(await asyncio.wait_for(reader.readline(), 5))
            return str(event.get("code") or event["kind"])

        # In one write: the desk reads the cancellation before the run's first step.
        for number in range(BOUNDS.per_peer * 2):
            writer.write(ask(f"a{number}") + cancel(f"a{number}"))
            await asyncio.sleep(0.02)
        assert begun == [], "control: none of them began"
        writer.write(ask("honest"))
        answers = [await answer()]
        writer.write(ask("long"))
        writer.write(ask("more"))
        answers.append(await answer())  # the bound still holds
        writer.write(cancel("long"))
        await asyncio.sleep(0.02)
        writer.write(ask("after"))
        answers.append(await answer())
        writer.close()
        desk.close()
        return answers

    assert asyncio.run(scene()) == ["reply", "too_many_requests", "reply"]
    assert begun == ["honest", "long", "after"]
