"""The supervisor: everything it holds, the order in which the whole comes up and goes down."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from probes import events
from proxy.audit import AuditLog, AuditUnwritable
from sandbox import devices
from sandbox.broker import BrokerHandle
from sandbox.cgroup import Slice, make_room
from sandbox.errors import SandboxError
from sandbox.launcher import Launcher
from supervisor import doctor
from supervisor.callers import EGRESS
from supervisor.cells import Cells
from supervisor.channels import Channels
from supervisor.checkpoints import Checkpoints
from supervisor.custody import Custody
from supervisor.descriptors import Outfitter, append_to, listen
from supervisor.egress import Egress
from supervisor.host import Host
from supervisor.keys import HELPER, SOFTWARE_TPM, VaultRefused
from supervisor.lifecycle import Lifecycle, StartError, no_policy
from supervisor.loading import load_policies
from supervisor.policy import signature
from supervisor.policy.plans import CompiledPolicy
from supervisor.policy.signature import set_digest
from supervisor.policy.wiring import broker_targets, egress_config, ingress_config
from supervisor.state import StateDirectories
from supervisor.vault.errors import Fault
from supervisor.watching import LOADER, READER, Watching
from supervisor.workload import Workload

INGRESS = "service.ingress"
_ONE_SHOTS = (LOADER, HELPER)
_START_ORDER = ("model-server", "executor", "tool", "adapter")
_TRIAL_UIDS = 64
_LAST_WORDS = 10.0  # seconds that the last checkpoint of the audit records may take
_TPM_LOOK = 0.5  # seconds between two looks whether the TPM that a helper waits for still runs


class Supervisor:
    """One running Anchorhold."""

    def __init__(self, host: Host, zygote: socket.socket, broker: BrokerHandle) -> None:
        today = datetime.now(UTC).date()
        self.host = host
        self.broker = broker
        listening = listen(host.listen)  # first: nothing is left behind when the port is taken
        self.run_directory, self.state = Path(host.paths.run), Path(host.paths.state)
        self.guarantees = doctor.check(host)
        waived = host.waived(today)
        # As the launch and the verifier know them: "memory", "device-filter".
        self.waived_layers = frozenset(name.removeprefix("cgroup:") for name in waived)
        self.waived = waived
        self.audit = AuditLog(append_to(self.state / "audit/supervisor.jsonl"))
        self.compiled, self.policy_errors = load_policies(host)
        self._signed_digest = set_digest(Path(host.paths.policies))
        # Why nothing but what opens the vault may run; None where that is not asked for or settled.
        self.unsigned: SandboxError | None = None
        if host.signed:
            text = "the signature of the policies was not checked yet"
            self.unsigned = SandboxError("policies_unsigned", text, "wait for the vault")
        for error in self.policy_errors:
            self.record("policy", error.file, "refused", reason=str(error))
        # Named by the whole path of the run directory, of which there is one: no other supervisor
        # may take the cgroups of this one for its own.
        name = host.paths.run.strip("/").replace("/", "-")
        self.slice = Slice(make_room(name))
        filtered = not any(
            g.name == "device-filter" and g.state == "waived" for g in self.guarantees
        )
        self.directories = StateDirectories(
            not any(g.name == "disk:quota" and g.state == "waived" for g in self.guarantees)
        )
        for id_, compiled in self.compiled.items():
            if id_ != SOFTWARE_TPM or self.host_tpm_is_software:
                self.directories.prepare(compiled)
        self.launcher = Launcher(zygote, self.run_directory / "stage", filtered)
        for compiled in self.compiled.values() if filtered else ():
            with suppress(OSError, SandboxError):  # every launch will say so
                devices.load(devices.rules(compiled.sandbox))
        self.watching = Watching(
            self.run_directory / "bpf", self.slice, self._noticed, host.denials
        )
        self.channels = Channels(self.run_directory / "channel", self.compiled)
        self.outfitter = Outfitter(
            self.state,
            self.channels,
            broker,
            listening,
            broker_targets(self.compiled, host),
        )
        self.cells = Cells(
            self.launcher, self.slice, self.outfitter, self.watching, self.waived_layers
        )
        self.vault = Custody(self)
        self.checkpoints = Checkpoints(self)
        self._checking: asyncio.Task[None] | None = None
        self.egress: Egress | None = None
        self.workloads = {
            id_: Workload(compiled)
            for id_, compiled in self.compiled.items()
            if id_ not in _ONE_SHOTS and (id_ != SOFTWARE_TPM or self.host_tpm_is_software)
        }
        self.lifecycle = Lifecycle(self)
        self._trials = 0
        self._stopping = asyncio.Event()

    async def run(self, ready: Callable[[], None]) -> int:
        """Bring everything up, say `ready`, stay, take everything down; the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        # Without launcher or broker nothing can be kept: leave, and everything dies with us.
        lost = loop.create_future()
        loop.add_reader(self.broker.control.fileno(), self._broker_gone, lost)
        self.launcher.lost.add_done_callback(lambda _: self._lost(lost, "launcher"))
        stopping = asyncio.ensure_future(self._stopping.wait())
        bringing = asyncio.ensure_future(self._bring_up())
        ends: set[asyncio.Future[Any]] = {stopping, lost}
        try:
            await asyncio.wait({bringing, *ends}, return_when=asyncio.FIRST_COMPLETED)
            if not any(end.done() for end in ends):
                bringing.result()
                ready()
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            bringing.cancel()
            await asyncio.gather(bringing, return_exceptions=True)
            await self._take_down()
        return 1 if lost.done() else 0

    def stop(self) -> None:
        """Ask run() to end."""
        self._stopping.set()

    async def _bring_up(self) -> None:
        await self._load_probes()
        if self.host_tpm_is_software:
            await self._start(SOFTWARE_TPM)
        await self.vault.open()
        if self.unsigned is not None:
            await self._ask_who_signed()
        await self._start(EGRESS)
        for kind in _START_ORDER:
            for id_, workload in self.workloads.items():
                if workload.compiled.policy.kind == kind:
                    await self._start(id_)
        # Last: no request may come in before those who answer it are there.
        await asyncio.gather(
            *(self.lifecycle.serving(one) for one in self.workloads.values() if one.running)
        )
        await self._start(INGRESS)
        self._checking = self.lifecycle.spawn(self.checkpoints.keep())

    async def _take_down(self) -> None:
        # First nothing comes in any more; the services hear the others' last words. Each takes its
        # time to end, and all of one kind take it together.
        services = {
            id_ for id_, one in self.workloads.items() if one.compiled.policy.kind == "service"
        }
        for ids in ({INGRESS} & services, self.workloads.keys() - services):
            await self._stop(ids)
        if self._checking is not None:  # the vault is still there, and can sign
            self._checking.cancel()
            with suppress(TimeoutError):
                async with asyncio.timeout(_LAST_WORDS):
                    await self.checkpoints.write()
        await self._stop(services - {INGRESS})
        self.watching.detach_reader()
        self.slice.remove()
        self.channels.close()
        self.note("stop", "supervisor", "allowed")

    async def _ask_who_signed(self) -> None:
        """With `signed = true` nothing runs under policies that no trusted signer signed."""
        path = Path(self.host.paths.policies) / signature.FILE
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                signer = await self.vault.vouch(self._signed_digest, fd)
            finally:
                os.close(fd)
        except (VaultRefused, *StartError) as error:
            fix = getattr(error, "fix", "") or f"anchorhold policy sign KEY, which writes {path}"
            self.unsigned = SandboxError("policies_unsigned", f"unsigned policies: {error}", fix)
            self.note("policies", "all", "refused", reason=str(error))
            return
        self.unsigned = None
        self.note("policies", "all", "allowed", signer=signer, digest=self._signed_digest.hex())

    async def _stop(self, ids: Iterable[str]) -> None:
        await asyncio.gather(*(self.lifecycle.stop(self.workloads[id_]) for id_ in ids))

    async def _start(self, id_: str) -> None:
        if workload := self.workloads.get(id_):
            await self.lifecycle.start(workload)

    async def _load_probes(self) -> None:
        try:
            for id_ in (LOADER, READER):
                if id_ not in self.compiled:
                    raise no_policy(id_)
            await self.watching.load(self.compiled[LOADER].sandbox.uid, self.one_shot)
        except StartError as error:
            # Workloads that require probes are refused by name when their turn comes.
            self._lose("probes", str(error))
            self.note("probes", LOADER, "failed", reason=str(error))
            if reader := self.workloads.get(READER):
                reader.enter("failed", f"the probes are not loaded: {error}")
            return
        await self._start(READER)

    def _lose(self, guarantee: str, evidence: str) -> None:
        """What doctor found possible turned out not to be."""
        why = next((w.why for w in self.host.waivers if w.guarantee == guarantee), "")
        state: Literal["waived", "missing"] = "waived" if guarantee in self.waived else "missing"
        self.guarantees = [
            dataclasses.replace(each, state=state, evidence=evidence, why_waived=why)
            if each.name == guarantee and each.state == "ok"
            else each
            for each in self.guarantees
        ]

    async def reopen(self) -> None:
        """The software TPM was started again: what waited for it goes on."""
        if self.egress is None:
            return
        if not self.vault.public_keys:
            await self.vault.open()
            await self.serve_tokens()
        await self.vault.unlock()

    async def serve_tokens(self) -> None:
        """The gateway is told its keys at its start: anew, now that there are some."""
        if self.vault.public_keys and (ingress := self.workloads.get(INGRESS)):
            await self.lifecycle.stop(ingress)
            await self.lifecycle.start(ingress)

    async def one_shot(self, id_: str, words: tuple[str, ...], extra: Any) -> int:
        """Run a service to its end; its exit code. Raises as Lifecycle.one_shot, and VaultRefused
        for the unlock helper without the TPM that it would wait for."""
        running = asyncio.ensure_future(self.lifecycle.one_shot(id_, words, extra))
        try:
            # The software TPM's socket takes connections also when nobody will ever answer.
            while not running.done():
                if id_ == HELPER and self._tpm_is_down():
                    raise VaultRefused(Fault.TPM_ABSENT)
                await asyncio.wait({running}, timeout=_TPM_LOOK)
            return running.result()
        finally:
            running.cancel()

    def _tpm_is_down(self) -> bool:
        tpm = self.workloads.get(SOFTWARE_TPM)
        down = tpm is None or tpm.state in ("stopped", "failed", "quarantined")
        return self.host_tpm_is_software and down

    def config_of(self, compiled: CompiledPolicy) -> object:
        """What a proxy is told at its start."""
        if compiled.policy.id == INGRESS:
            return ingress_config(self.compiled, self.host, self.vault.public_keys)
        if compiled.policy.id == EGRESS:
            return egress_config(self.compiled, self.host)
        return {}

    @property
    def spare_uid(self) -> int:
        """A uid for a trial run: beyond all workloads', not soon reused."""
        self._trials = (self._trials + 1) % _TRIAL_UIDS
        return max(plan.sandbox.uid for plan in self.compiled.values()) + 1 + self._trials

    @property
    def host_tpm_is_software(self) -> bool:
        """Whether the embedded software TPM serves this host."""
        if self.host.tpm.mode == "auto":
            return not Path("/dev/tpmrm0").exists() and "file-key" not in self.waived
        return self.host.tpm.mode == "swtpm"

    def record(self, event: str, workload: str, verdict: str, **more: object) -> None:
        """One line of the supervisor's own audit log. Raises AuditUnwritable."""
        self.audit.write(hop="supervisor", event=event, workload=workload, verdict=verdict, **more)
        self.audit.settle()

    def note(self, event: str, workload: str, verdict: str, **more: object) -> None:
        """The same for what has happened anyhow: a full disk must not stop the mending."""
        try:
            self.record(event, workload, verdict, **more)
        except AuditUnwritable as error:
            print(f"{event} {workload} {verdict} {more}: {error}", file=sys.stderr)

    def may_run(self, workload: Workload) -> bool:
        """Whether those whom this workload may not run without are there: the egress proxy for who
        calls models, the probe reader for whose policy asks to be watched."""
        proxied = self.egress is not None or workload.compiled.egress is None
        asked = "probes" in workload.compiled.sandbox.requires and "probes" not in self.waived
        return proxied and (self.watching.heard or not asked)

    def _noticed(self, notice: events.Notice) -> None:
        """A number from the probe reader: contain, if the workload's policy says so."""
        if notice.verdict < events.Verdict.STOP:
            return
        name = self.watching.name_of(notice.cgroup)
        workload = self.workloads.get(name or "")
        if workload is None:
            self.cells.kill_short(notice.cgroup)
        else:
            kill = notice.verdict == events.Verdict.KILL
            self.lifecycle.contain(workload, f"high-risk system call {notice.number}", kill)

    def _broker_gone(self, lost: asyncio.Future[None]) -> None:
        self._lost(lost, "broker")

    def _lost(self, lost: asyncio.Future[None], what: str) -> None:
        asyncio.get_running_loop().remove_reader(self.broker.control.fileno())
        if not lost.done():
            self.note("lost", what, "failed", reason=f"the {what} died; stopping everything")
            lost.set_result(None)
