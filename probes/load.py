"""The loader: compile, attach, pin, say how it went, exit. The pins stay.

Runs with CAP_BPF and CAP_PERFMON and nothing else. Descriptors: `config` (JSON: level, denials,
pins) and `result` (one line of JSON). Killed at any time before the last step it leaves at
most pins without a manifest; those watch nobody, and maps.clear() removes them.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import bpf, headers, layout
from .btf import Btf
from .errors import ProbeError
from .events import PATH_SIZE, RECORD_SIZE, Flag, Kind, Verdict
from .launch import inherited, require

SOURCE = Path(__file__).with_name("watch.bpf.c")
CONFIG_MAX = 65536
_ARCH_NATIVE = 0xC000003E  # AUDIT_ARCH_X86_64


@dataclass(frozen=True, slots=True)
class Config:
    """What to load. `level`: depth of a workload's cgroup, the v2 root being 0.

    `denials` attaches the exit filter. `pins`: a directory on a bpffs that the loader's uid owns.
    """

    level: int
    denials: bool
    pins: Path


@dataclass(frozen=True, slots=True)
class Program:
    """One function of the source, the tracepoints it may go to (first that exists), its offsets."""

    name: str
    tracepoints: tuple[str, ...]
    required: bool
    offsets: tuple[str, ...] = ()


# The order is that of attaching.
PROGRAMS = (
    Program("on_signal", ("signal_generate",), required=True),
    Program("on_exec", ("sched_process_exec",), True, ("OFF_FILENAME",)),
    Program("on_fork", ("sched_process_fork",), False, ("OFF_TGID",)),
    Program(
        "on_attach",
        ("cgroup_attach_task",),
        False,
        ("OFF_TGID", "OFF_LEVEL", "OFF_ANCESTORS", "OFF_KN", "OFF_ID"),
    ),
    # The second name is that of kernels before 6.2, with the same first argument.
    Program("on_uring", ("io_uring_submit_req", "io_uring_submit_sqe"), False, ("OFF_OPCODE",)),
    Program("on_enter", ("sys_enter",), True, ("OFF_STATUS",)),
)
DENIALS = Program("on_exit", ("sys_exit",), True, ("OFF_STATUS", "OFF_ORIG_AX"))

_MEMBERS = {
    "OFF_FILENAME": ("linux_binprm", "filename"),
    "OFF_TGID": ("task_struct", "tgid"),
    "OFF_LEVEL": ("cgroup", "level"),
    "OFF_ANCESTORS": ("cgroup", "ancestors"),
    "OFF_KN": ("cgroup", "kn"),
    "OFF_ID": ("kernfs_node", "id"),
    "OFF_OPCODE": ("io_kiocb", "opcode"),
    "OFF_ORIG_AX": ("pt_regs", "orig_ax"),
}


def parse_config(data: bytes) -> Config:
    """The `config` descriptor's JSON, strictly. Raises ProbeError `bad_config`."""
    wanted = {"level": int, "denials": bool, "pins": str}
    try:
        body = json.loads(data)
        if not isinstance(body, dict) or set(body) != set(wanted):
            raise ValueError(f"the keys must be {', '.join(wanted)}")
        for key, kind in wanted.items():
            if type(body[key]) is not kind:
                raise ValueError(f"{key} is not {kind.__name__}")
        if not 1 <= body["level"] <= 32:
            raise ValueError("level is outside 1..32")
        return Config(body["level"], body["denials"], Path(body["pins"]))
    except ValueError as error:
        raise ProbeError(
            "bad_config", f"The configuration is wrong: {error}.", "Fix what writes it."
        ) from error


def offsets(btf: Btf) -> dict[str, int]:
    """Offsets this kernel has, by macro name; a member it lacks is left out."""
    found = {name: btf.offset(*member) for name, member in _MEMBERS.items()}
    info, status = btf.offset("task_struct", "thread_info"), btf.offset("thread_info", "status")
    found["OFF_STATUS"] = None if info is None or status is None else info + status
    return {name: value for name, value in found.items() if value is not None}


def source(config: Config, known: dict[str, int]) -> str:
    """The C source with every number it needs in front of it."""
    macros = layout.macros()
    macros |= {"LEVEL": config.level, "RECORD_SIZE": RECORD_SIZE, "PATH_SIZE": PATH_SIZE}
    macros |= {f"KIND_{kind.name}": int(kind) for kind in Kind}
    macros |= {f"VERDICT_{verdict.name}": int(verdict) for verdict in Verdict}
    macros |= {f"FLAG_{flag.name}": int(flag) for flag in Flag}
    # A member this kernel lacks becomes 0; the programs that need it are not loaded.
    macros |= {name: known.get(name, 0) for name in (*_MEMBERS, "OFF_STATUS")}
    lines = [f"#define {name} {value}" for name, value in macros.items()]
    lines.append(f"#define ARCH_NATIVE {_ARCH_NATIVE}U")
    cases = "".join(
        f" case -{number}: bit = {1 << index}; break;"
        for index, number in enumerate(layout.DENIALS.values())
    )
    lines.append(f"#define DENIAL_CASES{cases}")
    return "\n".join([*lines, '#line 1 "watch.bpf.c"', SOURCE.read_text()])


