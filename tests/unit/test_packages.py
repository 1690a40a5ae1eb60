"""What the packages take from the tree: the default host file, the version, the manual, Depends."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

from supervisor.cli.run import parser
from supervisor.host import load_host, parse_host

ROOT = Path(__file__).resolve().parents[2]
DEFAULT = ROOT / "policies/hosts/default.toml"
DEMO = ROOT / "policies/hosts/demo.toml"


def test_default_host_gives_nothing_up() -> None:
    host = load_host(DEFAULT)
    assert (host.waivers, host.tpm.mode, host.denials) == ((), "device", False)
    assert host.listen.startswith("127.0.0.1:")


def test_default_host_differs_from_the_demo_only_in_what_the_demo_gives_up() -> None:
    default, demo = (tomllib.loads(path.read_text()) for path in (DEFAULT, DEMO))
    assert demo.pop("waive")
    for table in ("tpm", "probes"):
        assert default.pop(table) != demo.pop(table)
    assert default == demo


def test_the_example_in_the_default_host_is_a_waiver_that_counts() -> None:
    text = DEFAULT.read_text()
    example = text[text.index("#     [[waive]]") :].replace("#     ", "")
    found = parse_host((text + "\n" + example).encode())
    assert [waiver.guarantee for waiver in found.waivers] == ["software-tpm"]


def test_package_has_the_version_of_the_project() -> None:
    changelog = (ROOT / "packaging/debian/changelog").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = re.match(r"anchorhold \(([^)]+)\)", changelog)
    assert found
    assert found[1] == project["version"]


def test_package_depends_on_all_that_is_listed_to_run() -> None:
    listed = (ROOT / "packaging/debian-packages.txt").read_text()
    section = listed.split("# To run", 1)[1].split("\n\n", 1)[0]
    names = set(re.findall(r"^([a-z][a-z0-9.+-]+) ", section, re.MULTILINE))
    assert len(names) > 5
    # The environment comes ready-made in anchorhold-runtime.
    names -= {"python3-venv", "python3"}
    control = (ROOT / "packaging/debian/control").read_text()
    declared = control.split("Package: anchorhold\n")[1].split("Description:")[0]
    assert {name for name in names if not re.search(rf" {name}[ ,\n-]", declared)} == set()


def test_manual_names_every_verb() -> None:
    command = ["/usr/bin/python3", "-BIS", "packaging/manpage.py"]
    page = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    verbs = re.search(r"\{([^}]*)\}", parser().format_usage() + parser().format_help())
    for action in parser()._actions:
        for verb in action.choices or ():
            assert f".B anchorhold {verb}" in page.replace("\\-", "-"), verb
    assert verbs is None or verbs[1]
