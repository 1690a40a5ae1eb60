"""A plan's limits as cgroup files, and whether what the kernel made of them means the same.

Source: the kernel's Documentation/admin-guide/cgroup-v2.rst. The kernel normalises what is written
(whole pages, ranges of processors, one io.max line per device), so meanings are compared, not text.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sandbox.errors import SandboxError
from sandbox.plan import Limits

_PAGE = os.sysconf("SC_PAGESIZE")
_PERIOD = 100_000  # microseconds; cpu.max is a quota in each of them
_UNIFIED = "boot with a pure cgroup v2 tree (systemd.unified_cgroup_hierarchy=1)"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One limit after it was looked for: what was asked, what the kernel says, and the judgement.

    "absent": it is not in force and its controller is in `waived`; "wrong": nobody waived it.
    """

    file: str
    wanted: str
    found: str
    state: Literal["in force", "absent", "wrong"]
    fix: str = ""


def controller(file: str) -> str:
    """The controller that a file belongs to; "cgroup" for those that every cgroup has."""
    return file.partition(".")[0]


def files(limits: Limits) -> dict[str, str]:
    """The files and the values that `limits` asks for; `io.max` without its devices.

    A workload's cgroup has no children, whatever its limits are.
    """
    found = {"cgroup.max.descendants": "0", "cgroup.max.depth": "0"}
    if limits.memory is not None:
        found["memory.max"] = str(limits.memory)
        found["memory.swap.max"] = "0"
        found["memory.oom.group"] = "1"
    if limits.memory_high is not None:
        found["memory.high"] = str(limits.memory_high)
    if limits.pids is not None:
        found["pids.max"] = str(limits.pids)
    if limits.cpu is not None:
        found["cpu.max"] = f"{round(limits.cpu * _PERIOD)} {_PERIOD}"
    if limits.cpu_weight is not None:
        found["cpu.weight"] = str(limits.cpu_weight)
    if limits.cpus:
        found["cpuset.cpus"] = cpu_list(limits.cpus)
    if limits.io is not None:
        rates = (
            ("rbps", limits.io.read), ("wbps", limits.io.write),
            ("riops", limits.io.read_ops), ("wiops", limits.io.write_ops),
        )  # fmt: skip
        found["io.max"] = " ".join(f"{key}={rate}" for key, rate in rates if rate is not None)
    return found


def apply(leaf: Path, limits: Limits, waived: Collection[str]) -> list[str]:
    """Write every limit into the cgroup `leaf` and read it back.

    Returns the files of those not in force, whose controllers are in `waived`. Raises SandboxError
    `limit_not_applied` with the limit and the fix.
    """
    for file, value in files(limits).items():
        try:
            for line in _lines(file, value, limits):
                _write(f"{leaf}/{file}", line)
        except FileNotFoundError:
            continue  # judged below
        except OSError as error:
            _refuse_unless(waived, file, f"the kernel refuses {value!r}: {error.strerror}")
        except SandboxError as error:
            _refuse_unless(waived, file, str(error), error.fix)
    missing = []
    for outcome in look(leaf, limits, waived):
        if outcome.state == "wrong":
            _refuse_unless((), outcome.file, outcome.found, outcome.fix)
        elif outcome.state == "absent":
            missing.append(outcome.file)
    return missing


def look(leaf: Path, limits: Limits, waived: Collection[str]) -> Iterator[Outcome]:
    """Every limit as the kernel has it now."""
    for file, value in files(limits).items():
        fix = ""
        try:
            # A processor may be missing on the host or above us: what counts is what remains.
            shown = "cpuset.cpus.effective" if file == "cpuset.cpus" else file
            found = _read(f"{leaf}/{shown}").strip()
            good = all(means(file, line, found) for line in _lines(file, value, limits))
            found = found or "(empty)"
        except FileNotFoundError:
            good, found, fix = False, *_why_absent(leaf, file)
        except SandboxError as error:
            good, found, fix = False, str(error), error.fix
        if good:
            yield Outcome(file, value, found, "in force")
        elif controller(file) in waived:
            yield Outcome(file, value, f"{found}; waived as cgroup:{controller(file)}", "absent")
        else:
            yield Outcome(file, value, found, "wrong", fix)


def _read(path: str) -> str:
    # Twice a dozen files at every launch: pathlib would be half of its time.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 65536).decode()
    finally:
        os.close(fd)


