"""The package as a user meets it: installed, looked at, removed, installed again, purged."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import datetime

import pytest

from tests.vm.installed import START_TIME, UNIT, WORKLOADS, shared, status, wait_until_well
from tests.vm.machine import Machine
from tests.vm.snapshot import Snapshots

INSTALL_TIME = 60  # seconds, where nothing else runs; four times that where something does
RUNTIME_KIB = 80 << 10
# Of the machine, not of the package: what its owner may do beyond what we need.
ADVICE = {"yama", "io_uring", "secure-boot"}
# Of every workload; limits come on top, as its policy has them.
LAYERS = {
    "cgroup", "namespaces", "identity", "capabilities", "root", "devices", "landlock", "network",
    "memory", "rlimits", "seccomp", "limit memory.max", "limit pids.max", "limit cpu.max",
}  # fmt: skip


@pytest.fixture(scope="module")
def machine(request: pytest.FixtureRequest, snapshots: Snapshots) -> Iterator[Machine]:
    """The installed service, running."""
    with shared(request, snapshots) as machine:
        yield machine


def test_apt_was_done_in_time_with_both_packages_alone(machine: Machine) -> None:
    history = machine.get("/var/log/apt/history.log").decode()
    started, ended = (
        datetime.strptime(re.findall(rf"{which}-Date: (.*)", history)[-1], "%Y-%m-%d  %H:%M:%S")
        for which in ("Start", "End")
    )
    seconds = (ended - started).total_seconds()
    print(f"apt install: {seconds:.0f} s (to hold where nothing else runs: {INSTALL_TIME} s)")
    assert 0 < seconds <= 4 * INSTALL_TIME
    names = re.findall(r"(\S+):\w+ \([^)]*\)", re.findall(r"^Install: (.*)$", history, re.M)[-1])
    assert sorted(names) == ["anchorhold", "anchorhold-runtime"]


def test_doctor_finds_every_guarantee_and_waives_none(machine: Machine) -> None:
    found = json.loads(machine.run("anchorhold doctor --json", timeout=120).stdout)
    assert len(found) > 25
    wrong = {one["name"]: one["evidence"] for one in found if one["state"] != "ok"}
    assert set(wrong) <= ADVICE, wrong
    assert all(one["advice"] for one in found if one["name"] in wrong)
    assert "0 missing, 0 waived" in machine.run("anchorhold doctor", timeout=120).stdout


def test_status_is_running_with_every_layer_of_every_workload(machine: Machine) -> None:
    found = status(machine)
    assert (found["state"], found["degraded"]) == ("running", [])
    assert (found["tpm"]["mode"], found["tpm"]["level"]) == ("device", "T0")
    assert sorted(one["id"] for one in found["workloads"]) == sorted(WORKLOADS)
    for one in found["workloads"]:
        verdicts = {layer["layer"]: layer["verdict"] for layer in one["layers"]}
        assert verdicts.keys() >= LAYERS and set(verdicts.values()) == {"PASS"}, one
    assert "Anchorhold 0.1.0: running\n" in machine.run("anchorhold status", timeout=60).stdout


def test_systemd_sees_one_service_in_a_slice_of_its_own(machine: Machine) -> None:
    shown = machine.run("systemctl status --no-pager anchorhold", timeout=60).stdout
    assert "Active: active (running)" in shown
    assert machine.run("systemctl is-enabled anchorhold").stdout == "enabled\n"
    assert machine.run("systemctl --failed --no-legend").stdout == ""
    assert machine.run(f"cat {UNIT}/cgroup.procs").stdout == "", "all below main and workloads"
    main = machine.run(f"ps -o comm= -p $(paste -sd, {UNIT}/main/cgroup.procs)").stdout.split()
    assert main == ["python3", "anchor-launcher", "anchor-broker"]
    for one in status(machine)["workloads"]:
        own = machine.get(f"/proc/{one['pid']}/cgroup").decode().strip()
        assert re.fullmatch(
            r"0::/anchorhold\.slice/anchorhold\.service/workloads/cell-[0-9]+", own
        ), own


def test_files_are_roots_and_state_is_for_root_alone(machine: Machine) -> None:
    odd = "find /usr/lib/anchorhold \\( ! -user root -o -perm /7022 \\) ! -type l"
    assert machine.run(odd).stdout == ""
    modes = machine.run("stat -c '%U %a %n' /var/lib/anchorhold /run/anchorhold").stdout
    assert modes == "root 700 /var/lib/anchorhold\nroot 700 /run/anchorhold\n"
    size = int(machine.run("du -sk /usr/lib/anchorhold/runtime").stdout.split()[0])
    print(f"anchorhold-runtime: {size / 1024:.0f} MiB")
    assert size <= RUNTIME_KIB


def test_bash_completes_a_verb(machine: Machine) -> None:
    words = "COMP_WORDS=(anchorhold st); COMP_CWORD=1"
    load = ". /usr/share/bash-completion/completions/anchorhold"
    said = machine.run(f'{load}; {words}; _anchorhold; echo "${{COMPREPLY[@]}}"').stdout
    assert {"status", "stop"} <= set(said.split())


def install(machine: Machine, snapshots: Snapshots) -> None:
    """`apt install ./*.deb`."""
    for package in snapshots.packages():
        machine.put(f"/root/packages/{package.name}", package)
    command = "DEBIAN_FRONTEND=noninteractive apt-get install --yes ./*.deb"
    done = machine.run(f"cd /root/packages && {command}", timeout=5 * INSTALL_TIME)
    print(f"installed again in {done.seconds:.0f} s")


def test_removed_and_installed_again_it_goes_on_until_it_is_purged(
    machine: Machine, snapshots: Snapshots
) -> None:
    """The last one here: nothing is left to look at afterwards."""
    # A small image may leave documents out, which dpkg would then miss.
    machine.run("sed -i '/^path-/d' /etc/dpkg/dpkg.cfg.d/*")
    machine.run("anchorhold keys add kept", stdin="sk-kept-5d20ab7731\n", timeout=120)
    # On a disk of its own, which only the supervisor and its cells see.
    see = "nsenter -m -t $(systemctl show -P MainPID anchorhold)"
    image, sums = "/var/lib/anchorhold/w-service-unlock.img", "find . -type f | xargs sha256sum"
    vault = machine.run(f"{see} sh -c 'cd {image[:-4]} && {sums}'")
    assert vault.stdout.strip()
    main = status(machine)
    machine.run("apt-get remove --yes anchorhold anchorhold-runtime", timeout=300)
    alive = " ".join(f"/proc/{one['pid']}" for one in main["workloads"])
    assert machine.run(f"ls -d {alive}", check=False).stdout == ""
    assert machine.run(f"ls -d {UNIT}", check=False).stdout == ""
    assert machine.run("ls /usr/lib/anchorhold", check=False).stdout == ""
    check = "cd /mnt && sha256sum --check; kept=$?; cd / && umount /mnt; exit $kept"
    machine.run(f"mount -o loop,ro {image} /mnt && {check}", stdin=vault.stdout)

    install(machine, snapshots)
    assert machine.run("dpkg -V anchorhold anchorhold-runtime", timeout=120).stdout == ""
    page = machine.run("zcat /usr/share/man/man8/anchorhold.8.gz").stdout
    assert ".TH ANCHORHOLD 8" in page.upper() and "doctor" in page
    machine.run("systemctl enable --now anchorhold", timeout=START_TIME)
    wait_until_well(machine)
    assert machine.run("anchorhold keys list", timeout=120).stdout == "kept\n"

    machine.run("apt-get purge --yes anchorhold anchorhold-runtime", timeout=300)
    left = "find / -xdev -name '*anchorhold*' -not -path '/proc/*' -not -path '/var/log/*'"
    gone = machine.run(f"{left} -not -path '/sys/*' -not -path '/root/*'", timeout=120).stdout
    assert gone == ""
