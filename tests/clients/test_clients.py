"""Official clients, unmodified, in a sandbox with a placeholder key: all works, nothing leaks.

Each promise is asked of a run straight to the model server first, which shows that the client does
what the case is about and that the model server would have seen and said what must not pass.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from tests.clients.conftest import BACK, IMAGE, KEY, OUT, Runs
from tests.clients.sdks import SDKS, Sdk
from tests.clients.upstreams import anthropic, openai
from tests.unit.egress.harness import PLACEHOLDER

PLAIN = f"Use {BACK} with care."
CITY = {"city": "Berlin"}
THOUGHT = ["The user is in a hurry.", anthropic.SIGNATURE, anthropic.REDACTED]
WAYS = ("direct", "proxied")
FAULTS = ("bad", "denied", "limited", "broken", "overloaded", "timeout")

every_client = pytest.mark.parametrize("sdk", SDKS, ids=lambda sdk: sdk.name)
anthropics = pytest.mark.parametrize(
    "sdk", [s for s in SDKS if s.provider is anthropic.PROVIDER], ids=lambda sdk: sdk.name
)
with_key = pytest.mark.parametrize("sdk", [s for s in SDKS if s.header], ids=lambda sdk: sdk.name)


def cases(of: Callable[[Sdk], Iterable[str]]) -> pytest.MarkDecorator:
    """Every client with every case of it that `of` names."""
    pairs = [(sdk, case) for sdk in SDKS for case in of(sdk)]
    return pytest.mark.parametrize(
        ("sdk", "case"), pairs, ids=[f"{sdk.name}-{case}" for sdk, case in pairs]
    )


def masked(text: object, begin: str = "Use ", end: str = " with care.") -> bool:
    """Whether it is the model's sentence with something else in the place of the secret."""
    return (
        isinstance(text, str)
        and BACK not in text
        and text.startswith(f"{begin}[")
        and text.endswith(f"]{end}")
    )


def value(runs: Runs, sdk: Sdk, way: str, case: str) -> Any:
    """What the case came to, which must not be an exception."""
    outcome = runs(sdk.name, way).outcomes[case]
    assert not outcome.error, (way, outcome)
    return outcome.value


@cases(lambda sdk: sdk.texts)
def test_an_answer_arrives_whole_and_masked(runs: Runs, sdk: Sdk, case: str) -> None:
    assert value(runs, sdk, "direct", case) == PLAIN
    assert masked(value(runs, sdk, "proxied", case))


@every_client
def test_no_secret_of_a_prompt_reaches_the_model(runs: Runs, sdk: Sdk) -> None:
    direct, seen = ([s for s in runs(sdk.name, way).seen if s.method == "POST"] for way in WAYS)
    assert all(OUT.encode() in one.raw for one in direct)
    assert len(seen) > 10
    assert not [one.script for one in seen if OUT.encode() in one.raw]
    assert all(b"My token is [" in one.body for one in seen)


@every_client
def test_the_model_gets_the_real_key_and_never_the_placeholder(runs: Runs, sdk: Sdk) -> None:
    direct = runs(sdk.name, "direct").seen
    assert all(PLACEHOLDER.encode() in seen.raw for seen in direct)
    seen = runs(sdk.name, "proxied").seen
    wanted = {sdk.header: sdk.prefix + KEY} if sdk.header else {}
    assert [one.credentials() for one in seen] == [wanted] * len(seen)
    assert not [one.script for one in seen if PLACEHOLDER.encode() in one.raw]


@with_key
def test_the_client_never_sees_the_real_key(runs: Runs, sdk: Sdk) -> None:
    direct = value(runs, sdk, "direct", "echo")
    assert direct.startswith("Use you sent ") and PLACEHOLDER in direct
    assert "you sent " in value(runs, sdk, "proxied", "echo")
    proxied = runs(sdk.name, "proxied")
    assert not [case for case, outcome in proxied.outcomes.items() if KEY in repr(outcome)]
    assert KEY not in proxied.audit


@cases(lambda sdk: sdk.calls)
def test_a_tool_is_called_and_its_result_taken(runs: Runs, sdk: Sdk, case: str) -> None:
    direct = value(runs, sdk, "direct", case)
    assert direct == ["lookup", {**CITY, "token": BACK}, PLAIN]
    name, arguments, last = value(runs, sdk, "proxied", case)
    assert masked(arguments.pop("token"), "", "")
    assert (name, arguments) == ("lookup", CITY)
    assert masked(last)


