"""What compiling yields: one frozen plan per policy, every part traceable to file and line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sandbox.plan import SandboxPlan
from supervisor.policy.model import Policy, Rule


@dataclass(frozen=True, slots=True)
class Source:
    """Where a decision is written: the "rule" of audit records."""

    file: str
    rule: str
    line: int


@dataclass(frozen=True, slots=True)
class Route:
    """One protocol that the gateway forwards to this workload; `target` is the broker's name."""

    protocol: str
    port: int
    target: str
    body_max: int
    upgrade: bool
    source: Source


@dataclass(frozen=True, slots=True)
class ListenPort:
    """A port bound inside the workload's network namespace; `through` may dial it."""

    port: int
    through: str
    source: Source


@dataclass(frozen=True, slots=True)
class ChannelPlan:
    """A Unix stream socket. The supervisor listens at `host_path`, owned by the client; the server
    inherits the listener as fd `fd_name`; the client finds it at `inside_path`."""

    client: str
    server: str
    role: str
    host_path: str
    inside_path: str
    fd_name: str
    source: Source


@dataclass(frozen=True, slots=True)
class WatchPlan:
    """System call numbers for the probes' bitmaps, and what follows from them."""

    allowed: tuple[int, ...]
    high_risk: tuple[int, ...]
    on_high_risk: str
    on_unseen: str
    denials: bool


@dataclass(frozen=True, slots=True)
class CompiledPolicy:
    """A policy and all that follows from it on one host.

    `egress` is this workload's entry in the egress proxy's configuration, None without models.
    `rules` are the rules in force; `expired` those whose exception ran out, which give nothing.
    `state_directory` is made by the supervisor, mode 0700, owned by the plan's uid.
    """

    policy: Policy
    digest: str
    sandbox: SandboxPlan
    rules: tuple[Rule, ...]
    expired: tuple[Rule, ...]
    egress: dict[str, Any] | None
    routes: tuple[Route, ...]
    channels: tuple[ChannelPlan, ...]
    listen: tuple[ListenPort, ...]
    watch: WatchPlan
    state_directory: str | None
    restart: str

    @property
    def id(self) -> str:
        """The workload's id."""
        return self.policy.id
