"""The supervisor process: what it forks, what it gives up, and only then what it imports.

The order matters. The launcher is forked while the process is small, because every launch copies
it; the broker before there are threads; capabilities go when nothing needs them any more.
"""

from __future__ import annotations

import os
import resource
import socket
import sys

from sandbox import credentials, delegation, syscalls, zygote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

    from sandbox import broker
    from supervisor.host import Host

DEFAULT_HOST_FILE = "/etc/anchorhold/host.toml"

# What the supervisor still does itself: own state files and sockets for other uids, look at and
# signal workloads, read and write the watch's maps. Everything else is the launcher's.
_KEPT = (
    "chown", "dac_override", "dac_read_search", "kill", "sys_ptrace", "bpf", "perfmon",
)  # fmt: skip
# Root and long-lived, it must be of little use to whoever got into it: it runs no other program,
# makes and enters no namespace, mounts nothing, and puts nothing into the kernel.
_NEVER = (
    "execve", "execveat", "ptrace", "process_vm_readv", "process_vm_writev", "unshare", "setns",
    "mount", "umount2", "pivot_root", "chroot", "move_mount", "open_tree", "fsopen", "fsmount",
    "fspick", "init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load",
    "reboot", "swapon", "swapoff", "keyctl", "add_key", "request_key", "perf_event_open",
    "userfaultfd", "io_uring_setup", "open_by_handle_at", "iopl", "ioperm", "pidfd_getfd",
    "mount_setattr", "#467", "process_madvise", "kcmp",
)  # fmt: skip
_NEW = (
    syscalls.CLONE_NEWNS, syscalls.CLONE_NEWCGROUP, syscalls.CLONE_NEWUTS, syscalls.CLONE_NEWIPC,
    syscalls.CLONE_NEWUSER, syscalls.CLONE_NEWPID, syscalls.CLONE_NEWNET,
)  # fmt: skip
_SYSTEMD_RUN, _SCOPED = "/usr/bin/systemd-run", "ANCHORHOLD_SCOPED"
# Ids of our own helpers, above every uid that policies can get from the range.
_BROKER_ID, _RESOLVER_ID = 4095, 4094


def main(argv: list[str]) -> int:
    """`up [--host-file FILE]`. Returns the exit code."""
    host_file = _host_file(argv[1:])
    if host_file is None:
        print("usage: anchorhold up [--host-file FILE]", file=sys.stderr)
        return 2
    if os.uname().machine != "x86_64":
        print("anchorhold up: only x86-64 so far: call numbers and paths are its", file=sys.stderr)
        return 1
    if os.geteuid() != 0:
        print("anchorhold up: must be root: it makes cgroups and namespaces", file=sys.stderr)
        return 6
    if delegation.systemd_runs() and delegation.delegated_subtree() is None:
        return _in_a_scope(host_file)
    credentials.not_dumpable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Several descriptors per workload, here and in launcher and broker: all that we may have. A
    # workload gets its policy's number.
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    os.umask(0o077)
    # Our own mount namespace: what is mounted here (the bpf file system) ends with us. A slave, so
    # that a disk mounted later on the host is still seen.
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount("", "/", None, syscalls.MS_REC | syscalls.MS_SLAVE)
    _, launcher = zygote.start()
    from sandbox import broker  # only now: what is imported before is copied at every launch

    return _supervise(host_file, launcher, broker.fork())


def _in_a_scope(host_file: str) -> int:
    """Start anew in a scope whose cgroups are ours: above it systemd alone may write.

    Returns only if that did not work.
    """
    if os.environ.get(_SCOPED):
        print("anchorhold up: systemd made a scope without Delegate=", file=sys.stderr)
        return 1
    os.environ[_SCOPED] = "1"
    wanted = ("--scope", "--quiet", "--collect", "--slice=anchorhold.slice")
    program = (sys.executable, "-IS", sys.argv[0], "up", "--host-file", host_file)
    try:
        os.execv(  # noqa: S606 - a fixed program, no shell
            _SYSTEMD_RUN, (_SYSTEMD_RUN, *wanted, "--property=Delegate=yes", "--", *program)
        )
    except OSError as error:
        print(f"anchorhold up: {_SYSTEMD_RUN}: {error.strerror}", file=sys.stderr)
        print("  to do: start it as a service: systemctl start anchorhold", file=sys.stderr)
    return 1


