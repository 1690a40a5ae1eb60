"""Fixtures of the assistant's tests."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from assistant_house import House, Program, ScriptedModel


@pytest.fixture
def start() -> Iterator[Callable[..., Program]]:
    """Starts programs and stops them at the end."""
    with contextlib.ExitStack() as stack:

        def starter(*arguments: str, **options: Any) -> Program:
            program = Program(*arguments, **options)
            stack.callback(lambda: program.process.poll() is None and program.stop(signal.SIGKILL))
            return program

        yield starter


@pytest.fixture
def house(start: Callable[..., Program], tmp_path: Path) -> Iterator[House]:
    """Everything running, with a fast model."""
    made = House(start, tmp_path)
    yield made
    made.close()


@pytest.fixture
def slow_house(start: Callable[..., Program], tmp_path: Path) -> Iterator[House]:
    """Everything running, with a model that streams one word every 0.2 seconds."""
    made = House(start, tmp_path, pace="0.2")
    yield made
    made.close()


@pytest.fixture
def scripted() -> Iterator[ScriptedModel]:
    """A scripted model on a free port."""
    model = ScriptedModel()
    yield model
    model.shutdown()
    model.server_close()
