"""The operator's page on keys knows every fault of the vault, its exit code and no other."""

from __future__ import annotations

import re
from pathlib import Path

from supervisor.vault.errors import Fault

PAGE = (Path(__file__).resolve().parents[2] / "docs/keys.md").read_text()


def test_every_fault_is_in_the_table_in_the_order_of_its_code() -> None:
    table = PAGE.partition("| codes | faults |")[2]
    rows = re.findall(r"^\| ([0-9to, ]+) \| (.+) \|$", table, re.MULTILINE)
    found = {}
    for codes, names in rows:
        first, _, last = codes.partition(" to ")
        numbers = (
            range(int(first), int(last) + 1) if last else [int(one) for one in codes.split(", ")]
        )
        words = [word.split(" ")[0] for word in names.split(", ")]
        assert len(words) == len(numbers), codes
        found |= dict(zip(words, numbers, strict=True))
    assert found == {fault.name: fault.code for fault in Fault}


def test_every_verb_that_a_fix_names_is_there() -> None:
    from supervisor.cli.completion import _walk
    from supervisor.cli.run import parser

    verbs = {" ".join(node.path) for node in _walk(parser(), ())}
    named = [verb for f in Fault for verb in re.findall(r"anchorhold (keys [a-z-]+)", f.fix)]
    assert len(named) > 5 and not set(named) - verbs
