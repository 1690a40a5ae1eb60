"""What an earlier run left: used as it is, or the start is refused; never begun anew in silence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sandbox.errors import SandboxError
from supervisor.loading import _remembered


@pytest.mark.parametrize("content", ["", "[]", '{"ids": {}}', '{"ids": 3, "versions": {}}'])
def test_a_broken_memory_refuses_the_start(tmp_path: Path, content: str) -> None:
    memory = tmp_path / "policies.json"
    assert _remembered(memory) == {"ids": {}, "versions": {}}
    good = {"ids": {"adapter.rest": 7}, "versions": {"adapter.rest": 1}}
    memory.write_text(json.dumps(good))
    assert _remembered(memory) == good
    memory.write_text(content)
    with pytest.raises(SandboxError, match=r"policies\.json"):
        _remembered(memory)
