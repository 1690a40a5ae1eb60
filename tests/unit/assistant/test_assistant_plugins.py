"""A private protocol is one module, found by its entry point."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from assistant.adapters import find
from assistant.errors import UnsupportedProtocol

MODULE = """
class Pigeon:
    name = "pigeon"

    async def serve(self, listen_port, router):
        raise NotImplementedError
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed distribution with two entry points: a new protocol, and one that is taken."""
    (tmp_path / "pigeon_adapter.py").write_text(MODULE)
    info = tmp_path / "pigeon_adapter-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pigeon-adapter\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[anchorhold.adapters]\npigeon = pigeon_adapter:Pigeon\nrest = pigeon_adapter:Pigeon\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))


def test_built_in_adapters_are_found_by_name() -> None:
    assert [find(name).name for name in ("rest", "websocket")] == ["rest", "websocket"]


@pytest.mark.usefixtures("plugin")
def test_a_plugin_adds_a_protocol_but_cannot_replace_one() -> None:
    assert find("pigeon").name == "pigeon"
    assert type(find("rest")).__module__ == "assistant.adapters.rest"
    assert "pigeon_adapter" in sys.modules


@pytest.mark.parametrize("name", ["smtp", "", "../rest", "rest:Rest"])
def test_an_unknown_protocol_is_named_in_the_error(name: str) -> None:
    with pytest.raises(UnsupportedProtocol, match=f"unsupported protocol: {name}"):
        find(name)
