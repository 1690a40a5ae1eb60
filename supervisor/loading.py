"""Policies in force: read, checked against earlier runs, compiled; and the directories they need.

What must outlast a run stands in `policies.json` below the state directory: the uid of every
workload, because its files keep it, and the version of every policy, because none may go back.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

from sandbox.errors import SandboxError
from supervisor.host import Host
from supervisor.policy.compile import compile_policies
from supervisor.policy.context import host_context
from supervisor.policy.digest import check_versions
from supervisor.policy.errors import PolicyError
from supervisor.policy.parse import load_directory
from supervisor.policy.plans import CompiledPolicy


def load_policies(host: Host) -> tuple[dict[str, CompiledPolicy], list[PolicyError]]:
    """Every policy that holds together, by id, and what is wrong with the others.

    Raises OSError when the state directory cannot be written, SandboxError when what an earlier
    run left in it is broken.
    """
    policies, errors = load_directory(host.paths.policies)
    memory = Path(host.paths.state) / "policies.json"
    known = _remembered(memory)
    older = check_versions(policies, known["versions"])
    errors += older
    refused = {error.file for error in older}
    policies = [policy for policy in policies if policy.file not in refused]
    tokens = {p.id: f"anchorhold-placeholder-{os.urandom(16).hex()}" for p in policies}
    context = host_context(policies, host, tokens, known["ids"])
    compiled = compile_policies(policies, host, context, errors)
    known["ids"] = dict(context.uids)
    known["versions"].update({policy.id: policy.version for policy in policies})
    temporary = memory.with_suffix(".new")
    temporary.unlink(missing_ok=True)  # of a run that was killed, or put there by somebody
    with temporary.open("x") as file:
        json.dump(known, file)
        file.flush()
        os.fsync(file.fileno())  # or a power cut could leave an empty file in place of the old one
    temporary.replace(memory)
    folder = os.open(memory.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)  # before files are given to uids that only this memory knows
    finally:
        os.close(folder)
    for id_, plan in list(compiled.items()):
        if plan.state_directory:
            try:
                _own(Path(plan.state_directory), plan.sandbox.uid)
            except OSError as error:
                del compiled[id_]
                said = f"{error.filename}: {error.strerror}"
                fix = "remove what lies there, or restore the directory from a backup"
                where = (plan.policy.file, 1, "allow.state")
                errors.append(PolicyError("state-directory", *where, said, fix))
    return compiled, errors


def _own(path: Path, uid: int) -> None:
    """Make the directory and give it away; never what a symbolic link in its place leads to."""
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchown(fd, uid, uid)
    finally:
        os.close(fd)


def _remembered(memory: Path) -> dict[str, dict[str, int]]:
    """Uids and versions of earlier runs. Raises SandboxError rather than giving ids out anew."""
    if not memory.exists():
        return {"ids": {}, "versions": {}}
    try:
        known = json.loads(memory.read_text())
        return {"ids": dict(known["ids"]), "versions": dict(known["versions"])}
    except (ValueError, KeyError, TypeError) as error:
        raise SandboxError(
            "memory_broken",
            f"{memory} is not what an earlier run wrote: {error}",
            "restore it from a backup; without it workloads' files would belong to other uids",
        ) from error