def _refusal(error: OSError, doing: str) -> ProbeError:
    """An OSError of bpf(2) by its real cause."""
    number = error.errno or 0
    if number == errno.EPERM:
        fix = "The loader needs CAP_BPF and CAP_PERFMON, and no lockdown=confidentiality."
        return ProbeError("not_permitted", f"{doing} was refused: {error.strerror}.", fix, number)
    return ProbeError(
        "kernel_refused", f"{doing} failed: {error.strerror}.", "See the errno.", number
    )


def preflight(pins: Path) -> None:
    """Try, before the expensive compiler, what can fail cheaply.

    Raises ProbeError: `not_permitted`, `kernel_refused`, `no_bpffs`.
    """
    try:
        fd = bpf.create(bpf.RINGBUF, 0, 0, 4096)
    except OSError as error:
        raise _refusal(error, "Making a map") from error
    trial = pins / "trial"
    try:
        bpf.pin(fd, str(trial))
        trial.unlink()
    except OSError as error:
        raise ProbeError(
            "no_bpffs",
            f"Nothing can be pinned in {pins}: {error.strerror}.",
            "The supervisor must mount a bpffs there, in a directory that the loader's uid owns.",
            error.errno or 0,
        ) from error
    finally:
        os.close(fd)


def _compile(text: str) -> Any:
    import bcc  # 127 MB of LLVM: only here

    try:
        return bcc.BPF(text=text)
    except Exception as error:  # bcc raises bare Exception
        raise ProbeError(
            "not_compiled",
            f"bcc could not compile the programs: {error}.",
            "The compiler's words are in the loader's log; check the headers named there.",
        ) from error


def _attach(module: Any, program: Program, known: dict[str, int]) -> tuple[int, str]:
    """(link descriptor, tracepoint). Raises OSError with the kernel's errno."""
    missing = [name for name in program.offsets if name not in known]
    if missing:
        raise OSError(errno.EOPNOTSUPP, f"this kernel lacks {', '.join(missing)}")
    import bcc

    ctypes.set_errno(0)
    try:
        fd = module.load_func(program.name, bcc.BPF.RAW_TRACEPOINT).fd
    except Exception as error:
        # bcc words EPERM as a need for root; the errno is the truth.
        number = ctypes.get_errno() or errno.EINVAL
        raise OSError(number, f"not loaded: {os.strerror(number)}") from error
    for name in program.tracepoints[:-1]:
        try:
            return bpf.raw_tracepoint(name, fd), name
        except FileNotFoundError:
            continue
    name = program.tracepoints[-1]
    return bpf.raw_tracepoint(name, fd), name


def load(config: Config) -> dict[str, object]:
    """Load, attach and pin all, return the status. Raises ProbeError with nothing left pinned."""
    began = time.monotonic()
    preflight(config.pins)
    used = headers.linked()
    known = offsets(Btf.running())
    module = _compile(source(config, known))
    links: dict[str, int] = {}
    programs: dict[str, object] = {}
    wanted = (*PROGRAMS, DENIALS) if config.denials else PROGRAMS
    try:
        for program in wanted:
            try:
                links[program.name], tracepoint = _attach(module, program, known)
                programs[program.name] = {"status": "attached", "tracepoint": tracepoint}
            except OSError as error:
                if program.required:
                    raise _refusal(error, f"Attaching {program.name}") from error
                number, why = error.errno or 0, error.strerror
                programs[program.name] = {"status": "refused", "errno": number, "reason": why}
        _pin(config, module, links)
    except BaseException:
        _unpin(config.pins)
        raise
    return {
        "ok": True,
        "abi": layout.ABI,
        "headers": {"release": used.release, "build": used.build, "exact": used.exact},
        "programs": programs,
        "denials": config.denials,
        "seconds": round(time.monotonic() - began, 3),
    }


def _pin(config: Config, module: Any, links: dict[str, int]) -> None:
    """Maps, links, and last the manifest that says all are there."""
    _unpin(config.pins)
    manifest = module[b"manifest"].map_fd
    value = layout.MANIFEST.pack(layout.ABI, config.level, config.denials)
    try:
        bpf.update(manifest, bytes(4), value)
        for fd in (manifest, module[b"counters"].map_fd):
            bpf.freeze(fd)
        for name in layout.MAPS:
            if name != "manifest":
                bpf.pin(module[name.encode()].map_fd, str(config.pins / name))
        for name, fd in links.items():
            bpf.pin(fd, str(config.pins / f"link_{name}"))
        bpf.pin(manifest, str(config.pins / "manifest"))
    except OSError as error:
        raise _refusal(error, f"Pinning {error.filename}") from error


def _unpin(pins: Path) -> None:
    for entry in pins.iterdir():
        entry.unlink()


def _stop(*_: object) -> None:
    raise SystemExit(1)


def main() -> int:
    """0 when the watch is loaded, 1 with the reason on `result`, 2 when started wrongly."""
    signal.signal(signal.SIGTERM, _stop)
    try:
        handed = inherited()
        result, given = require(handed, "result"), require(handed, "config")
    except ProbeError as error:
        os.write(2, f"{error}\n".encode())
        return 2
    try:
        status = load(parse_config(os.pread(given, CONFIG_MAX, 0)))
    except ProbeError as error:
        status = {"ok": False, "error": error.as_json()}
    os.write(result, json.dumps(status).encode() + b"\n")
    return 0 if status["ok"] else 1
