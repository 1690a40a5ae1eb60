"""A program that starts sandboxes as the supervisor does, small, with nothing of pytest in it.

    /usr/bin/python3 -IS starter.py DIRECTORY SLICE keep           until it is killed
    /usr/bin/python3 -IS starter.py DIRECTORY SLICE cycles W N     W to warm up, N that are measured

First it prints its own pid, the launcher's and the broker's; then a line for every start, or the
measures before and after, JSON.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
sys.path.append("/usr/lib/python3/dist-packages")

from sandbox import zygote

ZYGOTE = zygote.start()

from sandbox import broker  # noqa: E402

BROKER = broker.start(4242424, resolver_uid=None)

import asyncio  # noqa: E402
import gc  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import re  # noqa: E402
import time  # noqa: E402
from typing import Any  # noqa: E402

from probes.errors import ProbeError  # noqa: E402
from sandbox.errors import SandboxError  # noqa: E402
from sandbox.plan import Bind, SandboxPlan  # noqa: E402
from tests.host.sandbox.stand import Stand, keys, links  # noqa: E402

SLEEP = "/usr/bin/sleep"
LANES = 8


async def keep(stand: Stand) -> None:
    """Start one after the other. Without launcher or broker leave, as the supervisor does."""
    loop = asyncio.get_running_loop()
    stand.launcher.lost.add_done_callback(lambda _: os._exit(1))
    loop.add_reader(BROKER.control.fileno(), lambda: os._exit(1))
    plan = sleeping(stand, "0.01")
    while True:
        try:
            await stand.finish(await stand.start(plan))
            say("started")
        except (SandboxError, ProbeError, OSError) as error:
            say(f"error {error}")
            await asyncio.sleep(0.01)


async def cycles(stand: Stand, warm: int, number: int) -> None:
    """Start and stop; print what there is before and after."""
    plan = sleeping(stand, "60")

    async def lane(times: int) -> None:
        for _ in range(times):
            await cycle(stand, plan)

    async def run(times: int) -> None:
        # Side by side: the kernel takes network namespaces down in one worker, many in one go.
        await asyncio.gather(*(lane(times // LANES) for _ in range(LANES)))

    await run(warm)
    before = await measure(stand)
    began = time.monotonic()
    await run(number)
    took = time.monotonic() - began
    say(json.dumps({"before": before, "after": await measure(stand), "seconds": took}))
    await stand.drop_spare()
    stand.close()


async def cycle(stand: Stand, plan: SandboxPlan) -> None:
    """One start and one stop by cgroup.kill."""
    running = await stand.start(plan)
    await stand.launcher.end(running)
    await stand.finish(running)


async def measure(stand: Stand) -> dict[str, Any]:
    """Everything that must not grow. The kernel frees cgroups and keys a little later."""
    await stand.drop_spare()
    await asyncio.sleep(2)
    gc.collect()
    pids = {"supervisor": os.getpid(), "launcher": stand.zygote, "broker": stand.broker.pid}
    statistics = (stand.slice.path / "cgroup.stat").read_text()
    return {
        "memory": {who: anonymous(pid) for who, pid in pids.items()},
        "descriptors": {who: links(pid).total() for who, pid in pids.items()},
        "network namespaces": sum(
            count for pid in pids.values() for link, count in links(pid).items() if "net:" in link
        ),
        "mounts": {
            who: len(Path(f"/proc/{pid}/mountinfo").read_text().splitlines())
            for who, pid in pids.items()
        },
        "cgroups": len(list(stand.slice.path.glob("**/"))),
        "dying cgroups": int(re.findall(r"nr_dying_descendants (\d+)", statistics)[0]),
        "keys": keys(),
        "cells": len(stand.launcher._cells),
        "jobs": len(stand.launcher._jobs),
    }


def anonymous(pid: int) -> int:
    """Resident bytes that no file backs: the kernel may drop the others at any time."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"RssAnon:\s+(\d+) kB", text)[0]) * 1024


def sleeping(stand: Stand, seconds: str) -> SandboxPlan:
    """A plan that is compiled once: the policy's own, with another command."""
    import dataclasses

    plan = stand.plan((SLEEP, seconds), mounts=(Bind(SLEEP, SLEEP, ("read", "exec")),))
    stand.compiled = dataclasses.replace(stand.compiled, sandbox=plan)
    return plan


def say(line: str) -> None:
    """One line, at once."""
    os.write(1, line.encode() + b"\n")


async def main(directory: str, tree: str, verb: str, *numbers: str) -> None:
    """See above."""
    stand = Stand(Path(directory), ZYGOTE, BROKER, tree)
    say(json.dumps([os.getpid(), stand.zygote, BROKER.pid]))
    if verb == "keep":
        await keep(stand)
    else:
        await cycles(stand, *map(int, numbers))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
