"""REST adapter, executor and practice model end to end, over real sockets."""

from __future__ import annotations

import base64
import email
import email.policy
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from assistant_house import APP, TOKEN, Hold, House, Program, ScriptedModel, call, letter

ORDER = {"workflow": "email_management"}


def secret() -> str:
    """The key in the test e-mail, read out of its base64 part."""
    message = email.message_from_string(letter("api-key"), policy=email.policy.default)
    body = message.get_body()
    assert body is not None
    line = next(x for x in body.get_content().splitlines() if x.startswith("OPENAI_API_KEY="))
    return str(line.partition("=")[2])


def test_an_email_goes_through_all_three_steps_and_comes_back(house: House) -> None:
    port = house.adapter("rest").port
    status, answer = call(
        port,
        "POST",
        "/messages",
        {**ORDER, "content": letter("ordinary")},
        {"x-request-id": "0123456789abcdef", "x-anchorhold-client": "alice"},
    )
    assert status == 200
    assert answer["request"] == "0123456789abcdef"
    assert list(answer["steps"]) == ["extract_entities", "classify_priority", "generate_reply"]
    found = answer["steps"]["extract_entities"]
    assert {"3 December 2026", "2026-12-11", "January 15, 2027"} <= set(found["dates"])
    named = {c["email"]: c["name"] for c in found["contacts"]}
    assert named["zoe.simkova@kaffeehaus.example"] == "Zoë Šimková"
    assert named["bjorn.odegard@example.net"] == "Bjørn Ødegård"
    assert answer["steps"]["classify_priority"]["priority"] == "high"
    assert answer["reply"] == answer["steps"]["generate_reply"]
    assert "Zoë Šimková" in answer["reply"]
    assert "practice model" in answer["reply"]


def test_the_model_gets_the_request_id_and_only_the_placeholder(house: House) -> None:
    port = house.adapter("rest").port
    headers = {"x-request-id": "00000000000000aa"}
    call(port, "POST", "/messages", {**ORDER, "content": letter("ordinary")}, headers)
    seen = house.seen()
    assert [s["request"] for s in seen] == ["00000000000000aa"] * 3
    assert {s["bearer_sha256"] for s in seen} == {hashlib.sha256(TOKEN.encode()).hexdigest()}
    assert [json.loads(s["body"])["model"] for s in seen] == ["llm-v1", "llm-v1", "llm-v2"]


def test_the_email_is_data_in_a_user_message_between_unguessable_marks(house: House) -> None:
    port = house.adapter("rest").port
    call(port, "POST", "/messages", {**ORDER, "content": letter("injection")})
    marks = set()
    for seen in house.seen():
        system, user = json.loads(seen["body"])["messages"]
        assert system["role"] == "system"
        assert "Ignore your previous" not in system["content"]
        assert user["role"] == "user"
        mark = user["content"].splitlines()[0].removeprefix("<<<")
        assert user["content"].endswith(f"{mark}>>>")
        assert user["content"].count(mark) == 2
        marks.add(mark)
    assert len(marks) == 3


def test_no_log_line_holds_content_token_or_secret(house: House) -> None:
    adapter = house.adapter("rest")
    key = secret()
    status, _ = call(adapter.port, "POST", "/messages", {**ORDER, "content": letter("api-key")})
    assert status == 200
    # Positive control: without the proxy in between the secret does reach the model.
    assert any(key in seen["body"] for seen in house.seen())
    logs = adapter.raw + house.executor.raw + house.model.raw
    house.executor.wait_for("step_done", step="generate_reply")
    for private in (key, key[8:24], TOKEN, "Lindström", "901820", "example.net", "rotate"):
        assert private not in logs
    assert "step_done" in logs


def test_the_journal_keeps_no_content_of_a_finished_run(house: House) -> None:
    port = house.adapter("rest").port
    call(port, "POST", "/messages", {**ORDER, "content": letter("api-key")})
    key = secret()
    encoded = base64.b64encode(f"OPENAI_API_KEY={key}"[:30].encode()).decode()
    files = {path.name: path.read_bytes() for path in house.state.iterdir()}
    assert b"email_management" in files["workflows.sqlite"]  # the run is there
    for data in files.values():
        assert key.encode() not in data
        assert encoded[8:32].encode() not in data
        assert b"Received: from" not in data