def _write(path: str, value: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def means(file: str, wanted: str, found: str) -> bool:
    """Whether the kernel's text says what was asked for. Never raises: nonsense means nothing."""
    try:
        if file == "io.max":
            device, *rates = wanted.split()
            there = next((line for line in found.splitlines() if line.split()[0] == device), "")
            return set(rates) <= set(there.split()[1:])
        if file == "cpuset.cpus":
            return cpu_set(wanted) == cpu_set(found)
        if controller(file) == "memory" and file != "memory.oom.group":
            return int(found) == int(wanted) // _PAGE * _PAGE
        return [int(number) for number in found.split()] == [int(n) for n in wanted.split()]
    except (ValueError, IndexError):
        return False


def _lines(file: str, value: str, limits: Limits) -> list[str]:
    """What is written to the file, one write each: io.max takes one device at a time."""
    if file != "io.max" or limits.io is None:
        return [value]
    return [f"{device} {value}" for device in block_devices(limits.io.path)]


def _refuse_unless(waived: Collection[str], file: str, why: str, fix: str = "") -> None:
    if controller(file) not in waived:
        fix = fix or f"correct [limits] of the policy, or waive cgroup:{controller(file)} by name"
        raise SandboxError("limit_not_applied", f"{file}: {why}", fix)


def _why_absent(leaf: Path, file: str) -> tuple[str, str]:
    name = controller(file)
    given = _read(f"{leaf}/cgroup.controllers").split()
    waive = f"or waive cgroup:{name} by name in the host file"
    if name in given:  # an old kernel, or one without this part
        return f"this kernel's {name} controller has no {file}", f"install a newer kernel, {waive}"
    return f"this host has no cgroup v2 {name} controller", f"{_UNIFIED}, {waive}"


# --- processors -----------------------------------------------------------------------------------


def cpu_set(text: str) -> frozenset[int]:
    """The processors of a list such as "0-3,8" (cpuset(7), list format). Raises ValueError."""
    found: set[int] = set()
    for part in text.split(",") if text else ():
        first, dash, last = part.partition("-")
        low, high = int(first), int(last if dash else first)
        if low > high:
            raise ValueError(f"{part} counts down")
        found.update(range(low, high + 1))
    return frozenset(found)


def cpu_list(cpus: Collection[int]) -> str:
    """The same as text, as short as the kernel writes it."""
    parts: list[tuple[int, int]] = []
    for cpu in sorted(cpus):
        if parts and parts[-1][1] == cpu - 1:
            parts[-1] = (parts[-1][0], cpu)
        else:
            parts.append((cpu, cpu))
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)


# --- block devices --------------------------------------------------------------------------------


def block_devices(path: str, sys: Path = Path("/sys")) -> list[str]:
    """The whole disks ("254:0") under the file system of `path`, or of its nearest parent.

    A partition counts as its disk, which is where the kernel keeps the limit. Device mapper and
    RAID devices are throttled themselves, before the disks below them, and so is the loop device
    of a directory that is an image. Raises SandboxError
    `no_block_device` for a file system that does not stand on block devices that could be named.
    """
    there = Path(path)
    while not there.exists():
        there = there.parent
    number = there.stat().st_dev
    found = [f"{os.major(number)}:{os.minor(number)}"] if os.major(number) else _btrfs(there, sys)
    disks = sorted({_whole(device, sys) for device in found})
    if not disks:
        raise SandboxError(
            "no_block_device",
            f"the block device below {path} cannot be told",
            "keep the state on a file system of a disk (ext4, xfs, btrfs),"
            " take `io` out of the policy, or waive cgroup:io by name in the host file",
        )
    return disks


def _whole(device: str, sys: Path) -> str:
    node = (sys / "dev/block" / device).resolve()
    return (node.parent / "dev").read_text().strip() if (node / "partition").exists() else device


def _btrfs(path: Path, sys: Path) -> list[str]:
    """The members of the btrfs at `path`, which shows an invented device number of its own."""
    best = (0, "", "")
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        target, (kind, source) = Path(left.split()[4]), right.split()[:2]
        if path.is_relative_to(target) and len(target.parts) >= best[0]:
            best = (len(target.parts), kind, source)
    if best[1] != "btrfs" or not Path(best[2]).is_block_device():
        return []
    number = Path(best[2]).stat().st_rdev
    own = (sys / "dev/block" / f"{os.major(number)}:{os.minor(number)}").resolve()
    for members in sys.glob("fs/btrfs/*/devices"):
        if (members / own.name).exists():
            return [(member / "dev").read_text().strip() for member in members.iterdir()]
    return []
