"""Attempts in workloads of a running supervisor, and what the host noticed of them."""

from __future__ import annotations

import os
from pathlib import Path

from sandbox.plan import SeccompSpec
from supervisor.host import load_host
from supervisor.policy.compile import compile_policies
from supervisor.policy.context import host_context
from supervisor.policy.parse import load_directory
from supervisor.policy.plans import CompiledPolicy
from tests.attacks.canary import Canary, planted
from tests.attacks.control import outcome
from tests.attacks.events import Events
from tests.attacks.scene import SHIPPED, WEAKEST, Scene, command
from tests.host.supervisor.house import House


class Suite:
    """The scene with a supervisor in it; `attempt` runs one thing in a workload."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.canary = Canary(scene)
        self.events = Events(scene.house.state / "audit/service.probe-reader.jsonl")
        self.compiled = compiled_policies(scene.house)
        # As the supervisor sees them: an image may be mounted there, for it alone.
        root = f"/proc/{scene.house.pid}/root"
        self.volumes = {
            id_: Path(f"{root}{self.compiled[id_].state_directory}") for id_ in (SHIPPED, WEAKEST)
        }
        for volume in self.volumes.values():
            # A trial has a uid of its own; as its owner, the workload itself could write here.
            volume.chmod(0o777)
        self.inside, self.outside = scene.inside(), scene.outside()
        self.alive = self.canary.alive()
        self.pids = self.siblings()

    def spec(self, policy: str) -> SeccompSpec:
        """The filters of a policy."""
        return self.compiled[policy].sandbox.seccomp

    def attempt(self, policy: str, program: str, id_: str, words: tuple[str, ...]) -> str:
        """What the program answered in a fresh workload of the policy."""
        scene = self.scene
        argv = command(scene.place, program, id_, words, self.inside)
        reading, writing = os.pipe()
        null = os.open("/dev/null", os.O_RDONLY)
        try:
            told = scene.house.ask(
                "try", {"workload": policy, "argv": argv}, null, writing, writing
            )
        finally:
            os.close(null)
            os.close(writing)
        with os.fdopen(reading) as said:
            return outcome(told["exit"] or 0, told["signal"] or 0, said.read())

    def siblings(self) -> dict[str, int | None]:
        """The pids of all workloads that go on."""
        found = self.scene.house.ask("status")["workloads"]
        return {one["id"]: one["pid"] for one in found if one["id"] != WEAKEST}

    def furnish(self) -> None:
        """Lay the bait again, on the host and in the volumes."""
        self.scene.place.lay_bait()
        for volume in self.volumes.values():
            self.scene.place.furnish(volume)

    def damage(self, before: dict[str, object]) -> list[str]:
        """What the host has noticed of an attempt."""
        found = self.canary.changed(before, self.canary.snapshot)
        found += self.canary.changed(self.alive, self.canary.alive)
        for volume in self.volumes.values():
            found += planted(volume)
        if arrived := self.scene.others.drain():
            found.append(f"{arrived} connections or datagrams arrived at the host")
        return found


def compiled_policies(house: House) -> dict[str, CompiledPolicy]:
    """The plans as the supervisor compiles them: where the expected answers come from."""
    host = load_host(house.host_file)
    policies, errors = load_directory(house.policies)
    assert not errors, errors
    tokens = {policy.id: f"anchorhold-placeholder-{'0' * 32}" for policy in policies}
    return compile_policies(policies, host, host_context(policies, host, tokens))
