"""Doctor says what is so: hide one feature, and its name and no other turns missing."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest

from supervisor import doctor, trials
from supervisor.host import Host, Paths, Tpm, Waiver
from supervisor.policy.parse import load_directory

DAY = date(2026, 11, 23)


def a_host(tmp_path: Path, *waivers: Waiver) -> Host:
    paths = Paths(str(tmp_path / "app"), str(tmp_path / "runtime"), "/p", "/s", "/r")
    return Host(
        file="host.toml", paths=paths, id_base=1879050000, waivers=waivers, tpm=Tpm(),
        listen="127.0.0.1:8443", origins=(), denials=False, signed=False, upstreams=(),
    )  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A complete host, as files."""
    top = tmp_path / "root"
    for name, text in {
        "proc/self/mountinfo": "30 1 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory hugetlb pids\n",
        "sys/fs/cgroup/a.slice/cgroup.procs": "",
        "sys/fs/cgroup/a.slice/cgroup.kill": "",
        "proc/sys/kernel/seccomp/actions_avail": "kill_process errno allow\n",
        "proc/sys/kernel/core_pattern": "core\n",
        "proc/sys/kernel/yama/ptrace_scope": "2\n",
        "proc/sys/kernel/io_uring_disabled": "2\n",
        "sys/firmware/efi/efivars/SecureBoot-8be4df61": "\x06\0\0\0\x01",
        "sys/kernel/btf/vmlinux": "",
        "dev/tpmrm0": "",
        "usr/bin/swtpm": "",
        "usr/src/linux-headers-6.1.0-56-amd64/x": "",
        **{f"usr/lib/python3/dist-packages/{name}/__init__.py": "" for name in doctor._MODULES},
    }.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return top


def states(found: list[doctor.Guarantee]) -> dict[str, str]:
    return {each.name: each.state for each in found}


def test_complete_host_lacks_nothing_that_files_show(root: Path) -> None:
    missing = [each for each in doctor.check(root=root) if each.state != "ok"]
    assert missing == []


def unlink(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).unlink()


def write(name: str, text: str) -> Callable[[Path], None]:
    return lambda root: (root / name).write_text(text) and None


@pytest.mark.parametrize(
    ("hide", "names"),
    [
        (write("sys/fs/cgroup/cgroup.controllers", "cpuset cpu io pids\n"), {"cgroup:memory"}),
        (write("sys/fs/cgroup/cgroup.controllers", "cpuset memory cpu io\n"), {"cgroup:pids"}),
        (write("sys/fs/cgroup/cgroup.controllers", "cpuset memory io pids\n"), {"cgroup:cpu"}),
        (write("sys/fs/cgroup/cgroup.controllers", "cpuset memory cpu pids\n"), {"cgroup:io"}),
        (write("sys/fs/cgroup/cgroup.controllers", "memory cpu io pids\n"), {"cgroup:cpuset"}),
        (unlink("sys/fs/cgroup/a.slice/cgroup.kill"), {"cgroup:kill"}),
        (unlink("proc/sys/kernel/seccomp/actions_avail"), {"seccomp"}),
        (write("proc/sys/kernel/core_pattern", "|/usr/bin/handler\n"), {"core-pattern"}),
        (write("proc/sys/kernel/yama/ptrace_scope", "0\n"), {"yama"}),
        (write("proc/sys/kernel/io_uring_disabled", "0\n"), {"io_uring"}),
        (write("sys/firmware/efi/efivars/SecureBoot-8be4df61", "\x06\0\0\0\0"), {"secure-boot"}),
        (unlink("dev/tpmrm0"), {"hardware-tpm"}),
        (unlink("sys/kernel/btf/vmlinux"), {"btf"}),
        (
            unlink("usr/lib/python3/dist-packages/seccomp/__init__.py"),
            {"seccomp", "module:seccomp"},
        ),
        (unlink("usr/lib/python3/dist-packages/bcc/__init__.py"), {"module:bcc"}),
    ],
)
def test_one_hidden_feature_is_named_with_a_fix(
    root: Path, hide: Callable[[Path], None], names: set[str]
) -> None:
    hide(root)
    missing = [each for each in doctor.check(root=root) if each.state == "missing"]
    assert {each.name for each in missing} == names
    assert all(each.fix and each.evidence for each in missing)