@cases(lambda sdk: sdk.pieces)
def test_a_tool_call_in_pieces_is_still_json(runs: Runs, sdk: Sdk, case: str) -> None:
    assert value(runs, sdk, "direct", case) == ["lookup", {**CITY, "token": BACK}]
    name, arguments = value(runs, sdk, "proxied", case)
    assert masked(arguments.pop("token"), "", "")
    assert (name, arguments) == ("lookup", CITY)


@every_client
def test_an_image_reaches_the_model_byte_for_byte(runs: Runs, sdk: Sdk) -> None:
    for way in WAYS:
        value(runs, sdk, way, "image")
        found = [one for one in runs(sdk.name, way).of("text") if IMAGE.encode() in one.body]
        assert len(found) == 1, way


@pytest.mark.parametrize("sdk", [s for s in SDKS if s.embeds], ids=lambda sdk: sdk.name)
def test_an_embedding_is_the_models(runs: Runs, sdk: Sdk) -> None:
    for way in WAYS:
        assert value(runs, sdk, way, "embeddings") == [0.25, -0.5, 0.125], way


@pytest.mark.parametrize("sdk", [s for s in SDKS if s.media], ids=lambda sdk: sdk.name)
def test_pictures_and_speech_come_byte_for_byte(runs: Runs, sdk: Sdk) -> None:
    for way in WAYS:
        assert value(runs, sdk, way, "picture") == openai.PICTURE, way
        assert b64decode(value(runs, sdk, way, "speech")) == openai.SPEECH, way


@anthropics
def test_signed_thinking_comes_and_goes_back_unchanged(runs: Runs, sdk: Sdk) -> None:
    for way in WAYS:
        *thought, text = value(runs, sdk, way, "thinking")
        assert thought == THOUGHT, way
        assert text == PLAIN if way == "direct" else masked(text)
        _, second = runs(sdk.name, way).of("thinking")
        blocks = second.json["messages"][1]["content"]
        assert blocks[0] == {"type": "thinking", "thinking": THOUGHT[0], "signature": THOUGHT[1]}
        assert blocks[1] == {"type": "redacted_thinking", "data": THOUGHT[2]}


@anthropics
def test_a_citation_is_masked_as_text_is(runs: Runs, sdk: Sdk) -> None:
    assert value(runs, sdk, "direct", "citations") == [PLAIN, f"It says {BACK}."]
    text, cited = value(runs, sdk, "proxied", "citations")
    assert masked(text)
    assert masked(cited, "It says ", ".")


@anthropics
def test_an_error_within_a_stream_is_raised(runs: Runs, sdk: Sdk) -> None:
    direct, proxied = (runs(sdk.name, way).outcomes["stream_error"] for way in WAYS)
    assert direct.error
    assert proxied.error == direct.error
    assert "overloaded_error" in direct.message and "overloaded_error" in proxied.message


@cases(lambda sdk: FAULTS)
def test_an_error_raises_the_exception_that_the_reference_names(
    runs: Runs, sdk: Sdk, case: str
) -> None:
    direct, proxied = (runs(sdk.name, way).outcomes[case] for way in WAYS)
    assert (direct.error, proxied.error) == (sdk.errors[case], sdk.errors[case]), proxied
    assert proxied.status == direct.status


@pytest.mark.parametrize("sdk", [s for s in SDKS if s.retries], ids=lambda sdk: sdk.name)
def test_a_refused_request_is_tried_again(runs: Runs, sdk: Sdk) -> None:
    assert value(runs, sdk, "direct", "retry") == PLAIN
    assert masked(value(runs, sdk, "proxied", "retry"))
    for way in WAYS:
        assert len(runs(sdk.name, way).of("limited-once")) == 2, way


@every_client
def test_who_stops_waiting_is_gone_for_the_model_too(runs: Runs, sdk: Sdk) -> None:
    for way in WAYS:
        assert value(runs, sdk, way, "cancel") == "closed", way
        assert {"slow", "endless"} <= set(runs(sdk.name, way).gone), way


@cases(lambda sdk: ("reset", "reset_stream"))
def test_a_broken_answer_is_an_error_and_not_a_short_one(runs: Runs, sdk: Sdk, case: str) -> None:
    for way in WAYS:
        assert runs(sdk.name, way).outcomes[case].error, way


@every_client
def test_a_redirect_is_refused_and_nothing_follows_it(runs: Runs, sdk: Sdk) -> None:
    assert value(runs, sdk, "direct", "moved") == PLAIN
    assert len(runs(sdk.name, "direct").of("moved")) == 2
    proxied = runs(sdk.name, "proxied")
    assert proxied.outcomes["moved"].error
    assert len(proxied.of("moved")) == 1
