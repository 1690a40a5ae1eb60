"""The packages: what is in them and what is not, and that anyone gets the same ones."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import stat
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from built import BUILD, ROOT, Deb, environment, suite

from supervisor import doctor

APP, RUNTIME = "usr/lib/anchorhold/app", "usr/lib/anchorhold/runtime"
PACKAGES = ("assistant", "probes", "proxy", "sandbox", "supervisor")
SITE = f"{RUNTIME}/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
CACHE = Path(
    os.environ.get("ANCHORHOLD_CACHE")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "anchorhold"
)


def tracked(*folders: str) -> list[str]:
    """Files of the tree that git knows and that are there."""
    command = ["git", "ls-files", "-z", "--", *folders]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in said.split("\0") if name and (ROOT / name).exists()]


def test_roots_package_holds_the_tree_and_nothing_else(debs: dict[str, Deb]) -> None:
    inside = {n: c for n, c in debs["anchorhold"].contents.items() if n.startswith(APP)}
    expected = {f"{APP}/{name}": (ROOT / name).read_bytes() for name in tracked(*PACKAGES)}
    expected[f"{APP}/bin/anchorhold"] = (ROOT / "packaging/anchorhold").read_bytes()
    policies = {f"{APP}/{name}" for name in tracked("policies")}
    assert len(expected) > 150
    assert set(inside) == set(expected) | policies
    assert [name for name, content in expected.items() if inside[name] != content] == []


def test_policies_differ_from_the_tree_in_this_releases_file_names_only(
    debs: dict[str, Deb],
) -> None:
    if suite() != "bookworm":
        pytest.skip("the tree's policies are for Debian 12, which this is not")
    for name in tracked("policies"):
        assert debs["anchorhold"].contents[f"{APP}/{name}"] == (ROOT / name).read_bytes(), name


def test_default_host_file_is_the_trees(debs: dict[str, Deb]) -> None:
    default = (ROOT / "policies/hosts/default.toml").read_bytes()
    assert debs["anchorhold"].contents["etc/anchorhold/host.toml"] == default
    conffiles = subprocess.run(
        ["dpkg-deb", "-I", debs["anchorhold"].path, "conffiles"], capture_output=True, check=True
    )
    assert {*conffiles.stdout.split()} == {
        b"/etc/anchorhold/host.toml",
        b"/etc/apt/apt.conf.d/60anchorhold",
    }


def test_everything_is_roots_and_only_root_changes_it(debs: dict[str, Deb]) -> None:
    for deb in debs.values():
        assert len(deb.members) > 50
        for name, member in deb.members.items():
            assert (member.uid, member.gid) == (0, 0), name
            assert member.isdir() or member.isfile() or member.issym(), name
            if member.issym():
                continue
            assert member.mode & (stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX | 0o022) == 0, name
            assert member.mode & 0o444 == 0o444, name
    programs = [n for n, m in debs["anchorhold"].members.items() if m.isfile() and m.mode & 0o111]
    # Debian's own hook recompiles root's modules when the interpreter changes.
    recompiles = "usr/share/python3/runtime.d/anchorhold.rtupdate"
    assert programs == ["usr/lib/anchorhold/after-update", f"{APP}/bin/anchorhold", recompiles]
    assert (
        f"/{programs[0]}".encode() in debs["anchorhold"].contents["etc/apt/apt.conf.d/60anchorhold"]
    )


def test_no_place_of_the_builder_is_named(debs: dict[str, Deb]) -> None:
    places = re.compile(
        rb"/tmp/tmp\.[A-Za-z0-9]{10}|" + re.escape(str(ROOT).encode()) + rb"(?![\w-])"
    )
    assert places.search(b"cd /tmp/tmp.AbCdEfGhIj/build")
    for deb in debs.values():
        assert [name for name, content in deb.contents.items() if places.search(content)] == []


def test_runtime_is_the_pinned_wheels_and_nothing_else(debs: dict[str, Deb]) -> None:
    lock = (ROOT / "packaging/locks/runtime.txt").read_text()
    wheels = [
        wheel
        for wheel in (CACHE / "wheels").glob("*/*.whl")
        if hashlib.sha256(wheel.read_bytes()).hexdigest() in lock
    ]
    assert len({wheel.name.split("-")[0] for wheel in wheels}) == lock.count("==")
    known = set()
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            known |= {(n, hashlib.sha256(archive.read(n)).digest()) for n in archive.namelist()}
    shipped = {n: c for n, c in debs["anchorhold-runtime"].contents.items() if n.startswith(SITE)}
    sources = {n for n in shipped if not n.endswith(".pyc")}
    strangers = [
        name
        for name in sources
        if (name.removeprefix(f"{SITE}/"), hashlib.sha256(shipped[name]).digest()) not in known
    ]
    assert len(sources) > 400
    assert strangers == []
    assert not [n for n in sources if re.search(r"\.pth$|/pip/|/(site|user)customize|/RECORD$", n)]


def test_runtimes_byte_code_is_complete_and_never_looked_at_again(debs: dict[str, Deb]) -> None:
    contents = debs["anchorhold-runtime"].contents
    modules = [name for name in contents if name.endswith(".py")]
    assert len(modules) > 300
    for name in modules:
        code = contents[importlib.util.cache_from_source(name)]
        magic, flags = code[:4], struct.unpack("<I", code[4:8])[0]
        assert magic == importlib.util.MAGIC_NUMBER, name
        assert flags == 0b01, f"{name}: not an unchecked hash (PEP 552)"
        assert code[8:16] == importlib.util.source_hash(contents[name]), name


def test_runtime_is_small_enough(debs: dict[str, Deb]) -> None:
    assert int(debs["anchorhold-runtime"].fields["Installed-Size"]) < 80 * 1024


def test_packages_depend_on_one_interpreter_and_on_each_other(debs: dict[str, Deb]) -> None:
    minor = sys.version_info[1]
    version = debs["anchorhold"].fields["Version"]
    assert debs["anchorhold-runtime"].fields["Version"] == version
    for deb in debs.values():
        depends = deb.fields["Depends"].split(", ")
        assert f"python3 (>= 3.{minor}~)" in depends
        assert f"python3 (<< 3.{minor + 1})" in depends
    assert f"anchorhold-runtime (>= {version})" in debs["anchorhold"].fields["Depends"]
    assert debs["anchorhold"].fields["Architecture"] == "all"
    assert debs["anchorhold-runtime"].fields["Architecture"] == "amd64"


def test_doctor_finds_every_file_it_wants(debs: dict[str, Deb], tmp_path: Path) -> None:
    for deb in debs.values():
        subprocess.run(["dpkg-deb", "-x", deb.path, tmp_path], check=True)
    (tmp_path / "usr/bin/python3").touch()  # Debian's, which the runtime's name for it leads to
    found = [*doctor._application(tmp_path / APP), *doctor._runtime(tmp_path / RUNTIME)]
    assert [each.name for each in found if each.state != "ok"] == []
    shutil.rmtree(tmp_path / APP / "sandbox")
    assert [each.state for each in doctor._application(tmp_path / APP)] == ["missing"]


def test_lintian_has_nothing_to_say(debs: dict[str, Deb]) -> None:
    paths = [str(deb.path) for deb in debs.values()]
    command = ["lintian", "--allow-root", "--display-info", "--pedantic", *paths]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (said.returncode, said.stdout) == (0, "")


def test_unchanged_files_are_not_built_again(debs: dict[str, Deb]) -> None:
    before = debs["anchorhold"].path.stat()
    began = time.monotonic()
    said = subprocess.run([BUILD], env=environment(), capture_output=True, text=True, check=True)
    assert "up to date" in said.stdout
    assert time.monotonic() - began < 10
    assert debs["anchorhold"].path.stat() == before


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A clone in another place, with the tree's changes, that belongs to nobody."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.geteuid() and "pytest" in folder.name:
            folder.chmod(0o755)
    tree = tmp_path / "another place" / "tree"
    for name in tracked():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tree / name)
    # The wheels are there already, as for whoever builds a second time.
    shutil.copytree(CACHE / "wheels", tmp_path / "cache/wheels")
    subprocess.run("git init -q . && git add -A .", shell=True, cwd=tree, check=True)
    (tree / "supervisor/junk.py").write_text("left lying about")
    (tree / "supervisor/__pycache__").mkdir()
    (tree / "supervisor/__pycache__/junk.cpython-311.pyc").write_bytes(b"junk")
    for path in (tmp_path, *tmp_path.rglob("*")):
        os.chown(path, 65534, 65534, follow_symlinks=False)
    return tree


def build_as_nobody(tree: Path) -> subprocess.CompletedProcess[str]:
    """Another user, umask, time zone and language; only the cache of wheels is the same."""
    other = environment(
        ANCHORHOLD_CACHE=str(tree.parents[1] / "cache"), HOME="/nonexistent",
        TZ="Pacific/Auckland", LANG="tr_TR.UTF-8", LC_ALL="tr_TR.UTF-8",
    )  # fmt: skip
    return subprocess.run(
        [tree / "packaging/deb.sh"], cwd="/", env=other, user=65534, group=65534, extra_groups=[],
        umask=0o077, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_anyone_anywhere_builds_the_same_packages(debs: dict[str, Deb], elsewhere: Path) -> None:
    said = build_as_nobody(elsewhere)
    assert said.returncode == 0, said.stdout + said.stderr
    assert "not packed, git does not know it: supervisor/junk.py" in said.stdout
    for deb in debs.values():
        again = elsewhere / "dist" / suite() / deb.path.name
        assert again.read_bytes() == deb.path.read_bytes(), f"{deb.path.name} differs"


def test_a_changed_wheel_is_refused(debs: dict[str, Deb], elsewhere: Path) -> None:
    wheels = sorted((elsewhere.parents[1] / "cache/wheels").glob("*/h11-*.whl"))
    assert wheels
    for wheel in wheels:
        wheel.write_bytes(wheel.read_bytes() + b"\0")
    said = build_as_nobody(elsewhere)
    assert said.returncode == 1
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in said.stderr
    assert not (elsewhere / "dist" / suite()).exists()
