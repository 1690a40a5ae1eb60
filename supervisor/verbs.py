"""What the supervisor does when the command line asks: one handler per control verb."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Coroutine, Mapping

from sandbox.errors import SandboxError
from supervisor.callers import EGRESS
from supervisor.cli import exits
from supervisor.control import ControlError, Handler, Request
from supervisor.egress import EgressRefused
from supervisor.policy.net import HOST_NAME, asked
from supervisor.status import status
from supervisor.supervise import Supervisor
from supervisor.vault_verbs import descriptors, vault_handlers
from supervisor.workload import Workload

_TRY_TIME = 300.0
_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}")


def handlers(of: Supervisor) -> Mapping[str, Handler]:
    """Every verb of the control socket."""
    verbs = _Verbs(of)
    return {
        "status": verbs.status,
        "stop": verbs.stop,
        "restart": verbs.restart,
        "token.issue": verbs.issue_token,
        **vault_handlers(of),
        "ask.answer": verbs.answer,
        "try": verbs.try_out,
    }


class _Verbs:
    def __init__(self, of: Supervisor) -> None:
        self._of = of

    async def status(self, request: Request) -> object:
        return status(self._of)

    async def stop(self, request: Request) -> object:
        if request.arguments.get("workload") is None:
            self._of.stop()
            return {"stopped": "all"}
        workload = self._workload(request)
        await self._to_its_end(self._of.lifecycle.stop(workload))
        self._of.note("stop", workload.id, "allowed")
        return {"stopped": workload.id}

    async def restart(self, request: Request) -> object:
        workload = self._workload(request)
        await self._to_its_end(self._restart(workload))
        if not await self._of.lifecycle.serving(workload):
            raise ControlError(
                "start_failed",
                f"{workload.id} did not start: {workload.error or 'it does not listen'}",
                f"correct {workload.compiled.policy.file} or the host, then restart it again",
                exits.REFUSED_START if workload.state == "failed" else exits.FAILED,
            )
        return {"restarted": workload.id}

    async def _restart(self, workload: Workload) -> None:
        await self._of.lifecycle.stop(workload)
        workload.crashes.forget()
        workload.last_end = None
        workload.restarts += 1
        await self._of.lifecycle.start(workload)

    async def _to_its_end(self, job: Coroutine[None, None, None]) -> None:
        """A client that leaves cancels its handler, but no half-done start or stop may remain."""
        await asyncio.shield(self._of.lifecycle.spawn(job))

    async def issue_token(self, request: Request) -> object:
        client, workload = _text(request, "client"), _text(request, "workload")
        lifetime = request.arguments.get("lifetime")
        if not isinstance(lifetime, int) or not 1 <= lifetime <= 31_536_000:
            raise _usage("lifetime is a number of seconds, at most a year")
        reachable = sorted(id_ for id_, one in self._of.compiled.items() if one.routes)
        if workload not in reachable:
            raise ControlError(
                "no_route",
                f"no client can reach {workload} through the gateway",
                f"--workload is one of: {', '.join(reachable)}",
                exits.USAGE,
            )
        fds = descriptors(request)
        token = await self._of.vault.keys.token(client, workload, lifetime, fds)
        self._of.record("token", workload, "allowed", client=client, lifetime=lifetime)
        return {"token": token}

    async def answer(self, request: Request) -> object:
        """The operator's word on a host that a workload asked for, bounded by the policy's rule."""
        workload = self._workload(request)
        words = {name: request.arguments.get(name) for name in ("host", "port", "seconds", "uses")}
        host, port, uses = words["host"], words["port"], words["uses"]
        if not isinstance(host, str) or not HOST_NAME.fullmatch(host) or type(port) is not int:
            raise _usage("host is a host name, port a number")
        if type(uses) is not int or not 1 <= uses <= 1000:
            raise _usage("uses is a number from 1 to 1000")
        rule = asked(workload.compiled, host, port)
        if rule is None:
            raise ControlError(
                "not_asked",
                f"no rule of {workload.compiled.policy.file} asks for {host}:{port}",
                "see `anchorhold policy explain`",
                exits.USAGE,
            )
        seconds = words["seconds"] if type(words["seconds"]) is int else rule["time"]
        seconds = max(1, min(seconds, rule["time"]))
        allow = request.arguments.get("verdict") == "approve"
        verdict = "allowed" if allow else "refused"
        bounds = {"seconds": seconds, "uses": uses}
        self._of.record("ask", workload.id, verdict, host=host, port=port, **bounds)
        if self._of.egress is None:
            raise EgressRefused("the egress proxy is not running")
        if allow:
            name, target = f"ask.{workload.id}.{host}:{port}", {"host": host, "port": port}
            self._of.broker.allow(EGRESS, name, target, seconds=seconds, uses=uses)
        await self._of.egress.order(
            op="answer", workload=workload.id, host=host, port=port,
            verdict="allow" if allow else "refuse", **bounds,
        )  # fmt: skip
        return bounds

    async def try_out(self, request: Request) -> object:
        workload = self._workload(request)
        argv = request.arguments.get("argv")
        if not isinstance(argv, list) or not argv or not all(map(_plain, argv)):
            raise _usage("argv is a list of words, the first an absolute path inside the sandbox")
        if len(request.fds) != 3:
            raise _usage("try needs stdin, stdout and stderr")
        stdin, stdout, stderr = (os.dup(fd) for fd in request.fds)
        try:
            self._of.record("try", workload.id, "allowed")
            code, number = await self._of.lifecycle.try_out(
                workload.id, tuple(argv), (stdin, stdout, stderr), _TRY_TIME
            )
        except (SandboxError, OSError) as error:
            fix = getattr(error, "fix", "")
            raise ControlError("try_failed", str(error), fix, exits.TRY_FAILED) from error
        finally:
            for fd in (stdin, stdout, stderr):
                os.close(fd)
        self._of.note("tried", workload.id, "allowed", code=code, signal=number)
        return {"exit": None if number else code, "signal": number or None}

    def _workload(self, request: Request) -> Workload:
        id_ = _text(request, "workload")
        try:
            return self._of.workloads[id_]
        except KeyError:
            known = ", ".join(sorted(self._of.workloads))
            raise ControlError(
                "unknown_workload", f"no workload {id_}", f"one of: {known}", exits.USAGE
            ) from None


def _plain(word: object) -> bool:
    """Whether a word can be an argument: text without NUL or lone surrogates."""
    return isinstance(word, str) and not any(c == "\0" or "\ud800" <= c <= "\udfff" for c in word)


def _text(request: Request, name: str) -> str:
    value = request.arguments.get(name)
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise _usage(f"{name} is a name of a-z, 0-9, '.' and '-'")
    return value


def _usage(message: str) -> ControlError:
    return ControlError("bad_request", message, "see `anchorhold --help`", exits.USAGE)
