"""The executor against a model that misbehaves, spoken to over the channel itself."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest
from assistant_house import TOKEN, Hold, House, ScriptedModel, letter

ENTITIES = '{"dates": [], "contacts": []}'
PRIORITY = '{"priority": "low", "reason": "none"}'


class Channel:
    """An adapter's connection, by hand."""

    def __init__(self, house: House, peer: str = "adapter.rest") -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(10)
        self.socket.connect(str(house.paths[peer]))
        self.lines = self.socket.makefile("rb")

    def send(self, **message: object) -> None:
        self.socket.sendall(json.dumps(message).encode() + b"\n")

    def ask(self, identity: str = "1", **more: object) -> None:
        self.send(
            **{
                "id": identity,
                "request": "00000000000000aa",
                "protocol": "rest",
                "client": "alice",
                "workflow": "email_management",
                "content": letter("ordinary"),
                **more,
            }
        )

    def receive(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.lines.readline())
        return value

    def end(self) -> dict[str, Any]:
        while (event := self.receive())["kind"] not in ("reply", "error"):
            pass
        return event


@pytest.fixture
def channel(house: House, scripted: ScriptedModel) -> Channel:
    """A channel to an executor whose model is the scripted one."""
    house.executor.stop()
    house.start_executor(OPENAI_BASE_URL=scripted.base)
    return Channel(house)


def test_a_malformed_answer_is_repaired_once(channel: Channel, scripted: ScriptedModel) -> None:
    scripted.say("Sure! Here it is", f"```json\n{ENTITIES}\n```", PRIORITY, "Dear all")
    channel.ask()
    assert channel.end()["text"] == "Dear all"
    repair = scripted.requests[1]["messages"]
    assert [m["role"] for m in repair] == ["system", "user", "assistant", "user"]
    assert repair[2]["content"] == "Sure! Here it is"


@pytest.mark.parametrize(
    "bad",
    [
        "no JSON",
        '{"dates": []}',
        '{"dates": [1], "contacts": []}',
        '{"dates": [], "contacts": [], "extra": 1}',
        '{"dates": [], "contacts": [{"name": "A", "iban": "x"}]}',
    ],
)
def test_a_second_malformed_answer_is_an_error(
    channel: Channel, scripted: ScriptedModel, bad: str
) -> None:
    scripted.say(bad, bad)
    channel.ask()
    error = channel.end()
    assert (error["code"], error["status"]) == ("model_answer_invalid", 502)
    assert "extract_entities" in error["message"]
    assert len(scripted.requests) == 2


def test_a_refusal_by_the_proxy_keeps_code_message_and_status(
    channel: Channel, scripted: ScriptedModel
) -> None:
    message = "model llm-v1 is not allowed (executor-main.toml:42)"
    scripted.answers.append((403, {"error": {"code": "model_refused", "message": message}}))
    channel.ask()
    error = channel.end()
    assert (error["code"], error["message"], error["status"]) == ("model_refused", message, 403)
    assert scripted.headers[0]["authorization"] == f"Bearer {TOKEN}"
    assert scripted.headers[0]["x-request-id"] == "00000000000000aa"


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ((500, {"oops": 1}), "model_failed"),
        ((200, {"choices": []}), "model_failed"),
        ((200, ["x"]), "model_failed"),
        ((503, {"error": {"code": "vault_locked", "message": "locked"}}), "vault_locked"),
        ((502, {"error": {"code": "Odd Code!", "message": "m"}}), "model_failed"),
    ],
)
def test_every_failure_of_the_model_has_a_code(
    channel: Channel, scripted: ScriptedModel, answer: object, code: str
) -> None:
    scripted.answers.append(answer)
    channel.ask()
    assert channel.end()["code"] == code


def _chunk(text: str) -> bytes:
    return b"data: " + json.dumps({"choices": [{"delta": {"content": text}}]}).encode() + b"\n\n"


def test_a_stream_that_breaks_off_is_an_error_after_the_deltas(
    channel: Channel, scripted: ScriptedModel
) -> None:
    scripted.say(ENTITIES, PRIORITY)
    whole = _chunk("Dear") + _chunk(" all")
    scripted.answers.append([whole[:20], whole[20:]])
    channel.ask(stream=True)
    events = [channel.receive() for _ in range(8)]
    assert [e["text"] for e in events if e["kind"] == "delta"] == ["Dear", " all"]
    assert events[-1]["code"] == "model_failed"


