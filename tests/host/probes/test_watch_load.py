"""The loader: what it pins, what it says, and what is left when it fails or dies."""

from __future__ import annotations

import ctypes
import functools
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from watchrig import Cgroups, Host, Tail, cgroup_id, quiet, registered, run_in, until

from probes import bpf, layout
from probes.errors import ProbeError
from probes.events import Kind
from probes.maps import Watch, clear

_libc = ctypes.CDLL(None, use_errno=True)
NEXT_PROGRAM, PROGRAM_FD, INFO = 11, 13, 15  # commands of bpf(2)


def _next(after: int) -> int:
    """The next program id of the kernel, 0 at the end."""
    attr = ctypes.create_string_buffer(struct.pack("<III", after, 0, 0), 12)
    if _libc.syscall(321, NEXT_PROGRAM, attr, 12) < 0:
        return 0
    return int(struct.unpack_from("<II", attr.raw)[1])


def _last() -> int:
    number = 0
    while following := _next(number):
        number = following
    return number


def _programs(host: Host) -> set[int]:
    """Ids of the kernel's programs that this host's loader made: a link keeps its program."""
    found, number = set(), 0
    while number := _next(number):
        attr = ctypes.create_string_buffer(struct.pack("<III", number, 0, 0), 12)
        fd = _libc.syscall(321, PROGRAM_FD, attr, 12)
        if fd < 0:
            continue  # gone meanwhile
        info = ctypes.create_string_buffer(64)
        attr = ctypes.create_string_buffer(struct.pack("<IIQ", fd, 64, ctypes.addressof(info)), 16)
        assert _libc.syscall(321, INFO, attr, 16) == 0
        os.close(fd)
        if struct.unpack_from("<I", info.raw, 48)[0] == host.uid:
            found.add(number)
    return found


@pytest.fixture
def other() -> Iterator[Host]:
    """A host of its own, for loads that must not touch the shared one."""
    host = Host()
    yield host
    host.close()


def test_status_names_headers_and_every_program(status: dict[str, Any]) -> None:
    assert status["code"] == 0
    assert status["headers"]["release"]
    assert status["headers"]["exact"] == (status["headers"]["release"] == os.uname().release)
    for name in ("on_enter", "on_exit", "on_signal", "on_exec", "on_fork", "on_attach"):
        assert status["programs"][name]["status"] == "attached"


def test_pins_stay_and_go_with_clear(other: Host, cgroups: Cgroups) -> None:
    status = other.load()
    assert status["ok"], status
    assert "on_exit" not in status["programs"]
    assert len(_programs(other)) == 6
    workload = cgroups.workload()
    with Watch.open(other.pins) as watch:
        tail = Tail(watch)
        with registered(watch, workload, quiet(but={110})):
            assert run_in(workload, "import os; os.getppid()").wait(10) == 0
        assert [e.number for e in tail.read() if e.kind == Kind.CALL] == [110]
        with pytest.raises(ProbeError) as refused:
            watch.register(cgroup_id(workload), quiet(denials=True))
        assert refused.value.code == "no_denials"
    assert clear(other.pins) > 6
    until(lambda: not _programs(other))
    with pytest.raises(ProbeError) as gone:
        Watch.open(other.pins)
    assert gone.value.code == "not_loaded"


def test_a_second_load_replaces_the_first(other: Host) -> None:
    assert other.load()["ok"]
    assert other.load(denials=True)["ok"]
    until(lambda: len(_programs(other)) == 7)
    with Watch.open(other.pins) as watch:
        assert watch.denials


@pytest.mark.parametrize("stage", ["starting", "compiling", "loading"])
def test_a_killed_loader_leaves_nothing(other: Host, stage: str) -> None:
    for _ in range(10):
        last = _last()
        loader, read = other.start_loader()
        if stage == "loading":  # its first program is in the kernel, the last link is not pinned
            until(functools.partial(_next, last), 30)
        else:
            time.sleep(0.05 if stage == "starting" else 0.6)
        loader.kill()
        loader.wait(10)
        with os.fdopen(read, "rb") as pipe:
            if not pipe.read():
                break
        clear(other.pins)  # it was done before we were: once more
        until(lambda: not _programs(other))
    else:
        pytest.fail("the loader was never caught at work")
    with pytest.raises(ProbeError) as refused:
        Watch.open(other.pins)
    assert refused.value.code == "not_loaded"
    if stage != "loading":
        # At most the map with which it tries whether it may pin at all; it watches nobody.
        assert {pin.name for pin in other.pins.iterdir()} <= {"trial"}
    clear(other.pins)
    until(lambda: not _programs(other))


def test_pins_without_manifest_are_refused_and_cleared(other: Host) -> None:
    assert other.load()["ok"]
    (other.pins / "manifest").unlink()
    with pytest.raises(ProbeError) as refused:
        Watch.open(other.pins)
    assert refused.value.code == "not_loaded"
    clear(other.pins)
    until(lambda: not _programs(other))


def test_missing_headers_are_named() -> None:
    host = Host(with_headers=False)
    try:
        status = host.load()
        assert (status["code"], status["error"]["code"]) == (1, "no_headers")
        assert "linux-headers" in status["error"]["fix"]
        assert list(host.pins.iterdir()) == []
    finally:
        host.close()


def test_a_missing_bpffs_is_named(host: Host, tmp_path: Path) -> None:
    for pins, number in ((Path("/tmp"), 1), (tmp_path / "absent", None)):
        status = host.load(pins=pins)
        assert (status["code"], status["error"]["code"]) == (1, "no_bpffs")
        assert number in (None, status["error"]["errno"])


@pytest.mark.parametrize("capabilities", ["", "+bpf", "+perfmon"])
def test_missing_capabilities_are_named_with_the_errno(other: Host, capabilities: str) -> None:
    status = other.load(capabilities=capabilities)
    assert (status["code"], status["error"]["code"]) == (1, "not_permitted")
    assert status["error"]["errno"] == 1
    assert list(other.pins.iterdir()) == []


def test_registering_twice_and_too_many_are_refused(watch: Watch, cgroups: Cgroups) -> None:
    workload = cgroups.workload()
    with registered(watch, workload, quiet()) as number, pytest.raises(ProbeError) as twice:
        watch.register(number, quiet())
    assert twice.value.code == "registered"
    numbers = range(1, layout.SLOTS + 1)
    for number in numbers:
        watch.register(number, quiet())
    with pytest.raises(ProbeError) as full:
        watch.register(layout.SLOTS + 1, quiet())
    assert full.value.code == "full"
    for number in numbers:
        watch.unregister(number)
    assert watch.counters() == {}


def test_a_reopened_watch_knows_what_is_registered(
    host: Host, watch: Watch, cgroups: Cgroups
) -> None:
    with registered(watch, cgroups.workload(), quiet()) as number, Watch.open(host.pins) as again:
        assert set(again.counters()) == {number}


def test_the_manifest_is_frozen(host: Host, watch: Watch) -> None:
    fd = bpf.get(str(host.pins / "manifest"))
    try:
        with pytest.raises(PermissionError):
            bpf.update(fd, bytes(4), bytes(layout.MANIFEST.size))
    finally:
        os.close(fd)
