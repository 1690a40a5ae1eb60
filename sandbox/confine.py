"""The whole confinement of one workload, in order, top to bottom.

Runs in the child that clone3 made: already in its cgroup and in new mount, pid, network, IPC, UTS
and time namespaces, still root. `prepare` is the same for every workload and may have happened long
before; `confine` is what one plan asks for, and may have happened a little before; `execute` is one
launch. Every step succeeds or the launch ends: the failing step's name travels to the supervisor
and nothing of the workload has run. The order is the design; a comment says what would break, or
which attack would work, if a step moved.
"""

from __future__ import annotations

import ctypes
import marshal
import os
import resource
import select
import socket

from sandbox import credentials, landlock, mounts, passing, syscalls
from sandbox.job import Job

_libc = ctypes.CDLL(None, use_errno=True)

_F_DUPFD_CLOEXEC = 1030
_NAMESPACE_LIMITS = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time")


class Sync:
    """The child's two lines, SEQPACKET: one to the supervisor, which says what to become and when
    to start, and one to the zygote, which writes its id map."""

    def __init__(self, supervisor: int, zygote: int) -> None:
        self._line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, supervisor)
        self.supervisor, self.zygote = supervisor, zygote
        self.step = "start"

    def at(self, step: str) -> None:
        """Name the step that a failure from here on belongs to."""
        self.step = step

    def check_parent(self) -> None:
        """Leave if the zygote died before PDEATHSIG was set.

        getppid() is 0 in a new pid namespace and tells nothing; a hang-up on the line does.
        """
        line = select.poll()
        line.register(self.zygote, 0)
        if line.poll(0):
            os._exit(125)

    def wait_for_job(self) -> Job:
        """What to become."""
        _, (packed,) = self._receive()
        try:
            return Job.unpack(os.pread(packed, os.fstat(packed).st_size, 0))
        finally:
            os.close(packed)

    def wait_for_descriptors(self) -> tuple[bool, list[int]]:
        """Whether stdin is to be /dev/null, and all others: (stdin,) stdout, stderr, ..."""
        kind, fds = self._receive()
        return kind == b"n", fds

    def _receive(self) -> tuple[bytes, list[int]]:
        message, fds, _ = passing.receive(self._line, 16, 64)
        if not message:
            os._exit(125)
        return message, fds

    def tell(self, line: int, message: bytes) -> None:
        """Say `message` and go on."""
        os.write(line, message)

    def expect(self, line: int, answer: bytes) -> None:
        """Go on only when `answer` comes. End of file: whoever should give it is gone."""
        if os.read(line, 16) != answer:
            os._exit(125)


def run_child(supervisor: int, zygote: int, stage: str) -> None:
    """Confine and execute; never returns. A failure is reported as b"E" step NUL reason.

    `supervisor`, `zygote`: descriptors of the lines to them.
    """
    sync = Sync(supervisor, zygote)
    try:
        root = prepare(stage, sync)
        job = sync.wait_for_job()
        executable, null, report = confine(job, root, sync)
        execute(job, executable, null, report, sync)
    except BaseException as error:
        try:
            text = f"E{sync.step}\0{type(error).__name__}: {error}"
            os.write(sync.supervisor, text.encode()[:1024])
        finally:
            os._exit(126)


def prepare(stage: str, sync: Sync) -> mounts.Root:
    """What every workload gets, before it is known which one this will be.

    `stage`: an empty directory, covered by the new root in this process's namespace only.
    """
    at = sync.at

    at("die with the parent")
    credentials.die_with_parent()
    sync.check_parent()

    _write("/proc/self/comm", "anchor-cell")

    at("inherited descriptors")
    # The zygote's line to the supervisor and those to its other children are not for us.
    syscalls.close_all_but(sync.supervisor, sync.zygote)

    at("process group and keyring")
    # The zygote's session has no terminal, and who does not lead a session can never get one
    # (CVE-2017-5226). A session of its own would cost 1-3 ms: the scheduler makes a group for it.
    os.setpgid(0, 0)
    syscalls.join_session_keyring()

    at("cgroup namespace and loopback")
    syscalls.unshare(syscalls.CLONE_NEWCGROUP)  # its root is the leaf: host paths stay hidden
    syscalls.loopback_up()

    at("memory and core files")
    _write("/proc/self/oom_score_adj", "500")
    _write("/proc/self/coredump_filter", "0")
    # Per pid namespace; Landlock and noexec mounts do not see memfds. Absent before Linux 6.3.
    _write("/proc/sys/vm/memfd_noexec", "2", missing_ok=True)

    at("empty root")
    os.umask(0o022)
    return mounts.empty_root(stage)


