"""What setup promises about wheels: pinned by hash, no index named, no start hooks."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ("runtime", "dev", "clients", "bench")


def faults(lock: str) -> list[str]:
    """Lines of a lock that are neither a pin with hashes nor a comment."""
    found = []
    for entry in re.split(r"(?<!\\)\n", lock):
        text = entry.strip()
        pinned = re.fullmatch(
            r"[a-z0-9-]+==[^\s;]+( ;[^\\]+)?( \\\n\s+--hash=sha256:[0-9a-f]{64})+", text
        )
        if text and not text.startswith("#") and not pinned:
            found.append(text.splitlines()[0])
    return found


@pytest.mark.parametrize("name", LOCKS)
def test_locks_hold_pins_with_hashes_and_nothing_else(name: str) -> None:
    lock = (ROOT / f"packaging/locks/{name}.txt").read_text()
    assert lock.count("==") > 10
    assert faults(lock) == []


@pytest.mark.parametrize(
    "line",
    [
        "h11==0.16.0",
        "h11>=0.16 \\\n    --hash=sha256:" + "0" * 64,
        "--index-url x",
        "-e .",
        "h11 @ x",
    ],
)
def test_a_loose_line_in_a_lock_is_found(line: str) -> None:
    assert faults(f"# comment\n{line}\n") == [line.splitlines()[0]]


def refuse_start_hooks(folder: Path) -> subprocess.CompletedProcess[str]:
    """The function of that name in packaging/setup.sh, run on a folder."""
    script = (ROOT / "packaging/setup.sh").read_text()
    wanted = [
        re.search(rf"^{name}\(\) {{\n.*?^}}\n", script, re.MULTILINE | re.DOTALL)
        for name in ("fail", "refuse_start_hooks")
    ]
    functions = "".join(found[0] for found in wanted if found)
    assert functions.count("() {") == 2
    command = ["/bin/sh", "-euc", f'{functions}\nrefuse_start_hooks "$1"', "sh", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", ["stealer.pth", "sitecustomize.py", "usercustomize.py"])
def test_a_wheel_that_runs_at_every_start_is_refused(name: str, tmp_path: Path) -> None:
    packages = tmp_path / "lib/python3.11/site-packages"
    packages.mkdir(parents=True)
    (packages / "honest.py").touch()
    assert refuse_start_hooks(tmp_path).returncode == 0
    (packages / name).touch()
    refused = refuse_start_hooks(tmp_path)
    assert refused.returncode == 1
    assert name in refused.stderr


LIST = """# Packages. Each section is a profile, named in brackets.

# To run [run]
python3      interpreter

# To boot a machine [vm]
qemu-system  the machine
"""


def profile_packages(profile: str, listed: str) -> list[str]:
    """The function of that name in packaging/setup.sh, run on a list."""
    script = (ROOT / "packaging/setup.sh").read_text()
    found = re.search(r"^profile_packages\(\) {\n.*?^}\n", script, re.MULTILINE | re.DOTALL)
    assert found
    command = ["/bin/sh", "-euc", f'{found[0]}\nprofile_packages "$1"', "sh", profile]
    done = subprocess.run(command, input=listed, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_a_profile_is_its_section_and_nothing_else() -> None:
    assert profile_packages("run", LIST) == ["python3"]
    assert profile_packages("vm", LIST) == ["qemu-system"]
    assert profile_packages("nothing", LIST) == []


def test_running_the_demo_does_not_install_a_virtual_machine() -> None:
    listed = (ROOT / "packaging/debian-packages.txt").read_text()
    makefile = (ROOT / "Makefile").read_text()
    assert "qemu-system-x86" in profile_packages("vm", listed)
    assert "python3-seccomp" in profile_packages("run", listed)
    script = (ROOT / "packaging/setup.sh").read_text()
    default = re.search(r"^profiles=\$\{\*:-([a-z ]+)\}$", script, re.M)
    assert default
    for profile in default[1].split():
        assert not [name for name in profile_packages(profile, listed) if "qemu" in name]
    assert re.search(r"^setup: .*\n\t@packaging/setup.sh$", makefile, re.M)
    assert re.search(r"^demo: setup ", makefile, re.M)
