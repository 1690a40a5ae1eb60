"""A key is replaced while the proxy runs: the new one at once, the old one nowhere in clear."""

from __future__ import annotations

import json
import os
import secrets
import threading
from collections.abc import Callable

import pytest

from proxy.egress.guard import MASK, KeyGuard
from proxy.egress.keys import KeyRing
from tests.memory import forms, search

from .harness import Proxy, Upstream, completion, delta, reply, secret_memory, stream


def key() -> str:
    return "sk-" + secrets.token_urlsafe(36)


def loaded(ring: KeyRing, keys: dict[str, str]) -> None:
    fd = secret_memory(keys)
    ring.load(fd)
    os.close(fd)


def test_what_replaces_a_table_wipes_it() -> None:
    ring, old = KeyRing(), key()
    loaded(ring, {"a": old})
    view = ring.value("a")
    assert bytes(view) == old.encode()
    loaded(ring, {"a": key()})
    assert bytes(view) == bytes(len(old)), "what still looks at the old pages sees zeros"


def test_a_replaced_key_is_masked_in_every_form_and_the_new_one_too() -> None:
    ring, old, new = KeyRing(), key(), key()
    guard = KeyGuard(ring)
    for table in ({"a": old}, {"a": new}):
        loaded(ring, table)
        guard.refresh()
    for value in (old, new):
        raw = value.encode()
        for text in (value, raw.hex(), raw.hex().upper(), json.dumps(value)[1:-1]):
            masked, count = guard.mask(f"before {text} after")
            assert (masked, count) == (f"before {MASK} after", 1)
            assert guard.find(f"ü {text}")
        encoded = forms(value)
        for name in encoded:
            if name.startswith("base64"):
                assert encoded[name].decode() not in guard.mask(encoded[name].decode())[0], name
    assert guard.mask(f"{old[:15]} {old[20:30]}") == (f"{old[:15]} {old[20:30]}", 0)


def test_a_replaced_key_is_held_back_until_it_is_whole() -> None:
    ring, old = KeyRing(), key()
    guard = KeyGuard(ring)
    loaded(ring, {"a": old})
    guard.refresh()
    loaded(ring, {})
    guard.refresh()
    for n in range(1, len(old)):
        assert guard.holds(f"a {old[:n]}") == 2
        assert guard.begins(old[:n])
    other = "sk-" + "." * 40
    assert guard.holds(f"a {other}") == len(f"a {other}"), "its middle has told that it is no key"


def test_a_key_that_comes_back_is_live_again() -> None:
    ring, one, two = KeyRing(), key(), key()
    guard = KeyGuard(ring)
    for value in (one, two, one):
        loaded(ring, {"a": value})
        guard.refresh()
    assert guard.mask(f"{one} {two}") == (f"{MASK} {MASK}", 2)
    loaded(ring, {})
    guard.refresh()
    assert guard.mask(f"{one} {two}") == (f"{MASK} {MASK}", 2)


def test_rotation_under_load_is_picked_up_and_nobody_is_interrupted(
    start: Callable[..., Proxy], upstream: Upstream
) -> None:
    proxy, old, new = start(), key(), key()
    proxy.listen()
    proxy.unlock({"practice": old})
    upstream.answer = stream([delta("one "), delta("two "), delta("three")], pause=0.4)
    answers: list[str] = []
    under_way = threading.Thread(
        target=lambda: answers.append(proxy.ask("slow", stream=True).text())
    )
    under_way.start()
    proxy.wait_for(lambda: bool(upstream.seen))
    proxy.unlock({"practice": new})
    upstream.answer = reply(completion(f"is it {old} or {new}?"))
    answer = proxy.ask("now")
    assert upstream.seen[0].headers["authorization"] == f"Bearer {old}"
    assert upstream.seen[-1].headers["authorization"] == f"Bearer {new}"
    said = answer.json["choices"][0]["message"]["content"]
    assert said == f"is it {MASK} or {MASK}?"
    under_way.join(30)
    assert answers == ["one two three"], "a request under way ends well"


@pytest.mark.parametrize("what", ["replaced", "removed"])
def test_memory_of_the_proxy_forgets_a_key(
    start: Callable[..., Proxy], upstream: Upstream, what: str
) -> None:
    """The scanner finds what was planted: a text that the proxy keeps, its configuration."""
    proxy, old, new = start(), key(), key()
    proxy.listen()
    proxy.unlock({"practice": old})
    for _ in range(3):
        assert proxy.ask("hello").status == 200
    assert upstream.seen[-1].headers["authorization"] == f"Bearer {old}"
    used = search(proxy.process.pid, [old, "llm-v1"])
    assert any(hit.startswith("secret 1 clear") for hit in used.hits), "the scanner finds nothing"
    assert "/secretmem (deleted)" in used.unreadable
    assert not [hit for hit in used.hits if hit.startswith("secret 0")], "in secret memory alone"
    proxy.unlock({"practice": new} if what == "replaced" else {})
    answer = proxy.ask("hello")
    assert answer.status == (200 if what == "replaced" else 503)
    assert search(proxy.process.pid, [old]).hits == {}