def confine(job: Job, root: mounts.Root, sync: Sync) -> tuple[int, int, dict[str, object]]:
    """What `job` asks for, but for the filters: they would forbid what `execute` still has to do.

    Descriptors of the program and of /dev/null (-1 where the plan has none), both of the new root;
    and the child's own view of what cannot be seen from outside.
    """
    at = sync.at

    at("host name")
    syscalls.sethostname(job.hostname)

    at("resource limits")
    for limit, wanted in job.rlimits:
        _, hard = resource.getrlimit(limit)
        bound = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(limit, (bound, bound))  # only ever lowered

    at("mount propagation")
    syscalls.mount("", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)

    at("new root")
    mounts.fill_root(root, job.mounts)
    os.umask(0o077)
    sysctl = os.open("/proc/sys/user", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    at("change root")
    mounts.enter_root(root.tree)

    at("executable")
    # Opened in the new root, never before: the host's mount flags would apply (CVE-2019-5736).
    executable = _open_executable(job.executable)
    null = _open_null()

    at("groups")
    os.setgroups(job.groups)

    if job.user_namespace:
        at("user namespace")
        # Last of all namespaces, so that no capability in it counts for the others; and before the
        # drops below, because it refills every set and clears securebits.
        syscalls.unshare(syscalls.CLONE_NEWUSER)
        # The zygote writes setgroups, uid_map and gid_map while we go on to where they are needed.
        sync.tell(sync.zygote, marshal.dumps((job.uid, job.gid)))
        at("nested namespaces")
        for kind in _NAMESPACE_LIMITS:
            _write(f"max_{kind}_namespaces", "0", directory=sysctl)  # CVE-2022-0185
    os.close(sysctl)

    at("capabilities")
    credentials.clear_ambient()
    if job.capabilities:
        credentials.raise_ambient(job.capabilities)
    credentials.drop_bounding(job.capabilities, job.last_capability)
    credentials.lock_securebits()
    if job.user_namespace:
        sync.expect(sync.zygote, b"u")
    credentials.become(job.uid, job.gid)
    credentials.set_capabilities(job.capabilities)

    at("after the uid change")
    credentials.die_with_parent()  # the uid change cleared it
    credentials.not_dumpable()
    sync.check_parent()
    mounts.check_working_directory(job.cwd)

    at("no new privileges")
    credentials.no_new_privileges()
    if not job.jit:
        credentials.refuse_write_and_execute()

    at("landlock")
    report: dict[str, object] = dict(credentials.report())
    with landlock.Canary(job.tcp_connect) as canary:
        if job.landlock_abi:
            landlock.restrict(job.landlock_abi, job.landlock, job.tcp_bind, job.tcp_connect)
        report["landlock"] = canary.ask(job.landlock_abi)

    return executable, null, report


def execute(job: Job, executable: int, null: int, report: dict[str, object], sync: Sync) -> None:
    """Take the descriptors, load the filters, and on release become the workload; returns only by
    raising. The rest as from `confine`."""
    at = sync.at

    at("descriptors")
    executable = _arrange_descriptors(*sync.wait_for_descriptors(), executable, null, sync)
    sync.check_parent()

    # Nothing that can be seen from outside changes any more: the supervisor looks at us while the
    # filters load.
    sync.tell(sync.supervisor, b"C" + marshal.dumps(report))

    at("seccomp")
    for program in job.seccomp:
        syscalls.seccomp_load(program)

    at("execute")
    # "Ready" is said with the filter already in force; "go" comes after the verification.
    sync.tell(sync.supervisor, b"R")
    sync.expect(sync.supervisor, b"g")
    syscalls.execveat(executable, job.argv, job.environment)


def _open_executable(path: str) -> int:
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        resolve = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS
        return syscalls.openat2(root, path, os.O_PATH, resolve)
    finally:
        os.close(root)


def _open_null() -> int:
    try:
        return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return -1


def _arrange_descriptors(
    null_stdin: bool, handed: list[int], executable: int, null: int, sync: Sync
) -> int:
    """Give the workload exactly 0..n-1, put ours behind them close-on-exec, close all others."""
    fds = [null, *handed] if null_stdin else handed
    high = 256  # above every target number, so that no dup2 overwrites a source
    held = [_dup_above(fd, high) for fd in (*fds, executable, sync.supervisor, sync.zygote)]
    *_, sync.supervisor, sync.zygote = held  # a failure from here on is not told to the workload's
    for number, fd in enumerate(held):
        # Ours are close-on-exec; all others are really closed below (CVE-2024-21626).
        os.dup2(fd, number, inheritable=number < len(fds))
    executable, sync.supervisor, sync.zygote = range(len(fds), len(held))
    syscalls.close_range(len(held))
    return executable


def _dup_above(fd: int, minimum: int) -> int:
    copy: int = _libc.fcntl(fd, _F_DUPFD_CLOEXEC, minimum)
    if copy == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), f"descriptor {fd}")
    return copy


def _write(path: str, value: str, directory: int | None = None, missing_ok: bool = False) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        if missing_ok:
            return
        raise
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)
