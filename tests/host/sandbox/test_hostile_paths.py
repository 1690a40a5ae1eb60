"""Hostile names, links at every mount source and target, and a path that is swapped under way.

A host canary says whether anything outside was read, written or given away.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox.errors import LaunchFailed, SandboxError
from sandbox.plan import Bind, Device, Symlink, Tmpfs
from supervisor.channels import Channels
from supervisor.descriptors import append_to
from tests.host.sandbox.faultrig import RAN, Rig
from tests.host.sandbox.stand import PYTHON

SECRET = "the host's own"


@pytest.fixture
def canary(rig: Rig) -> Iterator[Path]:
    """A host directory that no plan names. The workload's uid could read and write it."""
    made = rig.stand.directory / "canary"
    made.mkdir(mode=0o777)
    made.chmod(0o777)
    file = made / "file"
    file.write_text(SECRET)
    file.chmod(0o666)
    before = file.stat(), made.stat()
    rig.remember()
    yield made
    assert file.read_text() == SECRET
    assert [p.name for p in made.iterdir()] == ["file"]
    for path, was in zip((file, made), before, strict=True):
        now = path.stat()
        assert (now.st_mode, now.st_uid, now.st_gid) == (was.st_mode, was.st_uid, was.st_gid)
    file.unlink()
    made.rmdir()
    for link in rig.stand.directory.glob("planted*"):
        link.unlink()
    rig.remember()


def _planted(rig: Rig, canary: Path, name: str = "planted") -> Path:
    link = rig.stand.directory / name
    link.symlink_to(canary)
    rig.remember()
    return link


def test_a_link_is_the_source_of_no_mount(rig: Rig, canary: Path) -> None:
    link = _planted(rig, canary)
    for access in (("read",), ("read", "write")):
        for source in (link, link / "file", canary / "../planted/file"):
            error = _refused(rig, Bind(str(source), "/x", access))  # type: ignore[arg-type]
            assert error.step == "new root", error
            assert str(source)[1:] in str(error)
    (rig.stand.directory / "planted-null").symlink_to("/dev/null")
    rig.remember()
    error = _refused(rig, Device(str(rig.stand.directory / "planted-null"), 1, 3))
    assert error.step == "new root" and "planted-null" in str(error)
    # The control: without a link the same mount is made.
    plan = _plan(rig, "print(open('/x/file').read())\n" + RAN, Bind(str(canary), "/x", ("read",)))
    assert rig.do(rig.stand.finish, rig.do(rig.stand.start, plan)) == (0, 0)
    rig.ran.unlink()


def _plan(rig: Rig, code: str, *mounts: Any) -> Any:
    return rig.stand.plan((PYTHON, "-I", "-c", code), mounts=mounts)


def _refused(rig: Rig, *mounts: Any) -> LaunchFailed:
    error = rig.fails(LaunchFailed, plan=_plan(rig, RAN, *mounts))
    assert isinstance(error, LaunchFailed)
    return error


def test_a_link_planted_in_a_volume_is_the_target_of_no_mount(rig: Rig, canary: Path) -> None:
    """By the workload's last run, at the place of a mount point and above it (CVE-2021-30465)."""
    planted = rig.stand.volume / "inner"
    source = rig.stand.directory / "source"
    source.mkdir()
    try:
        for points_to in (str(canary), "/usr", "../../..", "/proc/self/fd"):
            planted.symlink_to(points_to)
            rig.remember()
            for mount in (
                Bind(str(source), "/data/inner", ("read",)),
                Bind(str(source), "/data/inner/deep", ("read",)),
                Tmpfs("/data/inner", 1 << 20, 16),
                Symlink("/data/inner/deep", "/x"),
            ):
                error = _refused(rig, mount)
                assert error.step == "new root", error
            # A file may cover the link itself; nobody follows it.
            plan = _plan(rig, RAN, Bind(str(canary / "file"), "/data/inner", ("read",)))
            assert rig.do(rig.stand.finish, rig.do(rig.stand.start, plan)) == (0, 0)
            rig.ran.unlink()
            planted.unlink()
        planted.mkdir()  # the control: an honest directory is a mount point
        rig.remember()
        plan = _plan(rig, RAN, Bind(str(source), "/data/inner", ("read",)))
        assert rig.do(rig.stand.finish, rig.do(rig.stand.start, plan)) == (0, 0)
        rig.ran.unlink()
    finally:
        planted.unlink() if planted.is_symlink() else planted.rmdir()
        source.rmdir()
        rig.remember()