def _host_file(words: list[str]) -> str | None:
    if not words:
        return DEFAULT_HOST_FILE
    if len(words) == 2 and words[0] == "--host-file":
        return words[1]
    return None


def _supervise(host_file: str, launcher: socket.socket, handle: broker.BrokerHandle) -> int:
    # No TLS in a root process, and hashlib has SHA-256 without it: OpenSSL stays out of here.
    for module in ("ssl", "_hashlib"):
        sys.modules[module] = None  # type: ignore[assignment]
    from pathlib import Path

    from supervisor.host import load_host
    from supervisor.policy.errors import PolicyErrors
    from supervisor.policy.model import Net
    from supervisor.policy.parse import load_directory

    try:
        host = load_host(host_file)
    except PolicyErrors as broken:
        print(broken, file=sys.stderr)
        return 2
    run, state = Path(host.paths.run), Path(host.paths.state)
    run.mkdir(mode=0o700, parents=True, exist_ok=True)
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not _only_one(run):
        print(f"anchorhold up: another supervisor runs in {run}", file=sys.stderr)
        return 1
    (run / "stage").mkdir(mode=0o700, exist_ok=True)
    # Names are looked up by a process of their own, and only where host file or policies have any.
    policies, _ = load_directory(host.paths.policies)
    named = any(upstream.host for upstream in host.upstreams) or any(p.of(Net) for p in policies)
    resolver = host.id_base + _RESOLVER_ID if named else None
    handle.lock_down(host.id_base + _BROKER_ID, resolver_uid=resolver)

    import asyncio

    from sandbox.errors import SandboxError
    from supervisor.control import ControlError

    try:
        return asyncio.run(_serve(host, launcher, handle))
    except (OSError, SandboxError, ControlError) as error:
        fix = getattr(error, "fix", "")
        print(f"anchorhold up: {error}" + (f"\n  to do: {fix}" if fix else ""), file=sys.stderr)
        return 1


async def _serve(host: Host, launcher: socket.socket, handle: broker.BrokerHandle) -> int:
    from pathlib import Path

    from supervisor.control import ControlServer
    from supervisor.supervise import Supervisor
    from supervisor.verbs import handlers
    from supervisor.watching import mount_bpf

    mount_bpf(Path(host.paths.run) / "bpf")
    supervisor = Supervisor(host, launcher, handle)
    _give_up()
    control = ControlServer(supervisor.run_directory / "control.sock", handlers(supervisor))
    await control.start()
    try:
        return await supervisor.run(_ready)
    finally:
        await control.close()


def _give_up() -> None:
    """From here on the supervisor is root in name and in seven capabilities."""
    from sandbox import seccomp
    from sandbox.plan import ArgTest, SyscallRule

    keep = credentials.mask(_KEPT)
    last = int(open("/proc/sys/kernel/cap_last_cap").read())  # noqa: PTH123, SIM115 - one line
    credentials.drop_bounding(keep, last)
    syscalls.capset(keep, keep, 0)
    credentials.no_new_privileges()
    rules = [SyscallRule(call, "EPERM") for call in _NEVER]
    rules += [SyscallRule("clone", "EPERM", (ArgTest(0, "masked_eq", b, b),)) for b in _NEW]
    rules.append(SyscallRule("clone3", "ENOSYS"))  # its flags lie in memory; libraries fall back
    syscalls.seccomp_load(seccomp.denying_filter(tuple(rules)))


def _only_one(run: Path) -> bool:
    import fcntl

    fd = os.open(f"{run}/lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return False
    return True  # held until the process ends


def _ready() -> None:
    """Tell systemd, where it asked: sd_notify(3)."""
    address = os.environ.pop("NOTIFY_SOCKET", "")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.sendto(b"READY=1", address.replace("@", "\0", 1))
    print("anchorhold: ready", flush=True)
