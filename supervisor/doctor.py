"""What this host can and cannot guarantee, with the evidence and the fix.

The names are those of a policy's `requires` and of a host file's `[[waive]]`. A guarantee that is
missing stops the workloads that require it, unless the host file gives it up by name. *Advice* is
what no shipped policy requires: it is shown and does not make doctor fail.
"""

from __future__ import annotations

import dataclasses
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sandbox import volumes
from sandbox.errors import SandboxError
from sandbox.limits import block_devices
from supervisor import boot, trials

if TYPE_CHECKING:
    from supervisor.host import Host, Waiver

State = Literal["ok", "missing", "waived"]

_UNIFIED = "boot with `systemd.unified_cgroup_hierarchy=1` on the kernel command line"
_KERNEL = "install a newer kernel: `apt install linux-image-amd64`"
_INSTEAD_OF_TPM = ("software-tpm", "file-key")  # the waivers for living without hardware-tpm
_PTH_KNOWN = ("distutils-precedence.pth",)
_MODULES = {
    "seccomp": "python3-seccomp", "prctl": "python3-prctl", "bcc": "python3-bpfcc",
    "tpm2_pytss": "python3-tpm2-pytss", "cryptography": "python3-cryptography",
    "rich": "python3-rich",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Guarantee:
    """One guarantee: what was found, what to do when it is missing, why it is given up.

    `level` is the version where there is one (Landlock's ABI). No shipped policy requires
    what is `advice`: it stops nothing but a workload whose own policy does.
    """

    name: str
    state: State
    evidence: str
    fix: str = ""
    why_waived: str = ""
    level: int = 0
    advice: bool = False

    def as_json(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return dataclasses.asdict(self)


def check(
    host: Host | None = None, root: Path = Path("/"), today: date | None = None
) -> list[Guarantee]:
    """Look at everything; in the order of the layers.

    `host` adds the waivers and the checks of the installed files. `root` is where /proc, /sys,
    /dev, /usr and /etc are looked for; system calls are always tried on the running kernel.
    """
    state = host.paths.state if host else None
    found = [*_cgroup(root, state), *_kernel(), *_filters(root), *_probes(root), *_secrets(root)]
    found += [_disk(host), *_modules(root), *_advice(root)]
    if host:
        found += [*_application(Path(host.paths.app)), *_runtime(Path(host.paths.runtime))]
        waivers = {waiver.guarantee: waiver for waiver in host.waivers}
        found = [_waive(each, waivers, today or date.today()) for each in found]
    return found


def unmet(requires: Iterable[str], guarantees: Iterable[Guarantee]) -> list[Guarantee]:
    """Those of `requires` ("cgroup:memory", "landlock>=2") that do not hold and are not waived.

    A name that doctor does not know counts as missing: a typing error must not weaken anything.
    """
    known = {each.name: each for each in guarantees}
    lacking = []
    for need in requires:
        name, _, least = need.partition(">=")
        found = known.get(name)
        if found is None:
            fix = "correct `requires`; `anchorhold doctor` lists the names"
            lacking.append(Guarantee(need, "missing", "no guarantee has this name", fix))
        elif found.state == "missing":
            lacking.append(found)
        elif found.state == "ok" and least and found.level < int(least):
            evidence = f"{found.evidence}, {least} is required"
            lacking.append(Guarantee(need, "missing", evidence, _KERNEL))
    return lacking


def _guarantee(
    name: str, holds: bool, evidence: str, fix: str, *, level: int = 0, advice: bool = False
) -> Guarantee:
    if holds:
        return Guarantee(name, "ok", evidence, "", "", level, advice)
    return Guarantee(name, "missing", evidence, fix, "", level, advice)


def _waive(found: Guarantee, waivers: dict[str, Waiver], today: date) -> Guarantee:
    waiver, alias = waivers.get(found.name), ""
    if waiver is None and found.name == "hardware-tpm":
        name = next((each for each in _INSTEAD_OF_TPM if each in waivers), "")
        waiver, alias = waivers.get(name), f" (waived as {name})"
    if waiver is None or found.state != "missing":
        return found
    if waiver.expires and today > waiver.expires:
        evidence = f"{found.evidence}; its waiver ended on {waiver.expires}"
        return dataclasses.replace(found, evidence=evidence)
    return dataclasses.replace(found, state="waived", why_waived=waiver.why + alias)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


# --- layers -------------------------------------------------------------------------------------


def _cgroup(root: Path, state: str | None = None) -> Iterator[Guarantee]:
    mount = _cgroup_mount(root)
    where = (
        f"cgroup2 is mounted at {mount}" if mount else "no cgroup2 mount in /proc/self/mountinfo"
    )
    yield _guarantee("cgroup", mount is not None, where, _UNIFIED)
    inside = root / mount.lstrip("/") if mount else root / "nowhere"
    controllers = (_read(inside / "cgroup.controllers") or "").split()
    legacy = _read(root / "proc/self/cgroup") or ""
    for name in ("memory", "pids", "cpu", "cpuset", "io"):
        v1 = re.search(rf"^\d+:[^:]*\b{'blkio' if name == 'io' else name}\b", legacy, re.MULTILINE)
        instead = "; it is mounted as cgroup v1" if v1 else ""
        evidence = f"cgroup.controllers: {' '.join(controllers) or '(none)'}"
        fix = f"{_UNIFIED}, or waive `cgroup:{name}` in the host file"
        holds = name in controllers
        evidence += "" if holds else instead
        if name == "io" and holds and state:
            holds, evidence, fix = _disks(state)
        yield _guarantee(f"cgroup:{name}", holds, evidence, fix, advice=name == "cpuset")
    yield _cgroup_kill(inside, mount is not None)
    error = trials.device_filter()
    fix = "run as root on a kernel with CONFIG_CGROUP_BPF, or waive `device-filter`"
    evidence = error or "a device program was attached in a child"
    yield _guarantee("device-filter", not error, evidence, fix)


def _disks(state: str) -> tuple[bool, str, str]:
    """io.max names a disk: whether the one below the state directory can be told."""
    try:
        return True, f"{state} is on {' and '.join(block_devices(state))}", ""
    except SandboxError as error:
        return False, str(error), error.fix


def _cgroup_kill(mount: Path, mounted: bool) -> Guarantee:
    """cgroup.kill exists in every cgroup but the root one; without any, the release must do."""
    kill = next(mount.glob("*/cgroup.kill"), None)
    release = os.uname().release
    numbers = [int(part) for part in re.findall(r"\d+", release)[:2]]
    if kill:
        return Guarantee("cgroup:kill", "ok", f"{kill} exists")
    if mounted and not any(mount.glob("*/cgroup.procs")):
        evidence = f"no cgroup to look into; Linux {release} (it came with 5.14)"
        return _guarantee("cgroup:kill", numbers >= [5, 14], evidence, _KERNEL)
    return Guarantee("cgroup:kill", "missing", "no cgroup has a cgroup.kill", _KERNEL)


def _cgroup_mount(root: Path) -> str | None:
    """The first cgroup2 mount point, from mountinfo (proc(5): the type stands after " - ")."""
    for line in (_read(root / "proc/self/mountinfo") or "").splitlines():
        left, _, right = line.partition(" - ")
        if right.startswith("cgroup2 "):
            return left.split()[4]
    return None


def _kernel() -> Iterator[Guarantee]:
    error = trials.user_namespace()
    fix = "`sysctl user.max_user_namespaces=1000` (and kernel.unprivileged_userns_clone=1)"
    yield _guarantee("userns", not error, error or "one was made in a child", fix)
    for name, trial in (
        ("clone3", trials.clone3),
        ("openat2", trials.openat2),
        ("mount_setattr", trials.mount_setattr),
        ("close_range", trials.close_range),
        ("pidfd", trials.pidfd),
    ):
        error = trial()
        yield _guarantee(f"kernel:{name}", not error, error or "tried", _KERNEL)
    # Every filter of a policy without `jit` refuses it; from 6.3 on the kernel does so as well.
    mdwe = "by the seccomp filter alone" if trials.mdwe() else "PR_SET_MDWE and the seccomp filter"
    yield Guarantee("mdwe", "ok", mdwe)


def _filters(root: Path) -> Iterator[Guarantee]:
    abi = trials.landlock()
    fix = "add `landlock` to the `lsm=` list of the kernel command line, or " + _KERNEL
    yield _guarantee("landlock", abi > 0, f"ABI {abi}" if abi else "ABI 0: absent or off", fix,
                     level=abi)  # fmt: skip
    actions = (_read(root / "proc/sys/kernel/seccomp/actions_avail") or "").split()
    module = _module(root, "seccomp")
    evidence = f"actions: {' '.join(actions) or '(none)'}; bindings: {module or 'not installed'}"
    fix = "`apt install python3-seccomp`" if actions else _KERNEL
    yield _guarantee("seccomp", "kill_process" in actions and module is not None, evidence, fix)


def _probes(root: Path) -> Iterator[Guarantee]:
    error = trials.probe()
    fix = "run as root on a kernel with CONFIG_BPF_SYSCALL and CONFIG_FTRACE_SYSCALLS"
    evidence = error or "a raw sys_enter program was attached in a child"
    yield _guarantee("probes", not error, evidence, fix)
    btf = (root / "sys/kernel/btf/vmlinux").exists()
    yield _guarantee("btf", btf, "/sys/kernel/btf/vmlinux" + ("" if btf else " is missing"),
                     "a kernel with CONFIG_DEBUG_INFO_BTF", advice=True)  # fmt: skip
    running = os.uname().release
    package = "amd64" if os.uname().machine == "x86_64" else "arm64"
    if (root / "lib/modules" / running / "build").exists():
        evidence, holds = f"/lib/modules/{running}/build", True
    else:
        others = sorted(path.name for path in (root / "usr/src").glob("linux-headers-*[0-9]-*"))
        others = [name for name in others if not name.endswith("-common")]
        holds = bool(others)
        evidence = f"none for {running}"
        evidence += f"; {others[-1]} serves instead" if others else ""
    fix = f"`apt install linux-headers-{running}`, or linux-headers-{package} where it has none"
    yield _guarantee("headers", holds, evidence, fix)


def _secrets(root: Path) -> Iterator[Guarantee]:
    error = trials.secret_memory()
    fix = "boot with `secretmem.enable=1`, or a kernel of 6.5 or later"
    yield _guarantee("secret-memory", not error, error or "memfd_secret works", fix)
    device = root / "dev/tpmrm0"
    held = device.exists()
    fix = "switch the TPM on in the firmware; without one, swtpm protects nothing against root"
    yield _guarantee("hardware-tpm", held, "/dev/tpmrm0" + ("" if held else " is missing"), fix)
    software = (root / "usr/bin/swtpm").exists()
    evidence = "/usr/bin/swtpm" + ("" if software else " is missing")
    yield _guarantee("swtpm", software or held, evidence, "`apt install swtpm`")


def _disk(host: Host | None) -> Guarantee:
    """How a state directory as a whole can be bounded."""
    state = Path(host.paths.state if host else "/var/lib/anchorhold")
    state = next(path for path in (state, *state.parents) if path.is_dir())
    if volumes.has_quota(state):
        return Guarantee("disk:quota", "ok", f"project quotas are on where {state} lies")
    error = trials.loop_device()
    evidence = f"no project quota; {error or 'images'} behind loop devices"
    fix = (
        "mount the file system of the state directory with prjquota (ext4: first "
        "`tune2fs -O project,quota`), or `apt install e2fsprogs` and `modprobe loop`, or waive "
        "`disk:quota`"
    )
    return _guarantee("disk:quota", not error, evidence, fix)


def _modules(root: Path) -> Iterator[Guarantee]:
    for name, package in _MODULES.items():
        found = _module(root, name)
        yield _guarantee(f"module:{name}", found is not None, found or "not installed",
                         f"`apt install {package}`")  # fmt: skip


def _module(root: Path, name: str) -> str | None:
    """Debian's module of that name, not whatever else an interpreter might find."""
    folder = root / "usr/lib/python3/dist-packages"
    if (folder / name / "__init__.py").exists():
        return str(folder / name)
    single = [*sorted(folder.glob(f"{name}.*so")), *folder.glob(f"{name}.py")]
    return str(single[0]) if single else None


# --- installed files ------------------------------------------------------------------------------


def _application(app: Path) -> Iterator[Guarantee]:
    wrong = _first_wrong(app)
    fix = f"`chown -R root: {app} && chmod -R u=rwX,go=rX {app}`"
    yield _guarantee("application", wrong is None, wrong or f"{app}: root's, readable by all", fix)


def _first_wrong(app: Path) -> str | None:
    if not app.is_dir():
        return f"{app} is no directory"
    packages = [app / name for name in ("assistant", "proxy", "probes", "sandbox", "supervisor")]
    for package in packages:
        if not package.is_dir():
            return f"{package} is missing"
        for folder, folders, files in os.walk(package):
            folders[:] = [name for name in folders if name != "__pycache__"]
            for path in (Path(folder), *(Path(folder, name) for name in files)):
                mode = path.lstat()
                need = 0o005 if stat.S_ISDIR(mode.st_mode) else 0o004
                if mode.st_uid != 0 or mode.st_mode & 0o022:
                    return f"{path} can be changed by others than root"
                if mode.st_mode & need != need:
                    return f"{path} cannot be read by a workload"
    return None


def _runtime(runtime: Path) -> Iterator[Guarantee]:
    python = runtime / "bin/python3"
    yield _guarantee("runtime", python.exists(), str(python) + ("" if python.exists() else
                     " is missing"), "run `make demo` or reinstall the package")  # fmt: skip
    files = sorted(runtime.glob("lib/python3*/site-packages/*.pth"))
    unknown = [str(path) for path in files if path.name not in _PTH_KNOWN]
    evidence = f"unknown: {', '.join(unknown)}" if unknown else f"{len(files)} known"
    fix = "remove the file: every interpreter of the runtime executes it at its start"
    yield _guarantee("runtime:pth", not unknown, evidence, fix)


# --- advice --------------------------------------------------------------------------------------


def _advice(root: Path) -> Iterator[Guarantee]:
    sysctl = root / "proc/sys/kernel"
    pattern = _read(sysctl / "core_pattern")
    yield _guarantee(
        "core-pattern",
        pattern is not None and not pattern.startswith("|"),
        f"kernel.core_pattern = {pattern}",
        "`sysctl kernel.core_pattern=core`: a piped handler runs as root on the memory of a "
        "crashed workload, and RLIMIT_CORE 0 does not stop it",
        advice=True,
    )
    scope = _read(sysctl / "yama/ptrace_scope")
    yield _guarantee(
        "yama",
        scope in ("1", "2", "3"),
        f"kernel.yama.ptrace_scope = {scope}" if scope else "Yama is not in this kernel",
        "`sysctl kernel.yama.ptrace_scope=2` (workloads have no ptrace either way)",
        advice=True,
    )
    ring = _read(sysctl / "io_uring_disabled")
    yield _guarantee(
        "io_uring",
        ring == "2",
        f"kernel.io_uring_disabled = {ring}" if ring else "this kernel has no switch for it",
        "`sysctl kernel.io_uring_disabled=2` (workloads have no io_uring either way)",
        advice=True,
    )
    yield _secure_boot(root)


def _secure_boot(root: Path) -> Guarantee:
    state = boot.secure_boot(root)
    fix = "switch Secure Boot on in the firmware; the TPM's PCR policy rests on it"
    return _guarantee("secure-boot", state == "on", state, fix, advice=True)
