"""One workload as the supervisor sees it: its state, its crashes, when to try again."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from sandbox.launcher import Running
from sandbox.verify import Finding
from supervisor.policy.plans import CompiledPolicy

State = Literal["stopped", "starting", "running", "backoff", "containing", "quarantined", "failed"]

_CRASHES, _WINDOW = 5, 60.0  # this many crashes within this many seconds: quarantine
_BACKOFF_FIRST, _BACKOFF_MAX = 0.25, 10.0


class Crashes:
    """How often a workload crashed lately, and what follows from it."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=_CRASHES)

    def add(self, now: float | None = None) -> float | None:
        """Count one crash; seconds to wait before the next start, or None: quarantine."""
        now = time.monotonic() if now is None else now
        self._times.append(now)
        recent = sum(1 for moment in self._times if now - moment < _WINDOW)
        if recent >= _CRASHES:
            return None
        return float(min(_BACKOFF_FIRST * 2 ** (recent - 1), _BACKOFF_MAX))

    def forget(self) -> None:
        """The operator started it again: a clean slate."""
        self._times.clear()


@dataclass
class Workload:
    """A compiled policy and what has become of it. Who starts or stops it holds `turn`."""

    compiled: CompiledPolicy
    state: State = "stopped"
    running: Running | None = None
    error: str | None = None
    restarts: int = 0
    last_end: str | None = None  # how its last process ended that nobody had asked to end
    since: float = field(default_factory=time.time)
    findings: list[Finding] = field(default_factory=list)
    crashes: Crashes = field(default_factory=Crashes)
    wanted: bool = True
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def id(self) -> str:
        """The policy's id."""
        return self.compiled.policy.id

    @property
    def contained(self) -> bool:
        """Whether it must not run on: everything of it is frozen or killed, or about to be."""
        return self.state in ("containing", "quarantined")

    def enter(self, state: State, error: str | None = None) -> None:
        """Change state and say why."""
        self.state = state
        self.error = error
        self.since = time.time()
