"""One supervisor for the whole suite, and the report at its end."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from xprocess import XProcess

from tests.attacks import report
from tests.attacks.layers import NAMES
from tests.attacks.scene import Bystanders, Place, Scene, write_policies
from tests.attacks.suite import Suite
from tests.host.supervisor.house import House


def pytest_configure(config: pytest.Config) -> None:
    config.stash[report.ROWS] = []
    config.stash[report.MATRIX] = {}


@pytest.fixture(scope="session")
def place() -> Iterator[Place]:
    """The compiled programs and the bait."""
    made = Place()
    yield made
    made.close()


@pytest.fixture(scope="session")
def others(place: Place) -> Iterator[Bystanders]:
    """Services, objects and a process of the host."""
    made = Bystanders(place.folder)
    yield made
    made.close()


@pytest.fixture(scope="session")
def suite(place: Place, others: Bystanders, xprocess: XProcess) -> Iterator[Suite]:
    """The running supervisor."""
    house = House(xprocess)
    try:
        write_policies(house, place)
        house.open()
        yield Suite(Scene(place, others, house))
    finally:
        house.close()


@pytest.fixture
def rows(request: pytest.FixtureRequest) -> list[report.Row]:
    """The report so far."""
    return request.config.stash[report.ROWS]


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print the report; as JSON too, where ANCHORHOLD_ATTACKS_JSON names a file."""
    rows, matrix = config.stash[report.ROWS], config.stash[report.MATRIX]
    if rows:
        terminalreporter.section("attacks")
        for line in report.lines(rows):
            bad = re.search(r"FAILED|NOT TESTABLE", line)
            terminalreporter.write_line(line, red="FAILED" in line, yellow=bool(bad))
    if matrix:
        terminalreporter.section("attacks by removed layer")
        for line in report.matrix_lines(matrix, NAMES):
            terminalreporter.write_line(line)
    if target := os.environ.get("ANCHORHOLD_ATTACKS_JSON"):
        Path(target).write_text(json.dumps(report.as_json(rows, matrix), indent=1))
