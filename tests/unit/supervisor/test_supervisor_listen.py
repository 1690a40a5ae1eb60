"""The gateway's address: loopback, free, or a sentence that says what to do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from supervisor.descriptors import append_to, listen


def test_a_taken_address_is_told_with_what_to_do() -> None:
    with listen("127.0.0.1:0") as first:
        taken = f"127.0.0.1:{first.getsockname()[1]}"
        with pytest.raises(OSError, match=r"gateway\.listen in the host file"):
            listen(taken)
    listen(taken).close()


def test_an_address_that_others_reach_is_refused() -> None:
    with pytest.raises(OSError, match="TLS"):
        listen("0.0.0.0:0")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"", b"{}\n"),
        (b'{"a": 1}\n', b'{"a": 1}\n{}\n'),
        (b'{"a": 1}\n{"b', b'{"a": 1}\n{"b\n{}\n'),
    ],
    ids=["new", "whole", "torn-by-a-power-cut"],
)
def test_a_torn_line_spoils_no_other(tmp_path: Path, before: bytes, after: bytes) -> None:
    path = tmp_path / "audit" / "log.jsonl"
    if before:
        path.parent.mkdir()
        path.write_bytes(before)
    fd = append_to(path)
    os.write(fd, b"{}\n")
    os.close(fd)
    assert path.read_bytes() == after
