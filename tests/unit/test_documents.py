"""What the documents say that a machine can check: commands, links, tables, dependencies."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import get_args

import pytest

from supervisor.cli import exits
from supervisor.cli.run import parser
from supervisor.vault.errors import Fault
from supervisor.workload import State

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "policies/README.md"]
)
TOP = "assistant|docs|packaging|policies|probes|proxy|sandbox|supervisor|tests"


def targets(makefile: str) -> set[str]:
    """The targets of a Makefile."""
    return set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))


def verbs(top: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The verbs of a parser by name."""
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def unknown_make_targets(text: str, makefile: str) -> set[str]:
    """Targets that a text tells people to make and that do not exist."""
    named = re.findall(r"(?:^|`|sudo )make ([a-z]+(?:-[a-z]+)*)\b", text, re.MULTILINE)
    return set(named) - targets(makefile)


def unknown_commands(text: str, top: argparse.ArgumentParser) -> set[str]:
    """Commands of ours in a text that the command line does not have, options included."""
    found = set()
    for words in re.findall(r"(?m)(?:^|`)anchorhold ([^`\n#]*)", text):
        here = top
        for word in words.split(" -- ")[0].split():
            choices = verbs(here)
            if word.startswith("--"):
                if (
                    word not in here._option_string_actions
                    and word not in top._option_string_actions
                ):
                    found.add(words.strip())
            elif word in choices:
                here = choices[word]
            elif choices and word.islower():
                found.add(words.strip())
    return found


def dead_links(document: Path, text: str) -> set[str]:
    """Relative links, and paths of the tree in backticks, that lead nowhere."""
    links = {m for m in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in m}
    paths = set(re.findall(rf"`((?:{TOP})/[A-Za-z0-9_./-]*)`", text))
    return {link for link in links if not (document.parent / link).exists()} | {
        path
        for path in paths
        if not (ROOT / path).exists() and not (document.parent / path).exists()
    }


def first_cells(text: str, heading: str) -> set[str]:
    """The first column of the table that begins with a heading cell, without backticks."""
    rows = text.split(f"| {heading} |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    return {row.split("|")[1].strip().strip("`") for row in rows}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_and_links_of_a_document_exist(document: Path) -> None:
    text = document.read_text()
    assert unknown_make_targets(text, (ROOT / "Makefile").read_text()) == set()
    assert unknown_commands(text, parser()) == set()
    assert dead_links(document, text) == set()


def test_what_does_not_exist_is_found() -> None:
    assert unknown_make_targets("run `make everything`", "test: setup\n") == {"everything"}
    assert unknown_commands("`anchorhold explode`", parser()) == {"explode"}
    assert unknown_commands("anchorhold keys print x", parser()) == {"keys print x"}
    assert unknown_commands("anchorhold status --colour", parser()) == {"status --colour"}
    assert unknown_commands("anchorhold status --json", parser()) == set()
    assert dead_links(ROOT / "README.md", "[x](docs/nothing.md)") == {"docs/nothing.md"}
    assert dead_links(ROOT / "README.md", "`sandbox/nothing.py`") == {"sandbox/nothing.py"}


def test_every_exit_code_is_in_the_table() -> None:
    codes = {str(value) for name, value in vars(exits).items() if name.isupper()}
    vault = {fault.code for fault in Fault} - {
        fault.code for fault in (Fault.INTERNAL, Fault.USAGE)
    }
    assert 10 <= min(vault) <= max(vault) <= 69, "as the table has it"
    assert first_cells((ROOT / "docs/operations.md").read_text(), "code") == codes | {"10 to 69"}


def test_every_state_is_in_the_table() -> None:
    text = (ROOT / "docs/operations.md").read_text()
    assert first_cells(text, "state of a workload") == set(get_args(State))


def names_in(path: str) -> set[str]:
    """The names that begin the lines of a list of packages."""
    lines = (ROOT / path).read_text().splitlines()
    return {found[0] for line in lines if (found := re.match(r"[A-Za-z0-9][A-Za-z0-9_.-]*", line))}


@pytest.mark.parametrize(
    "path",
    ["packaging/debian-packages.txt", "packaging/locks/runtime.in", "packaging/locks/dev.in"],
)
def test_every_dependency_has_its_reason(path: str) -> None:
    names = names_in(path)
    text = (ROOT / "docs/dependencies.md").read_text().split("## Looked at and left out")[0].lower()
    text = re.sub(r"libtss2-tcti-\*", "libtss2-tcti-device0 libtss2-tcti-swtpm0", text)
    assert len(names) > 5
    assert {name for name in names if name.lower() not in text} == set()


def test_every_line_of_the_hardening_checklist_is_answered() -> None:
    lines = re.findall(r"^\| ([A-F][0-9]+) \|", (ROOT / "docs/hardening.md").read_text(), re.M)
    counts = {"A": 8, "B": 8, "C": 20, "D": 13, "E": 7, "F": 7}
    assert lines == [
        f"{letter}{number}" for letter, count in counts.items() for number in range(1, count + 1)
    ]


def test_every_test_that_a_document_names_exists() -> None:
    known = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        known |= {path.stem, *re.findall(r"^def (test_\w+)", path.read_text(), re.M)}
    named = {name for path in DOCUMENTS for name in re.findall(r"`(test_\w+)`", path.read_text())}
    assert len(named) > 40
    assert named - known == set()
