"""An official client in a real sandbox: loopback and nothing else, one port, a placeholder key."""

from __future__ import annotations

import dataclasses
import json
import shutil
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox.broker import BrokerHandle
from sandbox.plan import Bind, SandboxPlan
from supervisor.policy.compile import EGRESS_PORT
from supervisor.policy.plans import CompiledPolicy
from tests.clients.sdks import CLIENTS, PROGRAMS, SCRIPTS, Sdk
from tests.host.sandbox.conftest import Cell
from tests.host.sandbox.stand import ROOT, compile_shipped

WORKLOAD = "tool.client"
JIT = """
[[allow]]
id  = "jit"
why = "Node compiles what it runs"
jit = { engine = "any" }
"""


@dataclass(frozen=True)
class Outcome:
    """What one case of a program came to: its value, or the exception that the SDK raised."""

    value: Any = None
    error: str = ""
    status: int | None = None
    message: str = ""


def compile_client(directory: Path, *, jit: bool) -> CompiledPolicy:
    """The policy of tool-client.toml, compiled beside the shipped ones."""
    policies = directory / "policies"
    shutil.copytree(ROOT / "policies", policies)
    text = (Path(__file__).parent / "tool-client.toml").read_text()
    text = text.replace("MODELS", json.dumps([f"fake-{script}" for script in SCRIPTS]))
    (policies / "tool-client.toml").write_text(text + JIT * jit)
    return compile_shipped(directory, WORKLOAD, policies)


class ClientCell:
    """Runs programs one after the other; make it while this process has a single thread."""

    def __init__(self, directory: Path, broker: BrokerHandle) -> None:
        mounts = (
            Bind(str(ROOT / ".clients"), CLIENTS, ("read", "exec")),
            Bind(str(Path(__file__).parent / "programs"), PROGRAMS, ("read",)),
        )
        self._plans: dict[bool, SandboxPlan] = {}
        for jit, name in ((False, "plain"), (True, "jit")):
            (directory / name).mkdir()
            compiled = compile_client(directory / name, jit=jit)
            assert compiled.egress is not None
            self.egress: dict[str, Any] = compiled.egress
            plan = compiled.sandbox
            self._plans[jit] = dataclasses.replace(plan, mounts=(*plan.mounts, *mounts))
        self._broker = broker
        self._cell = Cell(self._plans[False], directory)

    def run(
        self,
        sdk: Sdk,
        words: dict[str, str],
        environment: dict[str, str],
        serve: Callable[[socket.socket], None],
    ) -> dict[str, Outcome]:
        """Run all cases of `sdk`; `serve` is given the socket that stands for every model."""
        environment = {"HOME": "/tmp", "LANG": "C.UTF-8", "PATH": "/usr/bin"} | environment
        plan = dataclasses.replace(
            self._plans[sdk.jit],
            argv=(*sdk.command, json.dumps(words)),
            environment=tuple(environment.items()),
        )
        with tempfile.TemporaryFile() as out:
            code, number = self._cell.do(self._run, plan, out.fileno(), serve)
            out.seek(0)
            said = out.read().decode(errors="replace")
        assert (code, number) == (0, 0), f"{sdk.name} ended with {code}, signal {number}:\n{said}"
        outcomes = {}
        for line in said.splitlines():
            if line.startswith('{"case"'):
                found = json.loads(line)
                case = found.pop("case")
                outcomes[case] = Outcome(**found)
        return outcomes

    async def _run(
        self, plan: SandboxPlan, out: int, serve: Callable[[socket.socket], None]
    ) -> tuple[int, int]:
        running = await self._cell.hold(plan, out)
        try:
            findings = self._cell.inspect(running)
            assert "FAIL" not in {finding.verdict for finding in findings}, findings
            self._broker.register(WORKLOAD, running.netns)
            serve(self._broker.listen(WORKLOAD, EGRESS_PORT))
        finally:
            await self._cell.launcher.release(running)
            ended: tuple[int, int] = await running.exited
            self._broker.unregister(WORKLOAD)
            running.leaf.destroy()
            running.cell.close()
        return ended

    def close(self) -> None:
        """End the launcher and everything it started."""
        self._cell.close()
