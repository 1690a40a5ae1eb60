"""Times sandbox starts the way the supervisor makes them: the launcher forked first, small.

Run by bench_sandbox as ``/usr/bin/python3 -IS start_sandboxes.py DIRECTORY ROUNDS``; prints JSON,
seconds by kind. A start ends with the first byte that the program writes inside.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.append("/usr/lib/python3/dist-packages")

from sandbox import zygote

_, CONTROL = zygote.start()

import asyncio  # noqa: E402
import dataclasses  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import subprocess  # noqa: E402
import time  # noqa: E402

from sandbox import verify  # noqa: E402
from sandbox.cgroup import Slice, find_mount  # noqa: E402
from sandbox.launcher import Cell, Launcher  # noqa: E402
from sandbox.plan import Bind, SandboxPlan  # noqa: E402
from supervisor.host import load_host  # noqa: E402
from supervisor.policy.compile import compile_policies  # noqa: E402
from supervisor.policy.context import host_context  # noqa: E402
from supervisor.policy.parse import load_directory  # noqa: E402

ECHO = "/usr/bin/echo"
WAIVED = frozenset({"memory", "pids", "cpu"})


def plan(directory: Path) -> SandboxPlan:
    """The shipped REST adapter's plan with another command; its channel has no server here."""
    host = load_host(directory / "host.toml")
    policies, _ = load_directory(host.paths.policies)
    tokens = {policy.id: f"anchorhold-placeholder-{'0' * 32}" for policy in policies}
    compiled = compile_policies(policies, host, host_context(policies, host, tokens))
    shipped = compiled["adapter.rest"].sandbox
    mounts = tuple(m for m in shipped.mounts if not str(getattr(m, "source", "")).endswith(".sock"))
    mounts += (Bind(ECHO, ECHO, ("read", "exec")),)
    return dataclasses.replace(shipped, argv=(ECHO, "x"), mounts=mounts, fds=())


async def ours(launcher: Launcher, tree: Slice, what: SandboxPlan, spare: Cell | None) -> float:
    """One start with everything that the supervisor does for it, up to the first byte."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    start = time.perf_counter()
    cell = spare or launcher.spawn(tree.leaf())
    launching = asyncio.ensure_future(launcher.launch(what, cell, (-1, writing, writing), {}))
    await asyncio.sleep(0)
    if not cell.limited:
        cell.leaf.apply(what.limits, WAIVED)
    running = await launching
    seen = (what, cell.leaf, running.pid, running.report, WAIVED)
    found = verify.inspect(*seen, unreleased=True)
    await cell.ready
    found.append(verify.inspect_filters(what, running.pid))
    assert not [finding for finding in found if finding.verdict == "FAIL"]
    await launcher.release(running)
    os.close(writing)
    assert os.read(reading, 1) == b"x"
    taken = time.perf_counter() - start
    os.close(reading)
    await running.exited
    cell.leaf.destroy()
    cell.close()
    return taken


class Others:
    """The others that are installed, each started when it is its turn."""

    def __init__(self, directory: Path) -> None:
        program = ["/usr/bin/python3", "-I", Path(__file__).with_name("start_others.py"), directory]
        self._process = subprocess.Popen(
            program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.names = self._hear().split()

    def _hear(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def start(self, name: str) -> float:
        """Seconds."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{name}\n")
        self._process.stdin.flush()
        return float(self._hear())

    def close(self) -> None:
        """Let it end."""
        self._process.communicate(timeout=10)


async def main(directory: Path, rounds: int) -> None:
    """`rounds` times one of each, in turns."""
    what = plan(directory)
    tree = Slice(find_mount() / f"anchorhold-bench-{os.getpid()}")
    launcher = Launcher(CONTROL, directory)
    launcher.prepare(what)
    others = Others(directory)
    times: dict[str, list[float]] = {kind: [] for kind in ("warm", "spare", "cold", *others.names)}
    try:
        for _ in range(rounds):
            for kind in ("warm", "spare"):
                ready = launcher.spawn(tree.leaf())
                await ready.spawned
                if kind == "warm":
                    launcher.confine(ready, what)
                    ready.leaf.apply(what.limits, WAIVED)
                    ready.limited = True
                await asyncio.sleep(0.02)  # in life that was long ago, after the last launch or end
                times[kind].append(await ours(launcher, tree, what, ready))
            times["cold"].append(await ours(launcher, tree, what, None))
            for name in others.names:
                times[name].append(others.start(name))
    finally:
        tree.remove()
        others.close()
    print(json.dumps(times))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
