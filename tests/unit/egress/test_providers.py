"""Each provider's API as its clients speak it: key, routes, shapes; both ways masked."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy import providers

from .harness import KEY, PLACEHOLDER, PROVIDERS, Proxy, Upstream, reply
from .samples import SECRETS

MORE = ("anthropic", "gemini", "ollama")
SECRET = SECRETS["openai-key"]
MASK = "[REDACTED:openai-key]"
PLACES = {
    "anthropic": {"x-api-key": PLACEHOLDER},
    "gemini": {"x-goog-api-key": PLACEHOLDER},
    "ollama": {},
    "practice": {"authorization": f"Bearer {PLACEHOLDER}"},
}
TEXT = f"the key {SECRET} again"
CALLS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "anthropic": (
        "/v1/messages",
        {"model": "anthropic-1", "max_tokens": 9, "messages": [{"role": "user", "content": TEXT}]},
        {"type": "message", "content": [{"type": "text", "text": TEXT}],
         "usage": {"input_tokens": 2, "output_tokens": 2, "cache_read_input_tokens": 1}},
    ),
    "gemini": (
        "/v1beta/models/gemini-1:generateContent",
        {"contents": [{"role": "user", "parts": [{"text": TEXT}]}]},
        {"candidates": [{"content": {"parts": [{"text": TEXT, "thoughtSignature": "c2ln" * 9}]}}],
         "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 2,
                           "cachedContentTokenCount": 1}},
    ),
    "ollama": (
        "/api/chat",
        {"model": "ollama-1", "messages": [{"role": "user", "content": TEXT}], "stream": False},
        {"message": {"role": "assistant", "content": TEXT}, "done": True,
         "prompt_eval_count": 3, "eval_count": 2},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, shared_upstream: Upstream) -> Iterator[Proxy]:
    started = Proxy(tmp_path_factory.mktemp("providers"), shared_upstream, providers=MORE)
    started.listen()
    started.unlock()
    yield started
    assert started.close() == b"", "the proxy printed something"


@pytest.fixture
def proxy(shared: Proxy, upstream: Upstream) -> Proxy:
    return shared


def call(proxy: Proxy, provider: str, body: Any = None, **more: Any) -> Any:
    headers = PLACES[provider] | more.pop("headers", {})
    return proxy.request(body, token=None, headers=headers, **more)


@pytest.mark.parametrize("provider", MORE)
@pytest.mark.parametrize("named", [True, False])
def test_call_is_masked_both_ways_and_carries_the_key_where_it_goes(
    proxy: Proxy, upstream: Upstream, provider: str, named: bool
) -> None:
    path, asked, answered = CALLS[provider]
    upstream.answer = reply(answered)
    answer = call(proxy, provider, asked, path=f"/{provider}{path}" if named else path)
    assert answer.status == 200
    assert answer.json == json.loads(json.dumps(answered).replace(TEXT, f"the key {MASK} again"))
    (seen,) = upstream.seen
    assert seen.line == f"POST {path} HTTP/1.1"
    assert seen.json == json.loads(json.dumps(asked).replace(SECRET, MASK))
    assert PLACEHOLDER.encode() not in seen.raw
    keys = {name for name, value in seen.headers.items() if KEY in value}
    header = PROVIDERS[provider].header
    assert keys == ({header} if header else set())
    record = proxy.last()
    assert record["upstream"] == provider and record["model"] == f"{provider}-1"
    assert (record["tokens"]["input"], record["tokens"]["output"]) == (3, 2)
    assert record["redacted"]["request"] == record["redacted"]["response"] == {"openai-key": 1}


@pytest.mark.parametrize("provider", MORE)
def test_errors_have_the_shape_of_the_provider(
    proxy: Proxy, upstream: Upstream, provider: str
) -> None:
    path, asked, _ = CALLS[provider]
    upstream.answer = reply({"x": SECRET}, "429 Slow Down", retry_after="7")
    for body in (asked, {**asked, "model": "unknown"}):
        if provider == "gemini" and body is not asked:
            path = path.replace("gemini-1", "unknown")
        answer = call(proxy, provider, body, path=path)
        status = 429 if body is asked else 403
        assert answer.status == status and SECRET not in answer.body.decode()
        error = answer.json["error"]
        if provider == "anthropic":
            kinds = {429: "rate_limit_error", 403: "permission_error"}
            assert answer.json["type"] == "error" and error["type"] == kinds[status]
        elif provider == "gemini":
            kinds = {429: "RESOURCE_EXHAUSTED", 403: "PERMISSION_DENIED"}
            assert (error["code"], error["status"]) == (status, kinds[status])
        else:
            assert isinstance(error, str)
        if status == 429:
            assert answer.headers["retry-after"] == "7"


def test_models_are_answered_from_the_policy_in_each_shape(
    proxy: Proxy, upstream: Upstream
) -> None:
    def models(provider: str, path: str) -> Any:
        return call(proxy, provider, method="GET", path=path).json

    assert models("practice", "/practice/v1/models")["data"][0]["id"] == "llm-v1"
    assert [m["id"] for m in models("anthropic", "/anthropic/v1/models")["data"]] == ["anthropic-1"]
    assert models("gemini", "/v1beta/models")["models"][0]["name"] == "models/gemini-1"
    assert models("ollama", "/api/tags")["models"][0]["model"] == "ollama-1"
    assert models("anthropic", "/anthropic/v1/models/anthropic-1")["id"] == "anthropic-1"
    refused = call(proxy, "anthropic", method="GET", path="/anthropic/v1/models/llm-v1")
    assert refused.status == 403
    assert not upstream.seen


@pytest.mark.parametrize(
    ("provider", "headers", "code"),
    [
        ("anthropic", {"x-goog-api-key": PLACEHOLDER}, "credential_endpoint_mismatch"),
        ("anthropic", {"x-api-key": "wrong"}, "credential_mismatch"),
        ("anthropic", {"x-api-key": f"Bearer {PLACEHOLDER}"}, "credential_mismatch"),
        ("anthropic", {"authorization": f"Bearer {PLACEHOLDER}"}, "credential_mismatch"),
        ("gemini", {"authorization": f"Bearer {PLACEHOLDER}"}, "credential_endpoint_mismatch"),
        ("gemini", {"cookie": f"a={PLACEHOLDER}"}, "credential_endpoint_mismatch"),
    ],
)
def test_placeholder_is_good_only_where_this_providers_clients_put_a_key(
    proxy: Proxy, upstream: Upstream, provider: str, headers: dict[str, str], code: str
) -> None:
    path, asked, _ = CALLS[provider]
    answer = call(proxy, provider, asked, path=path, headers=headers)
    assert answer.status == 403 and code in answer.body.decode()
    assert proxy.last()["reason"] == code and not upstream.seen
    assert call(proxy, provider, asked, path=path).status == 200


def test_model_is_good_only_at_its_own_upstream(proxy: Proxy, upstream: Upstream) -> None:
    path, asked, _ = CALLS["anthropic"]
    answer = call(proxy, "anthropic", {**asked, "model": "llm-v1"}, path=path)
    assert answer.status == 403 and "model_not_allowed" in answer.body.decode()
    assert not upstream.seen


@pytest.mark.parametrize(
    ("provider", "path"),
    [
        ("gemini", "/v1beta/models/gemini-1:generateContent?key=x"),
        ("gemini", "/v1beta/models/gemini-1:streamGenerateContent?alt=sse&alt=sse"),
        ("gemini", "/v1beta/models/..%2fgemini-1:generateContent"),
        ("gemini", "/v1beta/models/../gemini-1:generateContent"),
        ("gemini", "/v1beta/models/gemini-1:tuneModel"),
        ("anthropic", "/v1/messages?betas=true"),
        ("anthropic", "/gemini/v1/messages"),
        ("ollama", "/api/pull"),
    ],
)
def test_unknown_route_or_query_is_refused(
    proxy: Proxy, upstream: Upstream, provider: str, path: str
) -> None:
    answer = call(proxy, provider, CALLS[provider][1], path=path)
    assert answer.status == 403 and "route_not_allowed" in answer.body.decode()
    assert not upstream.seen


def test_declared_query_and_headers_pass_masked_and_others_do_not(
    proxy: Proxy, upstream: Upstream
) -> None:
    path, asked, answered = CALLS["anthropic"]
    upstream.answer = reply(answered, request_id="req_1", x_other="no", set_cookie="a=b")
    headers = {
        "anthropic-version": "2023-06-01", "anthropic-beta": f"a {SECRET}",
        "x-stainless-lang": "python", "accept-encoding": "gzip",
    }  # fmt: skip
    answer = call(proxy, "anthropic", asked, path=f"{path}?beta=true", headers=headers)
    (seen,) = upstream.seen
    assert seen.line == f"POST {path}?beta=true HTTP/1.1"
    assert seen.headers["anthropic-version"] == "2023-06-01"
    assert seen.headers["anthropic-beta"] == f"a {MASK}"
    assert "x-stainless-lang" not in seen.headers
    assert seen.headers["accept-encoding"] == "identity"
    assert answer.headers["request-id"] == "req_1"
    assert not {"x-other", "set-cookie"} & answer.headers.keys()


def test_signed_thought_with_a_secret_is_left_out_with_its_signature(
    proxy: Proxy, upstream: Upstream
) -> None:
    path, asked, answered = CALLS["anthropic"]
    upstream.answer = reply(answered)
    clean = {"type": "thinking", "thinking": "plain", "signature": "c2ln" * 20}
    told = {"type": "thinking", "thinking": TEXT, "signature": "c2ln" * 20}
    emptied = {"type": "thinking", "thinking": "was [REDACTED:jwt]", "signature": ""}
    opaque = {"type": "redacted_thinking", "data": "QUJD" * 20}
    text = {"type": "text", "text": "so"}
    tool = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}}
    turns = [{"role": "assistant", "content": [clean, told, emptied, opaque, text]}]
    assert call(proxy, "anthropic", {**asked, "messages": turns}, path=path).status == 200
    assert upstream.seen[0].json["messages"] == [
        {"role": "assistant", "content": [clean, opaque, text]}
    ]
    turns = [{"role": "assistant", "content": [{**clean, "signature": SECRET}, text]}]
    answer = call(proxy, "anthropic", {**asked, "messages": turns}, path=path)
    assert answer.status == 422 and "secret_in_opaque" in answer.body.decode()
    turns = [{"role": "assistant", "content": [clean, tool]}]
    assert call(proxy, "anthropic", {**asked, "messages": turns}, path=path).status == 200
    assert upstream.seen[-1].json["messages"] == turns


def test_a_client_may_ask_gemini_under_its_other_version(proxy: Proxy, upstream: Upstream) -> None:
    path, asked, answered = CALLS["gemini"]
    upstream.answer = reply(answered)
    for start in ("", "/gemini"):
        answer = call(proxy, "gemini", asked, path=start + path.replace("/v1beta/", "/v1/"))
        assert answer.status == 200
        assert upstream.seen[-1].line == f"POST {path} HTTP/1.1"
    other = call(proxy, "gemini", asked, path=path.replace("/v1beta/", "/v2/"))
    assert other.status == 403


@pytest.mark.parametrize("error", ["a sentence", {"type": "rate_limit_error"}, 7, None])
def test_an_error_of_any_form_keeps_its_status(
    proxy: Proxy, upstream: Upstream, error: Any
) -> None:
    path, asked, _ = CALLS["ollama"]
    upstream.answer = reply({"error": error}, "429 Too Many Requests")
    answer = call(proxy, "ollama", asked, path=path)
    assert answer.status == 429
    assert "a sentence" not in str(answer.json)


def test_every_provider_file_loads_and_declares_what_it_needs() -> None:
    assert {"openai-compatible", *MORE} <= PROVIDERS.keys()
    for provider in PROVIDERS.values():
        assert any(route.local == "models" for route in provider.routes)
        for route in provider.routes:
            streams = route.responses & {"text/event-stream", "application/x-ndjson"}
            assert bool(streams) == (route.stream is not None), route.path


GOOD = (providers.FOLDER / "ollama.toml").read_text()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('base  = "/api"', 'base = "api"', "base"),
        ('shape = "ollama"', 'shape = "other"', "shape"),
        ('model     = "body"', 'model = "header"', "model"),
        ('stream    = "chat"', 'stream = "missing"', "no stream"),
        ('path      = "/chat"', 'path = "/chat/*"', "path"),
        ('method = "GET"', 'method = "CONNECT"', "method"),
        ('[client]', '[client]\nextra = 1', "extra"),
        ('local  = "models"', "", "exactly one"),
        ('end  = "done"', "end = 1", "end"),
    ],
)  # fmt: skip
def test_broken_provider_file_is_refused_with_its_place(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    (tmp_path / "openai-compatible.toml").write_text(GOOD)
    assert providers.load(tmp_path)
    assert old in GOOD
    (tmp_path / "wrong.toml").write_text(GOOD.replace(old, new, 1))
    with pytest.raises(providers.ProvidersInvalid, match=said) as raised:
        providers.load(tmp_path)
    assert "wrong.toml" in str(raised.value)


def test_unknown_provider_stops_the_start(start: Callable[..., Proxy]) -> None:
    proxy = start(upstream={"provider": "nobody"})
    assert proxy.process.wait(10) == 1
    assert b"upstreams.practice.provider" in proxy.close()
