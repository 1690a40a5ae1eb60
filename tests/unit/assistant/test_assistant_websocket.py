"""The WebSocket adapter with executor and practice model, over real sockets."""

from __future__ import annotations

import json
import socket
import time

import pytest
from assistant_house import House, call, letter
from assistant_websocket_client import Client
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, TextMessage


def order(name: str = "ordinary", **more: str) -> dict[str, str]:
    return {"workflow": "email_management", "content": letter(name), **more}


def test_steps_deltas_and_reply_arrive_in_order(house: House) -> None:
    with Client(house.adapter("websocket").port, x_request_id="00000000000000ff") as client:
        client.say(order())
        events = client.until_end()
    kinds = [event["kind"] for event in events]
    assert kinds[:5] == ["step"] * 5
    assert kinds[-1] == "reply"
    deltas = "".join(event["text"] for event in events if event["kind"] == "delta")
    assert kinds.count("delta") > 10
    assert deltas.strip() == events[-1]["text"]
    assert set(events[-1]["steps"]) == {"extract_entities", "classify_priority", "generate_reply"}
    assert {event["id"] for event in events} == {"1"}


def test_several_messages_at_once_are_told_apart_by_id(house: House) -> None:
    with Client(house.adapter("websocket").port) as client:
        names = {"a": "ordinary", "b": "api-key", "c": "injection"}
        for identity, name in names.items():
            client.say(order(name, id=identity))
        replies = {}
        while len(replies) < 3:
            event = client.until_end()[-1]
            replies[event["id"]] = event["text"]
    assert "Šimková" in replies["a"]
    assert "Lindström" in replies["b"]
    assert "Ünïted" in replies["c"]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{not json", "invalid_json"),
        ('{"workflow": "email_management"}', "bad_message"),
        ('{"workflow": "nope", "content": "From: a"}', "unknown_workflow"),
        ('{"workflow": "email_management", "content": "no header"}', "bad_content"),
    ],
)
def test_a_bad_message_is_an_error_object_and_the_connection_lives(
    house: House, text: str, code: str
) -> None:
    with Client(house.adapter("websocket").port) as client:
        client.say(text)
        error = client.receive()
        assert (error["kind"], error["code"]) == ("error", code)
        client.say(order())
        assert client.until_end("2")[-1]["kind"] == "reply"


def test_a_message_over_the_limit_closes_with_1009(house: House) -> None:
    with Client(house.adapter("websocket").port) as client:
        client.send(TextMessage(data="x" * ((1 << 20) + 1)))
        with pytest.raises(ConnectionError):
            client.receive()
        assert client.closed is not None
        assert client.closed.code == 1009


def test_an_endless_fragmented_message_closes_with_1009(house: House) -> None:
    with Client(house.adapter("websocket").port) as client:
        for _ in range(20):
            client.send(TextMessage(data="x" * 65536, message_finished=False))
        with pytest.raises(ConnectionError):
            client.receive()
        assert client.closed is not None
        assert client.closed.code == 1009


def test_bytes_close_with_1003_and_bad_utf8_with_1007(house: House) -> None:
    port = house.adapter("websocket").port
    with Client(port) as client:
        client.send(BytesMessage(data=b"\x00\x01"))
        with pytest.raises(ConnectionError):
            client.receive()
        assert client.closed is not None
        assert client.closed.code == 1003
    with Client(port) as client:
        client.socket.sendall(b"\x81\x82\x00\x00\x00\x00\xff\xfe")  # masked text frame, not UTF-8
        with pytest.raises(ConnectionError):
            client.receive()
        assert client.closed is not None
        assert client.closed.code == 1007


def test_ping_is_answered_and_close_is_confirmed(house: House) -> None:
    with Client(house.adapter("websocket").port) as client:
        client.send(Ping(payload=b"here"))
        answer = client.event()
        assert isinstance(answer, Pong)
        assert answer.payload == b"here"
        client.send(CloseConnection(code=1000))
        closing = client.event()
        assert isinstance(closing, CloseConnection)
        assert closing.code == 1000


def test_plain_http_gets_426_and_health_is_plain(house: House) -> None:
    port = house.adapter("websocket").port
    status, answer = call(port, "GET", "/")
    assert (status, answer["error"]["code"]) == (426, "upgrade_required")
    assert call(port, "GET", "/healthz")[0] == 200


def test_a_ninth_message_at_once_is_refused(house: House) -> None:
    gate = socket.create_server(("127.0.0.1", 0), backlog=32)
    house.executor.stop()
    house.start_executor(OPENAI_BASE_URL=f"http://127.0.0.1:{gate.getsockname()[1]}/v1")
    with Client(house.adapter("websocket").port) as client:
        for number in range(9):
            client.say(order(id=f"n{number}"))
        events = [client.receive() for _ in range(9)]
        assert [e["id"] for e in events if e["kind"] == "error"] == ["n8"]
        refused = next(e for e in events if e["kind"] == "error")
        assert (refused["code"], refused["status"]) == ("too_many_requests", 429)
    for _ in range(8):
        house.executor.wait_for("run_cancelled")
    gate.close()


def test_a_client_that_vanishes_in_mid_stream_stops_the_model(slow_house: House) -> None:
    house = slow_house
    adapter = house.adapter("websocket")
    client = Client(adapter.port)
    client.say(order())
    while client.receive()["kind"] != "delta":
        pass
    client.socket.close()
    begun = time.monotonic()
    house.executor.wait_for("run_cancelled", seconds=3)
    house.model.wait_for("client_gone", seconds=3)
    assert time.monotonic() - begun < 3
    adapter.wait_for("disconnected")
    with Client(adapter.port) as other:  # and nobody else suffers
        other.say(order())
        assert other.receive()["kind"] == "step"


def test_an_executor_restart_is_an_error_503_and_the_connection_lives(slow_house: House) -> None:
    house = slow_house
    adapter = house.adapter("websocket")
    with Client(adapter.port) as client:
        client.say(order(run="r1"))
        while client.receive()["kind"] != "delta":
            pass
        house.executor.stop(9)
        error = client.until_end()[-1]
        assert (error["code"], error["status"]) == ("executor_restarted", 503)
        house.start_executor()
        client.say(order(run="r1"))
        events = client.until_end("2")
        assert events[-1]["kind"] == "reply"
    models = [json.loads(seen["body"])["model"] for seen in house.seen()]
    assert models == ["llm-v1", "llm-v1", "llm-v2", "llm-v2"]  # only the last step ran again
