"""What the status tells of limits and use is what the kernel's files say."""

from __future__ import annotations

from pathlib import Path

from house import House

from supervisor.policy.parse import load_directory


def test_the_status_tells_the_use_and_the_limits_of_every_workload(running: House) -> None:
    status = running.ask("status")
    alive = [one for one in status["workloads"] if one["pid"]]
    assert alive
    for one in alive:
        leaf = running.leaf(one["id"])
        used, given = one["usage"], (leaf / "cgroup.controllers").read_text().split()
        assert used["cpu"]["seconds"] > 0
        for name in ("cpu", "memory", "io"):
            assert (used["pressure"][name] is not None) == (leaf / f"{name}.pressure").exists()
        for name in ("memory", "pids"):
            assert (used[name]["now"] is not None) == (name in given)
        limits = {x["layer"].removeprefix("limit "): x for x in one["layers"]}
        for file in ("cgroup.max.descendants", "cgroup.max.depth"):
            assert limits[file]["verdict"] == "PASS"
        for file in ("memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "cpu.max"):
            name = file.partition(".")[0]
            assert limits[file]["verdict"] == ("PASS" if name in given else "DEGRADED")
            assert name in given or limits[file]["evidence"].endswith(f"waived as cgroup:{name}")
    assert "io.max" in {x["layer"].removeprefix("limit ") for x in _layers(alive, "executor.main")}


def test_the_limits_together_are_told_beside_the_memory_of_the_machine(running: House) -> None:
    status = running.ask("status")
    alive = {one["id"] for one in status["workloads"] if one["pid"]}
    policies, _ = load_directory(running.policies)
    together = sum(policy.limits.memory or 0 for policy in policies if policy.id in alive)
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert status["memory"] == {"limits": together, "machine": total}


def _layers(alive: list[dict], id_: str) -> list[dict]:
    return next(one["layers"] for one in alive if one["id"] == id_)