def test_a_path_that_is_swapped_under_way_never_leads_out(rig: Rig, canary: Path) -> None:
    """A thread exchanges the directory for a link to the canary and back, without a pause."""
    there = rig.stand.directory / "there"
    there.mkdir()
    (there / "file").write_text("planned")
    aside, link = there.with_name("aside"), there.with_name("planted")
    link.symlink_to(canary)
    over = threading.Event()

    def swap() -> None:
        while not over.is_set():
            there.rename(aside)
            link.rename(there)
            over.wait(0.0005)
            there.rename(link)
            aside.rename(there)
            over.wait(0.0005)

    racer = threading.Thread(target=swap)
    racer.start()
    try:
        fooled = sum(_read(there / "file") == SECRET for _ in range(2000))
        assert fooled, "the control: who opens the path by its name is led to the canary"
        code = f"assert open('/x/file').read() == 'planned'\n{RAN}"
        plan = _plan(rig, code, Bind(str(there), "/x", ("read",)))
        ended = {"refused": 0, "planned": 0}
        for _ in range(150):
            try:
                running = rig.do(rig.stand.start, plan)
            except SandboxError as error:
                assert "'new root'" in str(error) or "root" in str(error), error
                ended["refused"] += 1
            else:
                assert rig.do(rig.stand.finish, running) == (0, 0)
                ended["planned"] += 1
    finally:
        over.set()
        racer.join()
    print(f"figure: {fooled} of 2000 plain reads fooled; launches: {ended}")
    assert ended["refused"] and ended["planned"], ended
    if rig.ran.exists():
        rig.ran.unlink()
    (there / "file").unlink()
    there.rmdir()
    link.unlink()


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


NAMES = ["..", ".", "", "a/../../b", "a\0b", "a\nb", "x" * 300, "memory", "-rf", "cgroup.procs"]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_name_becomes_no_path_outside(rig: Rig, canary: Path, name: str) -> None:
    """The compiler lets none of these through but two. Behind it they do no harm either."""
    before = _everything(rig)
    plan = rig.stand.plan((PYTHON, "-I", "-c", RAN), workload=name)
    try:
        running = rig.do(rig.stand.start, plan)
    except (SandboxError, OSError, ValueError):
        rig.left_nothing()
    else:
        assert rig.do(rig.stand.finish, running) == (0, 0)
        rig.ran.unlink()
    audit = rig.stand.directory / "audit"
    assert all(path.parent == audit for path in _everything(rig) - before)


def _everything(rig: Rig) -> set[Path]:
    above = rig.stand.directory.parent
    return {*above.iterdir(), *rig.stand.directory.rglob("*")}


# --- links in the state directories ---------------------------------------------------------------


def test_no_log_is_written_through_a_link(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "x.jsonl").write_text("old")
    (tmp_path / "audit").symlink_to(elsewhere)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/x.log").symlink_to(elsewhere / "x.jsonl")
    for path in (tmp_path / "audit/x.jsonl", tmp_path / "audit/new.jsonl", tmp_path / "logs/x.log"):
        with pytest.raises(OSError, match=r"audit|x\.log"):
            append_to(path)
    assert [p.name for p in elsewhere.iterdir()] == ["x.jsonl"]
    assert (elsewhere / "x.jsonl").read_text() == "old"
    os.close(append_to(tmp_path / "logs/y.log"))  # the control


def test_no_socket_is_removed_behind_a_link(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "below").mkdir(parents=True)
    kept = [elsewhere / "host.sock", elsewhere / "below/host.sock"]
    for path in kept:
        path.touch()
    channel = tmp_path / "channel"
    channel.mkdir()
    (channel / "client").symlink_to(elsewhere)
    (channel / "real").mkdir()
    (channel / "real/left.sock").touch()
    Channels(channel, {}).close()
    assert not channel.exists()  # the control: what a killed run left is removed
    channel.symlink_to(elsewhere)
    Channels(channel, {}).close()
    assert not channel.is_symlink() and all(path.exists() for path in kept)