def test_no_cgroup2_at_all(root: Path) -> None:
    (root / "proc/self/mountinfo").write_text("30 1 0:26 / /x rw - cgroup cgroup rw,memory\n")
    found = states(doctor.check(root=root))
    names = ["cgroup", "cgroup:memory", "cgroup:pids", "cgroup:cpu", "cgroup:kill"]
    assert [found[name] for name in names] == ["missing"] * 5


def test_controller_on_v1_is_said(root: Path) -> None:
    (root / "sys/fs/cgroup/cgroup.controllers").write_text("hugetlb\n")
    (root / "proc/self/cgroup").write_text("5:memory:/\n4:cpu,cpuacct:/\n3:cpuset:/\n0::/\n")
    found = {each.name: each for each in doctor.check(root=root)}
    assert "cgroup v1" in found["cgroup:memory"].evidence
    assert "cgroup v1" in found["cgroup:cpu"].evidence
    assert "cgroup v1" not in found["cgroup:pids"].evidence


def test_disk_rates_need_a_disk_that_can_be_told(root: Path, tmp_path: Path) -> None:
    def io(state: str) -> doctor.Guarantee:
        host = a_host(tmp_path, Waiver("cgroup:io", "state in memory", 3))
        host = dataclasses.replace(host, paths=dataclasses.replace(host.paths, state=state))
        return next(e for e in doctor.check(host, root, DAY) if e.name == "cgroup:io")

    assert io("/var/lib/not-made-yet").state == "ok"
    found = io("/dev/shm/state")
    assert (found.state, found.why_waived) == ("waived", "state in memory")
    assert "/dev/shm/state cannot be told" in found.evidence


def test_waiver_is_named_and_ends(root: Path, tmp_path: Path) -> None:
    (root / "sys/fs/cgroup/cgroup.controllers").write_text("cpu io\n")
    waivers = (
        Waiver("cgroup:memory", "hybrid host", 3),
        Waiver("cgroup:pids", "for a while", 6, "me", date(2026, 11, 22)),
        Waiver("cgroup:cpu", "not even needed", 9),
    )
    found = {e.name: e for e in doctor.check(a_host(tmp_path, *waivers), root, DAY)}
    memory = found["cgroup:memory"]
    assert (memory.state, memory.why_waived) == ("waived", "hybrid host")
    assert found["cgroup:pids"].state == "missing"
    assert "2026-11-22" in found["cgroup:pids"].evidence
    assert found["cgroup:cpu"].state == "ok", "what is there is not called waived"
    lacking = doctor.unmet(["cgroup:memory", "cgroup:pids"], found.values())
    assert [each.name for each in lacking] == ["cgroup:pids"]


def test_what_no_shipped_policy_requires_is_advice(root: Path) -> None:
    policies, errors = load_directory(Path(__file__).parents[3] / "policies")
    assert policies and not errors
    needed = {name.partition(">=")[0] for policy in policies for name in policy.requires}
    (root / "sys/fs/cgroup/cgroup.controllers").write_text("hugetlb\n")
    found = {each.name: each for each in doctor.check(root=root)}
    assert found["cgroup:cpuset"].advice
    assert [name for name in needed if found[name].advice] == []
    assert found["cgroup:memory"].state == "missing", "control: the others still count"
    assert doctor.unmet(["cgroup:cpuset"], found.values()), "a policy may require it all the same"


def test_the_software_tpm_waiver_is_named(root: Path, tmp_path: Path) -> None:
    (root / "dev/tpmrm0").unlink()
    host = a_host(tmp_path, Waiver("software-tpm", "no TPM here", 3))
    found = {each.name: each for each in doctor.check(host, root, DAY)}["hardware-tpm"]
    assert (found.state, found.why_waived) == ("waived", "no TPM here (waived as software-tpm)")


