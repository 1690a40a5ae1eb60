"""State directories on a real system: in images, under a project quota, and with neither."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.vm.installed import shared, status, wait_until_well
from tests.vm.machine import Machine
from tests.vm.snapshot import Snapshots

STATE, ID = "/var/lib/anchorhold", "executor.main"
DIRECTORY = f"{STATE}/w-executor-main"
SIZE = 256 << 20
FILL = """
import errno, os, sys
uid, most, name = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
os.setgroups([])
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)
written, code, part = 0, 0, b"x" * (1 << 16)
try:
    fd = os.open(name, os.O_WRONLY | os.O_CREAT, 0o600)
    while written < most:
        written += os.write(fd, part)
    os.fsync(fd)
except OSError as error:
    code = error.errno
print(written, errno.errorcode.get(code, "0"))
"""


@pytest.fixture(scope="module")
def machine(request: pytest.FixtureRequest, snapshots: Snapshots) -> Iterator[Machine]:
    """The installed service, running."""
    with shared(request, snapshots) as machine:
        yield machine


def disk(machine: Machine) -> tuple[dict[str, Any], dict[str, str]]:
    """The executor, and what the status says of its directory."""
    one = next(one for one in status(machine)["workloads"] if one["id"] == ID)
    return one, next((layer for layer in one["layers"] if layer["layer"] == "disk"), {})


def fill(machine: Machine, most: int) -> tuple[int, str]:
    """Write as the executor into its directory, past its limit for one file; (bytes, errno)."""
    one, _ = disk(machine)
    place = f"cd /proc/{one['pid']}/root/state"
    written, code = 0, "0"
    for number in range(4):
        words = f"{one['uid']} {most // 2} filler{number}"
        said = machine.run(f"{place} && python3 -I - {words}", stdin=FILL, timeout=300).stdout
        some, code = int(said.split()[0]), said.split()[1]
        written += some
        if code != "0" or written >= most:
            break
    machine.run(f"{place} && rm -f filler*")
    return written, code


def free(machine: Machine) -> int:
    """Bytes free where the state lies."""
    return int(machine.run(f"df -B1 --output=avail {STATE} | tail -n 1").stdout)


def test_an_image_bounds_the_whole_directory(machine: Machine) -> None:
    _, layer = disk(machine)
    assert layer["verdict"] == "PASS" and layer["evidence"].startswith("image,"), layer
    before = free(machine)
    written, code = fill(machine, 2 * SIZE)
    print(f"image: {written} of {SIZE} bytes, then {code}")
    assert code == "ENOSPC" and SIZE // 2 < written <= SIZE
    assert before - free(machine) < 16 << 20, "its room was taken long before"
    found = {each["name"]: each for each in doctor(machine)}
    assert (found["disk:quota"]["state"], found["device-filter"]["state"]) == ("ok", "ok")
    assert "loop" in found["disk:quota"]["evidence"]


def doctor(machine: Machine) -> list[dict[str, Any]]:
    """`anchorhold doctor --json`."""
    said = json.loads(machine.run("anchorhold doctor --json", timeout=120, check=False).stdout)
    return list(said["guarantees"] if isinstance(said, dict) else said)


def test_a_restart_leaves_no_device_and_loses_nothing(machine: Machine) -> None:
    see = "nsenter -m -t $(systemctl show -P MainPID anchorhold)"
    machine.run(f"{see} sh -c 'echo kept >{DIRECTORY}/mark'")
    devices = machine.run("losetup --noheadings --list | wc -l").stdout
    for how in ("restart", "kill -s KILL"):
        machine.run(f"systemctl {how} anchorhold", timeout=300)
        machine.wait("systemctl is-active anchorhold", 300)
        wait_until_well(machine)
        assert machine.run(f"{see} cat {DIRECTORY}/mark").stdout == "kept\n"
        assert machine.run("losetup --noheadings --list | wc -l").stdout == devices
    machine.run("systemctl stop anchorhold", timeout=300)
    machine.wait('test -z "$(losetup --noheadings --list | grep anchorhold)"', 30)
    assert machine.run(f"ls {DIRECTORY}").stdout == "", "outside, nothing is mounted"


def fresh(machine: Machine, mount: str) -> None:
    """Stop it and put another, empty disk below its state directory."""
    machine.run("systemctl stop anchorhold", timeout=300)
    machine.run(
        "systemctl reset-failed anchorhold", check=False
    )  # more starts than the unit allows
    machine.run(f"umount {STATE} 2>/dev/null; {mount} && chmod 700 {STATE}", timeout=120)


def test_a_project_quota_bounds_it_where_there_is_one(machine: Machine) -> None:
    make = "truncate -s 1G /root/disk && mkfs.ext4 -q -F -O quota,project -E quotatype=prjquota"
    machine.run("modprobe quota_v2", check=False)
    fresh(machine, f"{make} /root/disk && mount -o loop,prjquota /root/disk {STATE}")
    # What is there before the first start is counted as well.
    machine.run(f"mkdir -p {DIRECTORY}/old && head -c 64M /dev/zero >{DIRECTORY}/old/data")
    machine.run("systemctl start anchorhold", timeout=300)
    wait_until_well(machine)
    _, layer = disk(machine)
    assert layer["verdict"] == "PASS" and layer["evidence"].startswith("project quota,"), layer
    assert machine.run(f"ls {STATE}/*.img", check=False).stdout == ""
    written, code = fill(machine, 2 * SIZE)
    print(f"quota: {written} of {SIZE} bytes beside 64 MiB, then {code}")
    assert code == "EDQUOT" and SIZE // 2 < written <= SIZE - (64 << 20)
    # Control: root, who is above the quota, writes more into the same directory.
    machine.run(f"head -c 300M /dev/zero >{DIRECTORY}/root && rm {DIRECTORY}/root", timeout=120)


def test_with_neither_it_is_refused_until_it_is_waived_by_name(machine: Machine) -> None:
    """The last one here: the tools are taken away."""
    fresh(machine, f"mount -t tmpfs -o size=512m none {STATE}")
    machine.run("chmod a-x /usr/sbin/mkfs.ext4 && systemctl start anchorhold", timeout=300)
    one, _ = disk(machine)
    assert one["state"] == "failed" and one["pid"] is None, one
    assert "disk:quota" in one["error"] and "e2fsprogs" in one["error"]
    for name in ("disk:quota", "cgroup:io"):  # a tmpfs lies on no disk whose rate could be limited
        waiver = f'[[waive]]\\nguarantee = "{name}"\\nwhy = "a test"\\n'
        machine.run(f"printf '\\n{waiver}' >>/etc/anchorhold/host.toml")
    machine.run("systemctl restart anchorhold", timeout=300)
    machine.wait("anchorhold status --json | grep -q '\"disk:quota\"'", 120)
    one, layer = disk(machine)
    assert one["state"] == "running", one["error"]
    assert layer["verdict"] == "DEGRADED", layer
    assert "disk:quota" in [gap["guarantee"] for gap in status(machine)["degraded"]]
