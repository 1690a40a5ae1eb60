"""The demo's judge, without privilege: reads logs, audit records and the model's own memory.

Looks for what must be there (the sealed key at the upstream, an event for every attack) and for
what must not (a secret anywhere else).
"""

from __future__ import annotations

import email
import email.policy
import http.client
import json
import re
import socket
from dataclasses import dataclass
from typing import Any

from supervisor.cli import terminal

# What each attempt must meet: the layer, the answer it gives, the event that tells of it.
ATTEMPTS: dict[str, tuple[str, str, str, str]] = {
    "files": ("mount namespace, Landlock", r"EACCES.*ENOENT|EACCES", "denied", "openat"),
    "network": ("Landlock, network namespace", r"EACCES|ECONNREFUSED", "denied", "connect"),
    "ptrace": ("seccomp", r"signal 31", "sigsys", "ptrace"),
    "mount": ("seccomp", r"signal 31", "sigsys", "mount"),
    "dns": ("seccomp, network namespace", r"EAFNOSUPPORT", "denied", "socket"),
}
_SECRETS = (
    ("API key in an e-mail", re.compile(rb"OPENAI_API_KEY=(\S+)")),
    ("phone number in an e-mail", re.compile(rb"(\+49 30 [0-9]+)")),
)


@dataclass(frozen=True)
class Found:
    """What root collected, unread."""

    key: str
    key_sha256: str
    mails: dict[str, bytes]
    written: dict[str, bytes]
    environments: dict[str, bytes]
    attacks: dict[str, tuple[str, bytes, bytes]]
    denials: bool
    model: socket.socket


def judge(found: Found) -> bool:
    """Print both tables; whether everything is as it should be."""
    flow = [*_upstream(found), *_leaks(found), *_records(found)]
    rows = [*_attacks(found), _unauthenticated(found)]
    terminal.table("Attacks", ("attempt", "refused by", "answer", "recorded as", ""), rows)
    terminal.table("The way of the messages", ("promised", "evidence", ""), flow)
    return all(row[-1] == "PASS" for row in (*flow, *rows))


def _row(promised: str, evidence: str, good: bool) -> tuple[str, str, str]:
    return promised, evidence, "PASS" if good else "FAIL"


def _ask_model(inside: socket.socket) -> list[dict[str, Any]]:
    """What the practice model received. A real model server has no such page."""
    with inside:
        inside.settimeout(10)
        inside.connect(("127.0.0.1", 8000))
        connection = http.client.HTTPConnection("127.0.0.1")
        connection.sock = inside
        connection.request("GET", "/practice/requests")
        requests: list[dict[str, Any]] = json.load(connection.getresponse())["requests"]
        return requests


def _upstream(found: Found) -> list[tuple[str, str, str]]:
    requests = _ask_model(found.model)
    right = sum(each["bearer_sha256"] == found.key_sha256 for each in requests)
    bodies = "\n".join(each["body"] for each in requests)
    rows = [
        _row(
            "the model server received the sealed key",
            f"{right} of {len(requests)} requests carried it",
            bool(requests) and right == len(requests),
        ),
    ]
    for what, secret in _secrets_of(found.mails):
        absent = secret not in bodies
        rows.append(
            _row(f"{what}: never reached the model", "absent" if absent else "SEEN", absent)
        )
    marks = bodies.count("[REDACTED:")
    rows.append(_row("the model saw a mark instead", f"{marks} marks", marks > 0))
    return rows


def _secrets_of(mails: dict[str, bytes]) -> list[tuple[str, str]]:
    """The secrets that the test e-mails carry, decoded."""
    texts = []
    for raw in mails.values():
        message = email.message_from_bytes(raw, policy=email.policy.default)
        for part in message.walk():
            payload = part.get_payload(decode=True)
            if isinstance(payload, bytes):
                texts.append(payload)
    everything = b"\n".join(texts)
    return [
        (what, match[1].decode()) for what, rule in _SECRETS for match in rule.finditer(everything)
    ]


def _leaks(found: Found) -> list[tuple[str, str, str]]:
    needles = [("the sealed key", found.key), *_secrets_of(found.mails)]
    rows = []
    for what, secret in needles:
        where = [name for name, content in found.written.items() if secret.encode() in content]
        evidence = ", ".join(where) or f"absent from {len(found.written)} files"
        rows.append(_row(f"{what}: in no log or audit file", evidence, not where))
    holders = [id_ for id_, text in found.environments.items() if found.key.encode() in text]
    executor = found.environments.get("executor.main", b"")
    placeholder = b"OPENAI_API_KEY=anchorhold-placeholder-" in executor
    rows.append(_row("the executor holds a placeholder", "in its environment", placeholder))
    evidence = ", ".join(holders) or f"absent from {len(found.environments)} processes"
    rows.append(_row("the sealed key: in no environment", evidence, not holders))
    return rows


def _lines(found: Found, name: str) -> list[dict[str, Any]]:
    raw = found.written.get(f"audit/{name}.jsonl", b"").splitlines()
    return [json.loads(line) for line in raw]


def _records(found: Found) -> list[tuple[str, str, str]]:
    gateway = [r for r in _lines(found, "service.ingress") if r["verdict"] == "allowed"]
    egress = [r for r in _lines(found, "service.egress") if r["verdict"] == "allowed"]
    requests = {record.get("request") for record in egress}
    traced = sum(record.get("request") in requests for record in gateway)
    redacted = sum(
        count for r in egress for count in (r.get("redacted") or {}).get("request", {}).values()
    )
    return [
        _row(
            "each message can be followed by its request id",
            f"{traced} of {len(gateway)} seen again at the egress proxy, {len(egress)} model calls",
            len(gateway) >= len(found.mails) and traced == len(gateway),
        ),
        _row("what was redacted is counted", f"{redacted} redactions", redacted > 0),
    ]


def _attacks(found: Found) -> list[tuple[str, str, str, str, str]]:
    events = _lines(found, "service.probe-reader")
    rows = []
    for name, (layer, answer, event, called) in ATTEMPTS.items():
        ended, said, control = found.attacks[name]
        how = f"{said.decode(errors='replace').strip()} {ended}".strip()
        seen = [
            record
            for record in events
            if record.get("comm") == f"try-{name}"
            and record["event"] == event
            and record.get("call") == called
        ]
        told = f"{event} {called} ({seen[-1]['reason']})" if seen else "NO EVENT"
        recorded = bool(seen)
        if event == "denied" and not found.denials:
            told, recorded = "not recorded: [probes] denials is false", not seen
        elif event == "denied" and "ECONNREFUSED" in how:
            told, recorded = "nothing was refused: its own empty loopback answered", not seen
        works = b"succeeded" in control
        good = bool(re.search(answer, how)) and "succeeded" not in how and recorded and works
        how += "" if works else "; NOT TESTABLE: fails outside too"
        rows.append((name, layer, how, told, "PASS" if good else "FAIL"))
    return rows


def _unauthenticated(found: Found) -> tuple[str, str, str, str, str]:
    """The client's WebSocket without a valid token. Its control is the message that passed."""
    records = _lines(found, "service.ingress")
    refused = [r for r in records if r["verdict"] == "refused" and r.get("status") == 401]
    passed = [r for r in records if r["verdict"] == "allowed" and r.get("protocol") == "websocket"]
    answer = f"HTTP {refused[-1]['status']}" if refused else "NOT REFUSED"
    told = f"gateway record ({refused[-1]['reason']})" if refused else "NO RECORD"
    return "websocket", "gateway", answer, told, "PASS" if refused and passed else "FAIL"
