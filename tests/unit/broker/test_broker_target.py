"""What a client of the broker may dial by name, and what a pattern lets it name."""

from __future__ import annotations

import pytest

from sandbox.broker.target import Target, find

TARGETS = {
    "net.a.chat": Target("net.a.chat", {"host": "chat.example", "port": 443}),
    "net.a.any": Target("net.a.any", {"host": "*.chat.example", "port": 8443}),
}


def test_a_plain_target_is_found_by_its_name_alone() -> None:
    found = find(TARGETS, "net.a.chat")
    assert found is not None and (found.host, found.port) == ("chat.example", 443)
    assert find(TARGETS, "net.a.chat=evil.example") is None
    assert find(TARGETS, "net.a.chat=chat.example") is None
    assert find(TARGETS, "net.a.other") is None


def test_a_pattern_needs_a_host_below_its_domain() -> None:
    found = find(TARGETS, "net.a.any=api.eu.chat.example")
    assert found is not None and (found.host, found.port) == ("api.eu.chat.example", 8443)
    assert found.allowed == () and found.literal is None


@pytest.mark.parametrize(
    "host",
    ["", "chat.example", "xchat.example", ".chat.example", "a..chat.example", "*.chat.example",
     "A.chat.example", "-a.chat.example", "a-.chat.example", "a b.chat.example",
     "evil.example", "a.chat.example.", "a/b.chat.example", "a\0.chat.example",
     f"{'a' * 64}.chat.example", "a.chat.example=b", "evil.example/.chat.example"],
)  # fmt: skip
def test_nothing_else_is_dialled_through_a_pattern(host: str) -> None:
    assert find(TARGETS, f"net.a.any={host}") is None
    assert find(TARGETS, "net.a.any") is None


def test_what_is_allowed_for_a_while_is_used_up() -> None:
    target = Target("ask", {"host": "chat.example", "port": 443}).bound(100.0, 2)
    assert target.spend(99.0) and target.spend(99.5) and not target.spend(99.6)
    late = Target("ask", {"host": "chat.example", "port": 443}).bound(100.0, 2)
    assert not late.spend(100.0)
    lasting = Target("ask", {"host": "chat.example", "port": 443})
    assert all(lasting.spend(1e9) for _ in range(1000))
