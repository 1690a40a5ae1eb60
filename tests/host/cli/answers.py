"""What a supervisor would answer."""

from __future__ import annotations

from typing import Any

from supervisor.control import Request

LAYER = {"layer": "seccomp", "promised": "2 filters", "evidence": "Seccomp: 2", "verdict": "PASS"}
USAGE = {
    "memory": {"now": 105_500_000, "high": 117_440_512, "limit": 134_217_728, "swap": 0,
               "oom_kills": 3},
    "pids": {"now": 11, "limit": 16},
    "cpu": {"seconds": 12345.6, "throttled": 0.123},
    "pressure": {"cpu": {"some": 99.7, "full": 12.4}, "memory": {"some": 3.2, "full": 1.0},
                 "io": None},
}  # fmt: skip
STATUS = {
    "version": "0.1.0",
    "state": "degraded",
    "degraded": [
        {"guarantee": "cgroup:memory", "why": "hybrid host"},
        {"guarantee": "vault", "why": "PCR_CHANGED (PCR 11: 00 -> 01)", "fix": "make a new one"},
    ],
    "tpm": {"mode": "software", "level": "T0", "pcrs": [7, 11],
            "note": "It protects nothing against root."},
    "probes": {"ok": True, "abi": 1, "workloads": {
        "adapter.rest": {"seen": 3, "suppressed": 1, "lost": 0},
        "executor.main": {"seen": 2, "suppressed": 0, "lost": 5},
    }},
    "workloads": [
        {"id": "adapter.rest", "kind": "adapter", "state": "running", "pid": 42, "uid": 1879050003,
         "restarts": 1, "since": 1.0, "rss": 17_000_000, "error": None, "layers": [LAYER],
         "last_end": "signal SIGKILL", "usage": USAGE,
         "policy": {"file": "adapter-rest.toml", "version": 3, "digest": "ab" * 32}},
        {"id": "executor.main", "kind": "executor", "state": "failed", "pid": None,
         "uid": 1879050004, "restarts": 0, "since": 1.0, "rss": None, "last_end": "exit code 1",
         "usage": None,
         "error": "no \x1b[31mpython", "layers": [],
         "policy": {"file": "executor-main.toml", "version": 1, "digest": "cd" * 32}},
    ],
    "memory": {"limits": 384 << 20, "machine": 4 << 30},
}  # fmt: skip


def answering(place: Any, result: object) -> Any:
    async def handler(request: Request) -> object:
        place.seen.append((request.verb, request.arguments))
        if isinstance(result, Exception):
            raise result
        return result

    return handler
