"""The process: sockets arrive over the control socket, and each becomes a workload's server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
from pathlib import Path
from typing import Any

from proxy import passing
from proxy.audit import AuditLog, AuditUnwritable
from proxy.dial import Broker
from proxy.errors import BrokerLost, ProxyError
from proxy.providers import Provider

from .application import WorkloadApp
from .budget import Budgets
from .config import Config, Workload
from .control import Answer, Control, ControlError
from .errors import Refusal
from .exchange import Services, place
from .forward.ask import Asks
from .forward.connection import Forward
from .forward.destination import Destination
from .guard import KeyGuard
from .http_server import Connection, Peers
from .keys import KeyRing
from .logs import LogPump
from .redaction.actions import Treatments
from .redaction.hold import HoldBack
from .redaction.scan import Scanner
from .redaction.text import Masker
from .upstream import Upstreams

GRACE = 1.5  # seconds that requests under way get after SIGTERM
_KEYS_TIME = 120.0
_CODE = re.compile(r"[A-Z][A-Z_]{0,63}")


class EgressServer:
    """Everything of the process that lives as long as it does."""

    def __init__(
        self,
        config: Config,
        scanner: Scanner,
        providers: dict[str, Provider],
        fds: dict[str, int],
    ) -> None:
        self._config = config
        self._providers = providers
        self._audit = AuditLog(fds["audit"])
        self._ring = KeyRing()
        self._broker = Broker(socket.socket(fileno=fds["broker"]))
        self._broker_lost = False
        self._services = Services(
            config=config,
            ring=self._ring,
            guard=KeyGuard(self._ring),
            scanner=scanner,
            hold=HoldBack(scanner.book),
            upstreams=Upstreams(config, self._broker, self._ring),
            audit=self._audit,
            placeholders=tuple(workload.placeholder for workload in config.workloads.values()),
            treatments={
                name: Treatments(scanner.book, f"workloads.{name}", workload.redact)
                for name, workload in config.workloads.items()
            },
            budgets=Budgets(
                Path(config.state) if config.state else None, config.workloads.values()
            ),
        )
        self._control = Control(socket.socket(fileno=fds["control"]), self._handle, self.stop)
        self._stopping = asyncio.Event()
        self._listening: dict[str, tuple[Peers, asyncio.Task[None]]] = {}
        self._asks = Asks(self._note_question)
        self._forwarding: dict[str, asyncio.Task[None]] = {}
        self._pumps: set[LogPump] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve until SIGTERM or until the supervisor is gone; ends within two seconds of it.

        Raises BrokerLost when the broker went away.
        """
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._unexpected)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        self._tell_budgets()
        self._control.start()
        self._broker.watch(self._lose_broker)
        await self._stopping.wait()
        await self._close()
        if self._broker_lost:
            raise BrokerLost

    def stop(self) -> None:
        """Begin to end."""
        self._stopping.set()

    def _lose_broker(self) -> None:
        self._broker_lost = True
        self.stop()

    def _handle(self, message: dict[str, Any], handed: list[int]) -> None:
        """Carry out one control message; raises ControlError."""
        if message["op"] in ("answer", "locked"):
            if handed:
                raise ControlError(Answer.WRONG_DESCRIPTORS)
            self._answer(message) if message["op"] == "answer" else self._locked(message)
            return
        operations = {
            "listen": (self._listen, 1),
            "forward": (self._forward, 1),
            "unlisten": (self._unlisten, 0),
            "log": (self._log, 2),
            "keys": (self._keys, 1),
        }
        operation, descriptors = operations.get(message["op"], (None, 0))
        if operation is None:
            raise ControlError(Answer.UNKNOWN_OPERATION)
        if message.keys() != ({"op"} if message["op"] == "keys" else {"op", "workload"}):
            raise ControlError(Answer.MALFORMED)
        if len(handed) != descriptors:
            raise ControlError(Answer.WRONG_DESCRIPTORS)
        operation(message.get("workload"), handed)

    def _workload(self, name: object) -> Workload:
        workload = self._config.workloads.get(name) if isinstance(name, str) else None
        if workload is None:
            raise ControlError(Answer.UNKNOWN_WORKLOAD)
        return workload

    def _forward(self, name: object, handed: list[int]) -> None:
        workload = self._workload(name)
        sock = _listener(handed)
        if (before := self._forwarding.pop(workload.id, None)) is not None:
            before.cancel()
        forward = Forward(self._services, workload, self._broker, self._asks)
        self._forwarding[workload.id] = asyncio.get_running_loop().create_task(forward.serve(sock))

    def _answer(self, message: dict[str, Any]) -> None:
        """The operator's word on a destination."""
        kinds = {"op": str, "workload": str, "host": str, "port": int, "verdict": str,
                 "seconds": int, "uses": int}  # fmt: skip
        if message.keys() != kinds.keys() or any(
            type(message[name]) is not kind for name, kind in kinds.items()
        ):
            raise ControlError(Answer.MALFORMED)
        if message["verdict"] not in ("allow", "refuse"):
            raise ControlError(Answer.MALFORMED)
        self._asks.answer(
            self._workload(message["workload"]).id, message["host"], message["port"],
            allowed=message["verdict"] == "allow",
            seconds=message["seconds"], uses=message["uses"],
        )  # fmt: skip

    def _locked(self, message: dict[str, Any]) -> None:
        """No keys will come for now: what to tell those who need one."""
        why = message.get("why")
        if message.keys() != {"op", "why"} or not isinstance(why, str) or not _CODE.fullmatch(why):
            raise ControlError(Answer.MALFORMED)
        self._ring.why_locked = why

    def _note_question(
        self,
        name: str,
        host: str,
        port: int,
        rule: Destination,
        verdict: str,
        reason: str | None,
        **more: object,
    ) -> None:
        """A question nobody can read is one nobody answers: AuditUnwritable goes to who asks."""
        workload = self._config.workloads[name]
        shown = Masker(self._services.scanner, self._services.guard, "strict").text(host)
        self._audit.write(
            hop="egress", event="ask", workload=name, verdict=verdict, reason=reason,
            rule=workload.rule(rule), host=shown, port=port, **more,
        )  # fmt: skip

    def _listen(self, name: object, handed: list[int]) -> None:
        workload = self._workload(name)
        sock = _listener(handed)
        if workload.id in self._listening:
            self._unlisten(workload.id, [])
        peers = Peers(WorkloadApp(self._services, workload, self._providers).serve)
        task = asyncio.get_running_loop().create_task(self._serve(sock, peers))
        self._listening[workload.id] = (peers, task)

    @staticmethod
    async def _serve(sock: socket.socket, peers: Peers) -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Connection(peers), sock=sock, backlog=128)
        try:
            await server.serve_forever()
        finally:
            server.close()

    def _unlisten(self, name: object, handed: list[int]) -> None:
        forwarding = self._forwarding.pop(name, None) if isinstance(name, str) else None
        if forwarding is not None:
            forwarding.cancel()
        listening = self._listening.pop(name, None) if isinstance(name, str) else None
        if listening is None and forwarding is None:
            raise ControlError(Answer.UNKNOWN_WORKLOAD)
        if listening is None:
            return
        peers, task = listening
        task.cancel()
        for connection in list(peers.connections):
            connection.shutdown()

    def _log(self, name: object, handed: list[int]) -> None:
        if not isinstance(name, str) or not name or len(name) > 128:
            raise ControlError(Answer.MALFORMED)
        services = self._services
        pipe, log = handed
        pump = LogPump(
            name, pipe, log, services.scanner, services.guard, services.hold, self._lost_lines
        )
        handed.clear()
        self._pumps = {other for other in self._pumps if other.open} | {pump}
        pump.start()

    def _keys(self, _name: object, handed: list[int]) -> None:
        """Answered at once: the helper that fills the vault may be started only after this."""
        sock = socket.socket(fileno=handed[0])
        handed.clear()
        sock.setblocking(False)
        task = asyncio.get_running_loop().create_task(self._receive_keys(sock))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _receive_keys(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            if not ready.done():
                ready.set_result(None)

        loop.add_reader(sock.fileno(), wake)
        verdict, reason = "allowed", None
        try:
            async with asyncio.timeout(_KEYS_TIME):
                await ready
            _, fds, _ = passing.receive(sock, 64, 1)
            try:
                if len(fds) != 1:
                    raise ControlError(Answer.WRONG_DESCRIPTORS)
                self._ring.load(fds[0])
                self._services.guard.refresh()
            finally:
                for fd in fds:
                    os.close(fd)
        except (ProxyError, OSError) as error:
            verdict, reason = "failed", getattr(error, "code", type(error).__name__)
        finally:
            loop.remove_reader(sock.fileno())
            sock.close()
        self._note(event="keys", verdict=verdict, reason=reason, keys=len(self._ring))

    def _lost_lines(self, workload: str, why: str, lines: int) -> None:
        self._note(event="log", workload=workload, verdict="failed", reason=why, lines=lines)

    def _unexpected(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Asyncio's default would print objects, and with them data of requests."""
        error = context.get("exception")
        kind = type(error).__name__ if error else "unknown"
        detail = f"{kind} at {place(error)}" if error else kind
        self._note(event="defect", verdict="failed", reason="internal_error", detail=detail)

    def _tell_budgets(self) -> None:
        """One record of every budget at the start: what `anchorhold budget` goes back to."""
        try:
            self._note(event="budgets", verdict="allowed", budgets=self._services.budgets.state())
        except Refusal as refusal:
            self._note(event="budgets", verdict="failed", reason=refusal.code, budgets=[])

    def _note(self, **record: object) -> None:
        with contextlib.suppress(AuditUnwritable):  # no request depends on these records
            self._audit.write(hop="egress", **record)

    async def _close(self) -> None:
        listening = [peers for peers, _ in self._listening.values()]
        for name in {*self._listening, *self._forwarding}:
            self._unlisten(name, [])
        running = {task for peers in listening for task in peers.tasks}
        if running:
            _, late = await asyncio.wait(running, timeout=GRACE)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=0.2)
        for task in self._tasks:
            task.cancel()
        for pump in self._pumps:
            pump.close()
        self._control.close()
        self._services.budgets.close()
        self._services.upstreams.close()


def _listener(handed: list[int]) -> socket.socket:
    """The listening socket handed over. Raises ControlError."""
    sock = socket.socket(fileno=handed[0])  # fails for what is no socket
    handed.clear()
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        sock.close()
        raise ControlError(Answer.WRONG_DESCRIPTORS)
    sock.setblocking(False)
    return sock
