"""A launch plan as the job that the child carries out: data that needs no import to be read."""

from __future__ import annotations

from pathlib import Path

from sandbox import credentials, landlock, rlimits, seccomp
from sandbox.job import Job
from sandbox.plan import Bind, Device, Mount, SandboxPlan, Symlink, Tmpfs


def flatten(plan: SandboxPlan, abi: int, last_capability: int) -> Job:
    """The job that executes `plan` on a kernel with Landlock ABI `abi`."""
    mounts = sorted(plan.mounts, key=lambda mount: _target(mount).count("/"))
    paths = [
        (mount.target, landlock.rights_for(mount.access))
        for mount in mounts
        if isinstance(mount, Bind)
    ]
    paths += [
        (mount.target, landlock.rights_for(("read", "write")))
        for mount in mounts
        if isinstance(mount, Tmpfs)
    ]
    paths += [
        (
            mount.path,
            landlock.READ_FILE | landlock.WRITE_FILE | (landlock.IOCTL_DEV * mount.requests),
        )
        for mount in mounts
        if isinstance(mount, Device)
    ]
    paths.append(("/proc", landlock.rights_for(("read",))))
    # Importing a package lists the directory above it. Those directories hold nothing but mount
    # points of this plan; the root itself stays unlisted, which is the canary.
    above = {parent for mount in mounts if (parent := str(Path(_target(mount)).parent)) != "/"}
    paths += [(parent, landlock.READ_DIR) for parent in sorted(above)]
    listen = [("LISTEN_FDS", str(len(plan.fds))), ("LISTEN_FDNAMES", ":".join(plan.fds))]
    listen.append(("LISTEN_PID", "1"))
    environment = [*plan.environment, *(listen if plan.fds else [])]
    return Job(
        workload=plan.workload,
        hostname=plan.workload.replace(".", "-")[:63],
        executable=plan.argv[0],
        argv=[argument.encode() for argument in plan.argv],
        environment=[f"{name}={value}".encode() for name, value in environment],
        cwd=plan.cwd,
        uid=plan.uid,
        gid=plan.gid,
        groups=list(plan.groups),
        capabilities=credentials.mask(plan.capabilities),
        last_capability=last_capability,
        user_namespace=plan.user_namespace,
        jit=plan.jit,
        mounts=[_flatten_mount(mount) for mount in mounts],
        rlimits=[
            (rlimits.NUMBERS[name], bound) for name, bound in rlimits.planned(plan.limits).items()
        ],
        landlock_abi=abi,
        landlock=paths,
        tcp_bind=plan.tcp_bind,
        tcp_connect=plan.tcp_connect,
        seccomp=seccomp.compile_filters(plan.seccomp),
    )


def _target(mount: Mount) -> str:
    return mount.path if isinstance(mount, Device) else mount.target


def _flatten_mount(mount: Mount) -> tuple[object, ...]:
    if isinstance(mount, Bind):
        return ("bind", mount.source, mount.target, mount.access)
    if isinstance(mount, Tmpfs):
        return ("tmpfs", mount.target, mount.size, mount.inodes)
    if isinstance(mount, Symlink):
        return ("symlink", mount.target, mount.points_to)
    return ("device", mount.path, mount.major, mount.minor)
