"""Names are resolved outside the privileged process, checked, pinned, and never block anybody."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

PUBLIC = "93.184.216.34"


@pytest.fixture(scope="module")
def scene() -> Any:
    script = Path(__file__).with_name("dns_scene.py")
    done = subprocess.run(
        ["unshare", "--net", "--mount", "--propagation", "private", "/usr/bin/python3", "-I",
         str(script)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_public_name_is_connected(scene):
    assert scene["result"]["good.example"] == [0, "", PUBLIC]


@pytest.mark.parametrize("name", ["private", "metadata", "mapped", "nat64", "six"])
def test_name_that_points_inside_is_refused(scene, name):
    status, reason, peer = scene["result"][f"{name}.example"]
    assert (status, peer) == (4, ""), reason


def test_mixed_answer_uses_the_public_address_only(scene):
    assert scene["result"]["mixed.example"] == [0, "", PUBLIC]


def test_answer_is_pinned_against_rebinding(scene):
    assert scene["again"] == [[0, "", PUBLIC]] * 5
    assert scene["rebind_queries"] == 2, "one A and one AAAA query, then the pin"


def test_a_name_without_addresses_is_a_resolve_failure(scene):
    assert scene["result"]["empty.example"][0] == 3


def test_hanging_and_garbled_lookups_block_nobody_and_end(scene):
    assert scene["slow"] == [[98, 3], [99, 3]]
    assert 4 < scene["hang"] < 8
    assert scene["others"] < 2