def test_an_error_in_the_middle_of_a_stream_keeps_its_code(
    channel: Channel, scripted: ScriptedModel
) -> None:
    scripted.say(ENTITIES, PRIORITY)
    error = json.dumps({"error": {"code": "budget_exceeded", "message": "enough"}}).encode()
    scripted.answers.append([_chunk("Dear"), b"data: " + error + b"\n\n"])
    channel.ask(stream=True)
    assert channel.end()["code"] == "budget_exceeded"


def test_a_failed_run_continues_at_its_unfinished_step(
    channel: Channel, scripted: ScriptedModel
) -> None:
    scripted.say(ENTITIES)
    scripted.answers.append((502, {"error": {"code": "upstream_down", "message": "down"}}))
    channel.ask(run="r")
    assert channel.end()["code"] == "upstream_down"
    scripted.say(PRIORITY, "Dear all")
    channel.ask("2", run="r")
    assert channel.end()["text"] == "Dear all"
    assert len(scripted.requests) == 4


def test_identity_is_the_socket_not_what_the_line_says(channel: Channel) -> None:
    channel.ask(protocol="websocket")
    error = channel.end()
    assert error["code"] == "unsupported_protocol"
    assert error["message"] == "unsupported protocol: websocket"


@pytest.mark.parametrize(
    "line",
    [
        b"garbage\n",
        b'{"id": "1", "kind": "shutdown"}\n',
        b'{"id": "1", "request": "x", "protocol": "rest", "client": "", "workflow": "w"}\n',
        b'{"id": "1", "root": true}\n',
    ],
)
def test_a_malformed_line_ends_the_connection_with_an_error(
    house: House, channel: Channel, line: bytes
) -> None:
    channel.socket.sendall(line)
    assert channel.receive()["code"] == "bad_message"
    assert channel.lines.readline() == b""
    house.executor.wait_for("channel_garbled", peer="adapter.rest")
    other = Channel(house)  # the executor lives on
    other.ask(workflow="nope")
    assert other.end()["code"] == "unknown_workflow"


def test_one_client_cannot_take_all_places(house: House, scripted: ScriptedModel) -> None:
    gate = socket.create_server(("127.0.0.1", 0), backlog=64)
    house.executor.stop()
    house.start_executor(OPENAI_BASE_URL=f"http://127.0.0.1:{gate.getsockname()[1]}/v1")
    channel = Channel(house)
    for number in range(9):
        channel.ask(f"a{number}", run=f"a{number}")
    events = [channel.receive() for _ in range(9)]
    refused = [e["id"] for e in events if e["kind"] == "error"]
    assert refused == ["a8"]
    channel.ask("b", client="bob", run="b")
    assert channel.receive()["kind"] == "step"
    channel.send(id="a0", kind="cancel")
    house.executor.wait_for("run_cancelled")
    channel.ask("a9", run="a9")
    assert channel.receive()["status"] == "started"
    gate.close()


def test_an_orderly_stop_loses_nothing_however_often(
    house: House, channel: Channel, scripted: ScriptedModel
) -> None:
    scripted.say(ENTITIES)
    holds = [Hold() for _ in range(5)]
    scripted.answers += holds
    channel.ask(run="stopped")
    for hold in holds:  # the first time asked for, then four times resumed
        assert hold.reached.wait(10)
        assert house.executor.stop() == 0
        hold.release.set()
        if hold is holds[-1]:
            scripted.say(PRIORITY, "Dear all")
        house.start_executor(OPENAI_BASE_URL=scripted.base)
    house.executor.wait_for("step_done", step="generate_reply")
    again = Channel(house)
    again.ask(run="stopped")
    assert again.end()["text"] == "Dear all"
    assert len(scripted.requests) == 1 + 5 + 2


def test_a_run_whose_adapter_died_is_finished_and_kept(
    house: House, channel: Channel, scripted: ScriptedModel
) -> None:
    scripted.say(ENTITIES, PRIORITY, "Dear all")
    channel.ask(run="kept")
    channel.receive()
    channel.lines.close()
    channel.socket.close()
    house.executor.wait_for("step_done", step="generate_reply")
    again = Channel(house)
    again.ask(run="kept")
    assert again.end()["text"] == "Dear all"
    assert len(scripted.requests) == 3
