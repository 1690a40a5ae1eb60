"""Running supervisors: one for the whole session, or a new one for a test that breaks it."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest
from xprocess import XProcess

pytest.register_assert_rewrite("house")

from house import House  # noqa: E402 - only now are its assertions explained when they fail


@pytest.fixture
def house(xprocess: XProcess) -> Iterator[House]:
    """A house that the test opens itself, and may wreck."""
    made = House(xprocess)
    yield made
    made.close()


@pytest.fixture(scope="session")
def key() -> str:
    """A key for the practice model: random, worth nothing."""
    return f"sk-practice-{secrets.token_urlsafe(24)}"


@pytest.fixture(scope="session")
def running(xprocess: XProcess, key: str) -> Iterator[House]:
    """The house that tests share which leave it as they found it. It has a key."""
    made = House(xprocess)
    try:
        made.open()
        made.add_key(key)
        yield made
    finally:
        made.close()


@pytest.fixture(scope="session")
def healing(xprocess: XProcess, key: str) -> Iterator[House]:
    """The house that tests share which break a part of it and see it mend."""
    made = House(xprocess)
    try:
        made.open()
        made.add_key(key)
        yield made
    finally:
        made.close()