@pytest.mark.parametrize(
    ("body", "status", "code", "says"),
    [
        (b"{not json", 400, "invalid_json", "JSON"),
        (b"", 400, "invalid_json", "JSON"),
        (b"[" * 100_000, 400, "bad_message", "object"),
        (b'{"workflow": "x", "content": "\xff"}', 400, "invalid_json", "JSON"),
        (b'{"workflow": "email_management"}', 400, "bad_message", "content"),
        (b'{"workflow": "email_management", "content": 7}', 400, "bad_message", "$.content"),
        (b'{"workflow": "email_management", "content": "x", "y": 1}', 400, "bad_message", "y"),
        (
            b'{"workflow": "nope", "content": "From: a"}',
            404,
            "unknown_workflow",
            "email_management",
        ),
        (b'{"workflow": "email_management", "content": "hi"}', 400, "bad_content", "From"),
        (b'{"workflow": "../x", "content": "hi"}', 400, "bad_message", "$.workflow"),
    ],
)
def test_bad_messages_are_refused_with_the_reason(
    house: House, body: bytes, status: int, code: str, says: str
) -> None:
    answer = call(house.adapter("rest").port, "POST", "/messages", body)
    assert answer[0] == status
    assert answer[1]["error"]["code"] == code
    assert says in answer[1]["error"]["message"]
    assert house.seen() == []


