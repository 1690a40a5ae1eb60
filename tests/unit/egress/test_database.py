"""The compiled rules: kept between starts, never stale, and refused when damaged."""

from __future__ import annotations

from pathlib import Path

import hyperscan
import pytest

from proxy.egress.redaction import database
from proxy.egress.redaction.database import Database, Expression, packed, stored
from proxy.egress.redaction.rules import RulesInvalid

WORDS: list[Expression] = [(0, "apple", 0), (1, "pear", hyperscan.HS_FLAG_CASELESS)]
TEXT = b"an apple, a PEAR, no APPLE"
HITS = [(0, 8), (1, 16)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rules.db"
    path.write_bytes(packed([Database(WORDS, {})]))
    return path


def test_what_was_stored_finds_the_same_and_is_not_compiled_again(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Database(WORDS, {}).scan(TEXT) == HITS

    def never(_: object) -> None:
        raise AssertionError("compiled")

    monkeypatch.setattr(database, "_compiled", never)
    assert Database(WORDS, stored(file)).scan(TEXT) == HITS
    with pytest.raises(AssertionError, match="compiled"):
        Database([*WORDS, (2, "plum", 0)], stored(file))  # other rules: the stored ones are stale


def test_a_stored_database_of_another_engine_is_compiled_anew(file: Path) -> None:
    (key,) = stored(file)
    assert Database(WORDS, {key: b"of another engine"}).scan(TEXT) == HITS


def test_a_damaged_file_is_named_and_no_file_is_none(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(RulesInvalid, match=r"rules\.db is damaged"):
        stored(file)
    assert stored(file.with_name("absent")) == {}
