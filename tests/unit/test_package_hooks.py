"""Package managers call us after they changed something; whatever we say, they go on."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HOOKS = ROOT / "packaging/hooks"
INSTALLED = "/usr/lib/anchorhold/after-update"


def run(folder: Path, program: str) -> subprocess.CompletedProcess[str]:
    """The hook, with `program` in place of the command line."""
    stand_in = folder / "anchorhold"
    stand_in.write_text(f"#!/bin/sh\n{program}\n")
    stand_in.chmod(0o755)
    return subprocess.run(
        [HOOKS / "after-update"], env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_it_asks_for_predictions_and_says_what_was_approved(tmp_path: Path) -> None:
    done = run(tmp_path, 'echo "$@" >"$0.called"; echo "approved for the next start: linux.efi"')
    assert (tmp_path / "anchorhold.called").read_text() == "keys approve --predict\n"
    assert (done.returncode, done.stdout) == (0, "approved for the next start: linux.efi\n")
    assert run(tmp_path, "echo nothing to do").stdout == ""


@pytest.mark.parametrize("code", [1, 20, 44, 125])
def test_a_failure_is_a_warning_with_the_next_step(tmp_path: Path, code: int) -> None:
    done = run(tmp_path, f"echo 'anchorhold: not predicted: PCR 7' >&2; exit {code}")
    assert done.returncode == 0
    assert "not predicted: PCR 7" in done.stderr and "recovery code" in done.stderr


def test_where_nothing_runs_nothing_is_said(tmp_path: Path) -> None:
    done = run(tmp_path, "echo 'anchorhold: it is not running' >&2; exit 4")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_nobody_is_asked_for_a_pin(tmp_path: Path) -> None:
    """Neither its input nor its terminal is the package manager's."""
    done = run(tmp_path, "read -r line && exit 3; (: </dev/tty) 2>/dev/null && exit 3; exit 0")
    assert (done.returncode, done.stderr) == (0, "")


def test_apt_and_dnf_name_the_program_that_the_package_installs() -> None:
    rules = (ROOT / "packaging/debian/rules").read_text()
    assert "debian/anchorhold/$(lib)/after-update" in rules
    assert "debian/anchorhold/etc/apt/apt.conf.d/60anchorhold" in rules
    if not Path("/usr/bin/apt-config").exists():
        pytest.skip("apt is not installed, so its own reading of the file was not tested")
    said = subprocess.run(
        ["/usr/bin/apt-config", "-c", HOOKS / "60anchorhold", "dump"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert re.search(rf'DPkg::Post-Invoke:: ".*{INSTALLED} \|\| true', said)
    actions = [
        line for line in (HOOKS / "anchorhold.action").read_text().splitlines() if line[0] != "#"
    ]
    assert actions and all(re.fullmatch(rf"[a-z0-9*]+:any:{INSTALLED}", a) for a in actions)