def test_unmet_compares_levels_and_refuses_unknown_names() -> None:
    found = [
        doctor.Guarantee("landlock", "ok", "ABI 2", level=2),
        doctor.Guarantee("probes", "missing", "EPERM", "be root"),
    ]
    assert doctor.unmet(["landlock", "landlock>=2"], found) == []
    assert [e.name for e in doctor.unmet(["landlock>=3"], found)] == ["landlock>=3"]
    assert doctor.unmet(["probes"], found) == [found[1]]
    assert [e.name for e in doctor.unmet(["cgruop"], found)] == ["cgruop"]


def hidden(calls: list[str], ask: Callable[[], object]) -> object:
    """What `ask` returns in a process from which the kernel hides `calls` (a real filter)."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            import seccomp

            program = seccomp.SyscallFilter(defaction=seccomp.ALLOW)
            for call in calls:
                program.add_rule(seccomp.ERRNO(38), call)
            program.load()
            os.write(writer, json.dumps(ask()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    answer = os.read(reader, 1 << 20)
    os.close(reader)
    return json.loads(answer)


@pytest.mark.parametrize(
    ("calls", "names"),
    [
        (["clone3"], ["kernel:clone3"]),
        (["openat2"], ["kernel:openat2"]),
        (["mount_setattr"], ["kernel:mount_setattr"]),
        (["close_range"], ["kernel:close_range"]),
        (["pidfd_open"], ["kernel:pidfd"]),
        (["memfd_secret"], ["secret-memory"]),
        (["landlock_create_ruleset"], ["landlock"]),
        (["bpf"], ["device-filter", "probes"]),
        (["unshare"], ["userns"]),
    ],
)
def test_hidden_system_call_is_found_by_trial(
    root: Path, calls: list[str], names: list[str]
) -> None:
    def missing() -> list[str]:
        return [each.name for each in doctor.check(root=root) if each.state == "missing"]

    assert missing() == [], "control: nothing is missing before"
    assert hidden(calls, missing) == names


def test_trials_leave_nothing_behind() -> None:
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names alone
    for trial in (
        trials.device_filter,
        trials.probe,
        trials.pidfd,
        trials.secret_memory,
        trials.user_namespace,
    ):
        assert trial() == ""
    assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 - names alone


def test_unknown_pth_and_writable_application_are_found(root: Path, tmp_path: Path) -> None:
    host = a_host(tmp_path)
    site = tmp_path / "runtime/lib/python3.11/site-packages"
    site.mkdir(parents=True)
    (tmp_path / "runtime/bin").mkdir()
    (tmp_path / "runtime/bin/python3").touch()
    (site / "distutils-precedence.pth").touch()
    for package in ("assistant", "proxy", "probes", "sandbox", "supervisor"):
        (tmp_path / "app" / package).mkdir(parents=True)
        (tmp_path / "app" / package / "__init__.py").touch()
        (tmp_path / "app" / package).chmod(0o755)
        (tmp_path / "app" / package / "__init__.py").chmod(0o644)
    found = states(doctor.check(host, root, DAY))
    assert (found["application"], found["runtime"], found["runtime:pth"]) == ("ok",) * 3
    (site / "evil.pth").write_text("import os")
    (tmp_path / "app/proxy/__init__.py").chmod(0o666)
    found = states(doctor.check(host, root, DAY))
    assert (found["application"], found["runtime:pth"]) == ("missing", "missing")
    (tmp_path / "app/proxy/__init__.py").chmod(0o600)
    one = next(e for e in doctor.check(host, root, DAY) if e.name == "application")
    assert "cannot be read by a workload" in one.evidence


def test_guarantees_print_as_json(root: Path) -> None:
    found = doctor.check(root=root)
    assert json.loads(json.dumps([each.as_json() for each in found]))[0] == {
        **dataclasses.asdict(found[0])
    }
