"""Official clients, unmodified, in a sandbox with a placeholder key: all works, nothing leaks.

Each promise is asked of a run straight to the model server first, which shows that the client does
what the case is about and that the model server would have seen and said what must not pass.
"""

from __future__ import annotations

import pytest

from tests.clients.conftest import BACK, IMAGE, KEY, OUT, Runs
from tests.clients.sdks import SDKS, Sdk
from tests.unit.egress.harness import PLACEHOLDER

pytestmark = pytest.mark.parametrize("sdk", SDKS, ids=lambda sdk: sdk.name)

PLAIN = f"Use {BACK} with care."


def masked(text: object) -> bool:
    """Whether it is the model's sentence with something else in the place of the secret."""
    return (
        isinstance(text, str)
        and BACK not in text
        and text.startswith("Use [")
        and text.endswith("] with care.")
    )


@pytest.mark.parametrize("case", ["text", "stream", "image"])
def test_an_answer_arrives_whole_and_masked(runs: Runs, sdk: Sdk, case: str) -> None:
    assert runs(sdk.name, "direct").outcomes[case].value == PLAIN
    outcome = runs(sdk.name, "proxied").outcomes[case]
    assert masked(outcome.value), outcome


def test_no_secret_of_a_prompt_reaches_the_model(runs: Runs, sdk: Sdk) -> None:
    assert all(OUT.encode() in seen.raw for seen in runs(sdk.name, "direct").seen)
    seen = runs(sdk.name, "proxied").seen
    assert seen
    assert not [one.script for one in seen if OUT.encode() in one.raw]
    assert all(b"My token is [" in one.body for one in seen)


def test_the_model_gets_the_real_key_and_never_the_placeholder(runs: Runs, sdk: Sdk) -> None:
    direct = runs(sdk.name, "direct").seen
    assert all(PLACEHOLDER.encode() in seen.raw for seen in direct)
    seen = runs(sdk.name, "proxied").seen
    assert [one.credentials() for one in seen] == [{sdk.header: sdk.prefix + KEY}] * len(seen)
    assert not [one.script for one in seen if PLACEHOLDER.encode() in one.raw]


def test_the_client_never_sees_the_real_key(runs: Runs, sdk: Sdk) -> None:
    echoed = runs(sdk.name, "direct").outcomes["echo"]
    assert f"you sent {sdk.prefix}{PLACEHOLDER}" in str(echoed.value)
    proxied = runs(sdk.name, "proxied")
    assert "you sent " in str(proxied.outcomes["echo"].value)
    assert not [case for case, outcome in proxied.outcomes.items() if KEY in repr(outcome)]
    assert KEY not in proxied.audit


def test_a_tool_is_called_and_its_result_taken(runs: Runs, sdk: Sdk) -> None:
    city = {"city": "Berlin"}
    direct = runs(sdk.name, "direct").outcomes["tools"].value
    assert direct == ["lookup", {**city, "token": BACK}, PLAIN]
    outcome = runs(sdk.name, "proxied").outcomes["tools"]
    assert outcome.value, outcome
    name, arguments, last = outcome.value
    token = arguments.pop("token")
    assert (name, arguments) == ("lookup", city)
    assert token.startswith("[")
    assert masked(last)


def test_a_tool_call_in_pieces_is_still_json(runs: Runs, sdk: Sdk) -> None:
    city = {"city": "Berlin"}
    direct = runs(sdk.name, "direct").outcomes["tools_stream"].value
    assert direct == ["lookup", {**city, "token": BACK}]
    outcome = runs(sdk.name, "proxied").outcomes["tools_stream"]
    assert outcome.value, outcome
    name, arguments = outcome.value
    token = arguments.pop("token")
    assert (name, arguments) == ("lookup", city)
    assert token.startswith("[")


def test_an_image_reaches_the_model_byte_for_byte(runs: Runs, sdk: Sdk) -> None:
    for way in ("direct", "proxied"):
        found = [one for one in runs(sdk.name, way).of("text") if IMAGE.encode() in one.body]
        assert len(found) == 1, way


@pytest.mark.parametrize("case", ["bad", "denied", "limited", "broken", "overloaded", "timeout"])
def test_an_error_raises_the_exception_that_the_reference_names(
    runs: Runs, sdk: Sdk, case: str
) -> None:
    direct, proxied = (runs(sdk.name, way).outcomes[case] for way in ("direct", "proxied"))
    assert (direct.error, proxied.error) == (sdk.errors[case], sdk.errors[case]), proxied
    assert proxied.status == direct.status


def test_a_refused_request_is_tried_again(runs: Runs, sdk: Sdk) -> None:
    if "retry" not in runs(sdk.name, "direct").outcomes:
        pytest.skip(f"{sdk.name} does not try again by itself")
    assert runs(sdk.name, "direct").outcomes["retry"].value == PLAIN
    proxied = runs(sdk.name, "proxied")
    assert masked(proxied.outcomes["retry"].value), proxied.outcomes["retry"]
    for way in ("direct", "proxied"):
        assert len(runs(sdk.name, way).of("limited-once")) == 2, way


def test_who_stops_waiting_is_gone_for_the_model_too(runs: Runs, sdk: Sdk) -> None:
    for way in ("direct", "proxied"):
        ran = runs(sdk.name, way)
        assert ran.outcomes["cancel"].value == "closed", (way, ran.outcomes["cancel"])
        assert {"slow", "endless"} <= set(ran.gone), way


@pytest.mark.parametrize("case", ["reset", "reset_stream"])
def test_a_broken_answer_is_an_error_and_not_a_short_one(runs: Runs, sdk: Sdk, case: str) -> None:
    for way in ("direct", "proxied"):
        assert runs(sdk.name, way).outcomes[case].error, way


def test_a_redirect_is_refused_and_nothing_follows_it(runs: Runs, sdk: Sdk) -> None:
    direct, proxied = (runs(sdk.name, way) for way in ("direct", "proxied"))
    assert direct.outcomes["moved"].value == PLAIN
    assert len(direct.of("moved")) == 2
    assert proxied.outcomes["moved"].error
    assert len(proxied.of("moved")) == 1
