"""One message through everything, and everything that is answered with a refusal instead."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from house import MAIL, House

from sandbox.seccomp import compile_filters, digests
from supervisor.control import ControlError
from tests.host.sandbox.conftest import shipped_plan


@pytest.mark.parametrize("protocol", ["rest", "websocket"])
def test_message_gets_its_reply_and_can_be_followed(running: House, protocol: str) -> None:
    before = len(running.audit("service.ingress")), len(running.audit("service.egress"))
    answer = running.send(protocol)
    assert answer.get("reply") or answer.get("text")
    assert set(answer["steps"]) >= {"extract_entities", "classify_priority"}
    request = running.audit("service.ingress")[before[0]]["request"]
    ended = running.wait_record("service.ingress", request=request, event="request")
    assert (ended["verdict"], ended["workload"]) == ("allowed", f"adapter.{protocol}")
    assert (ended["client"], ended["protocol"]) == ("test", protocol)
    calls = [r for r in running.audit("service.egress")[before[1] :] if r["request"] == request]
    done = [(r["model"], r["verdict"]) for r in calls if r["event"] == "completion"]
    assert done == [("llm-v1", "allowed"), ("llm-v1", "allowed"), ("llm-v2", "allowed")]
    assert all(r["rule"]["file"] == "executor-main.toml" for r in calls)


def test_the_record_of_a_start_says_which_filters_were_loaded(
    running: House, tmp_path: Path
) -> None:
    started = running.wait_record("supervisor", event="start", workload="executor.main")
    again = compile_filters(shipped_plan(tmp_path, "executor.main").seccomp)
    assert started["filters"] == list(digests(again))


def _error(answer: dict[str, object]) -> tuple[str, str]:
    error = answer["error"]
    assert isinstance(error, dict)
    return error["code"], error["message"]


def _message() -> bytes:
    return json.dumps({"workflow": "email_management", "content": MAIL}).encode()


def _chat(model: str = "llm-v1", **more: object) -> bytes:
    turns = [{"role": "user", "content": "hello"}]
    return json.dumps({"model": model, "messages": turns, **more}).encode()


def test_a_message_without_a_valid_token_gets_401(running: House) -> None:
    for token in (None, "not-a-token"):
        status, answer = running.http("/rest/messages", token, _message())
        assert status == 401, answer
    assert running.http("/rest/messages", running.token(), _message())[0] == 200


def test_a_token_is_good_for_one_workload_only(running: House) -> None:
    other = running.token("adapter.websocket")
    status, answer = running.http("/rest/messages", other, _message())
    assert status == 403, answer
    assert running.http("/rest/messages", running.token(), _message())[0] == 200


def test_a_protocol_that_nobody_speaks_gets_404_with_its_name(running: House) -> None:
    status, answer = running.http("/pigeon/messages", running.token(), _message())
    assert (status, *_error(answer)) == (
        404, "unsupported_protocol", "unsupported protocol: pigeon",
    )  # fmt: skip
    running.wait_record("service.ingress", reason="unsupported_protocol", status=404)
    assert running.http("/rest/messages", running.token(), _message())[0] == 200


def test_a_message_over_the_limit_gets_413(running: House) -> None:
    limit = 1048576  # adapter-rest.toml, inbound.body_max
    status, answer = running.http("/rest/messages", running.token(), b" " * (limit + 1))
    assert status == 413, answer
    padded = _message() + b" " * (limit - len(_message()))
    assert running.http("/rest/messages", running.token(), padded)[0] == 200


@pytest.mark.parametrize("body", [b"{", b"[]", b"\xff", b'{"workflow": 1}'])
def test_invalid_json_gets_400(running: House, body: bytes) -> None:
    status, answer = running.http("/rest/messages", running.token(), body)
    assert status == 400, answer
    assert running.http("/rest/messages", running.token(), _message())[0] == 200


def test_a_model_call_is_judged_by_the_policy_of_its_caller(running: House) -> None:
    status, answer = running.model_call(_chat("llm-v9"))
    code, text = _error(answer)
    assert (status, code) == (403, "model_not_allowed")
    line = next(
        number
        for number, text_ in enumerate((running.policies / "executor-main.toml").open(), 1)
        if text_.startswith("model =")
    )
    assert f"executor-main.toml:{line}" in text or f"executor-main.toml:{line - 3}" in text
    assert running.model_call(_chat(), token="anchorhold-placeholder-" + "0" * 32)[0] == 403
    assert running.model_call(b"{")[0] == 400
    assert running.model_call(_chat(filler="x" * 1048576))[0] == 413
    status, answer = running.model_call(_chat())
    assert status == 200, answer


def test_a_dead_model_server_is_502_with_the_reason(running: House) -> None:
    token = running.token()
    running.ask("stop", {"workload": "model.practice"})
    try:
        assert running.workload("model.practice")["state"] == "stopped"
        status, answer = running.http("/rest/messages", token, _message())
        code, text = _error(answer)
        assert (status, code) == (502, "upstream_unreachable"), answer
        assert "practice" in text
        with pytest.raises(ControlError) as refused:
            running.send("websocket")
        assert refused.value.code == "upstream_unreachable"
    finally:
        running.ask("restart", {"workload": "model.practice"})
    assert running.http("/rest/messages", token, _message())[0] == 200
