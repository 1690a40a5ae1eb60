"""What an earlier run left: used as it is, or the start is refused; never begun anew in silence."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sandbox.errors import SandboxError
from supervisor.loading import _own, _remembered


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


def test_a_state_directory_is_never_what_a_link_leads_to(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o755)
    before = elsewhere.stat()
    (tmp_path / "w-link").symlink_to(elsewhere)
    (tmp_path / "w-file").write_text("a file")
    for name in ("w-link", "w-file"):
        with pytest.raises(OSError, match=name):
            _own(tmp_path / name, os.geteuid())
    assert elsewhere.stat() == before
    _own(tmp_path / "w-new", os.geteuid())
    assert (tmp_path / "w-new").stat().st_mode & 0o777 == 0o700