def test_a_message_over_the_limit_is_413_and_the_next_one_is_served(house: House) -> None:
    port = house.adapter("rest").port
    status, answer = call(port, "POST", "/messages", b"x" * ((1 << 20) + 1))
    assert (status, answer["error"]["code"]) == (413, "message_too_large")
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(b"POST /messages HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(17):
            client.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
        assert client.recv(12) == b"HTTP/1.1 413"
    assert call(port, "POST", "/messages", {**ORDER, "content": letter("ordinary")})[0] == 200


def test_other_paths_and_methods_get_404_and_405(house: House) -> None:
    port = house.adapter("rest").port
    assert call(port, "GET", "/etc/passwd")[0] == 404
    assert call(port, "GET", "/messages")[0] == 405
    assert call(port, "GET", "/healthz") == (200, {"status": "ok"})


def test_without_an_executor_the_answer_is_503(
    start: Callable[..., Program], tmp_path: Path
) -> None:
    program = start("adapter", "rest", "--port", "0", "--executor", str(tmp_path / "none.sock"))
    status, answer = call(program.port, "POST", "/messages", {**ORDER, "content": "From: a@b"})
    assert (status, answer["error"]["code"]) == (503, "executor_unavailable")


def test_an_unsupported_protocol_does_not_start(start: Callable[..., Program]) -> None:
    program = start("adapter", "carrier-pigeon")
    assert program.process.wait(10) == 2
    assert program.process.stderr is not None
    assert b"unsupported protocol: carrier-pigeon" in program.process.stderr.read()


def test_a_port_in_use_is_one_clear_line(start: Callable[..., Program]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for arguments in (["adapter", "rest"], ["practice-model"]):
            program = start(*arguments, "--port", port)
            assert program.process.wait(10) == 1
            assert program.process.stderr is not None
            words = program.process.stderr.read().decode()
            assert "address already in use" in words.lower()
            assert words.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [[], ["adapter"], ["shell"], ["executor", "--port", "1"], ["adapter", "rest", "--port", "x"]],
)
def test_a_wrong_command_line_shows_the_usage(
    start: Callable[..., Program], arguments: list[str]
) -> None:
    program = start(*arguments)
    assert program.process.wait(10) == 2
    assert program.process.stderr is not None
    assert b"usage: assistant adapter NAME" in program.process.stderr.read()


def test_an_executor_without_channel_or_model_says_what_is_missing(house: House) -> None:
    for channels, environment, missing in (
        (None, {}, b"no channel"),
        (house.channels, {}, b"OPENAI_BASE_URL"),
        (house.channels, {"OPENAI_BASE_URL": "https://x/v1", "OPENAI_API_KEY": "x"}, b"base URL"),
    ):
        program = house._start("executor", channels=channels, **environment)
        assert program.process.wait(10) == 2
        assert program.process.stderr is not None
        assert missing in program.process.stderr.read()


def test_an_executor_without_state_works_and_says_that_it_forgets(house: House) -> None:
    house.executor.stop()
    house.state = house.directory / "none"
    assert house.start_executor().wait_for("workflows_loaded")["durable"] is False
    answer = call(
        house.adapter("rest").port, "POST", "/messages", {**ORDER, "content": letter("ordinary")}
    )
    assert answer[0] == 200
    assert not house.state.exists()


def test_a_dead_model_is_502_and_a_restart_of_it_heals(house: House) -> None:
    port = house.adapter("rest").port
    model_port = house.model.port
    house.model.stop()
    order = {**ORDER, "content": letter("ordinary"), "run": "again"}
    status, answer = call(port, "POST", "/messages", order)
    assert (status, answer["error"]["code"]) == (502, "model_unreachable")
    house._start("practice-model", "--port", str(model_port)).wait_for("listening")
    assert call(port, "POST", "/messages", order)[0] == 200


def test_a_client_that_vanishes_cancels_its_run(house: House) -> None:
    gate = socket.create_server(("127.0.0.1", 0))  # a model that accepts and never answers
    house.executor.stop()
    house.start_executor(OPENAI_BASE_URL=f"http://127.0.0.1:{gate.getsockname()[1]}/v1")
    adapter = house.adapter("rest")
    body = json.dumps({**ORDER, "content": letter("ordinary")}).encode()
    client = socket.create_connection(("127.0.0.1", adapter.port))
    client.sendall(
        b"POST /messages HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    )
    upstream, _ = gate.accept()
    upstream.settimeout(10)
    assert upstream.recv(10)
    client.close()
    adapter.wait_for("client_gone")
    house.executor.wait_for("run_cancelled")
    while upstream.recv(65536):  # ends: the executor has hung up on the model
        pass
    upstream.close()
    gate.close()


def test_the_same_run_twice_calls_the_model_once_and_other_content_is_refused(house: House) -> None:
    port = house.adapter("rest").port
    order = {**ORDER, "content": letter("ordinary"), "run": "mine-1"}
    first = call(port, "POST", "/messages", order)
    calls = len(house.seen())
    second = call(port, "POST", "/messages", order)
    assert first[1]["reply"] == second[1]["reply"]
    assert len(house.seen()) == calls == 3
    other = call(port, "POST", "/messages", {**order, "content": letter("injection")})
    assert (other[0], other[1]["error"]["code"]) == (409, "run_conflict")
    # The name belongs to one client: another one's `mine-1` is another run.
    stranger = call(port, "POST", "/messages", order, {"x-anchorhold-client": "bob"})
    assert stranger[0] == 200
    assert len(house.seen()) == 6


def test_an_executor_killed_in_the_middle_resumes_at_the_unfinished_step(
    house: House, scripted: ScriptedModel
) -> None:
    entities = {"dates": ["today"], "contacts": []}
    hold = Hold()
    scripted.say(json.dumps(entities), '{"priority": "low", "reason": "none"}')
    scripted.answers.append(hold)
    house.executor.stop()
    house.start_executor(OPENAI_BASE_URL=scripted.base)
    adapter = house.adapter("rest")
    order = {**ORDER, "content": letter("ordinary"), "run": "crash-1"}
    with ThreadPoolExecutor() as threads:
        asking = threads.submit(call, adapter.port, "POST", "/messages", order)
        assert hold.reached.wait(10)
        house.executor.stop(signal.SIGKILL)
        status, answer = asking.result(10)
        hold.release.set()
    assert (status, answer["error"]["code"]) == (503, "executor_restarted")

    scripted.say("Dear Zoë, it is done.")
    executor = house.start_executor(OPENAI_BASE_URL=scripted.base)
    executor.wait_for("resumed")
    executor.wait_for("step_done", step="generate_reply")
    status, answer = call(adapter.port, "POST", "/messages", order)  # asks again: no further call
    assert status == 200
    assert answer["reply"] == "Dear Zoë, it is done."
    assert answer["steps"]["extract_entities"] == entities
    assert [r["model"] for r in scripted.requests] == ["llm-v1", "llm-v1", "llm-v2", "llm-v2"]


def test_no_openssl_and_no_yaml_library_is_in_memory(house: House) -> None:
    programs = [house.adapter("rest"), house.adapter("websocket"), house.executor, house.model]
    for program in programs:
        maps = Path(f"/proc/{program.process.pid}/maps").read_text()
        assert "msgspec/_core" in maps  # positive control: extension modules do show up here
        assert not re.search(r"libssl|libcrypto|_ssl\.|ruamel", maps)


def test_sigterm_ends_every_program_cleanly_within_two_seconds(house: House) -> None:
    programs = [house.adapter("rest"), house.adapter("websocket"), house.executor, house.model]
    busy = socket.create_connection(("127.0.0.1", programs[0].port))
    for program in programs:
        begun = time.monotonic()
        assert program.stop(seconds=2) == 0
        assert time.monotonic() - begun < 2
        assert program.process.stderr is not None
        assert program.process.stderr.read() == b""
    busy.close()


def test_a_full_log_pipe_does_not_stop_the_program(house: House) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(writing, b"x" * 4096)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    os.set_blocking(writing, True)
    command = [sys.executable, "-I", str(APP / "assistant"), "practice-model", "--port", str(port)]
    process = subprocess.Popen(command, stdout=writing)
    try:
        deadline = time.monotonic() + 10
        while True:
            try:
                assert call(port, "GET", "/healthz")[0] == 200
                break
            except ConnectionRefusedError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
    finally:
        process.terminate()
        assert process.wait(5) == 0
        os.close(reading)
        os.close(writing)
