"""Hosts that the operator decides on: held until he has, bounded by time and uses, on record."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy.egress.errors import Refusal
from proxy.egress.forward.ask import HELD_MAX, Asks

from .harness import WORKLOAD, Proxy, Upstream
from .test_forward import TlsEcho, answer, connect, destination, head, rule

NEW = "new.example"
ROOT = Path(__file__).parents[3]


def asking(name: str = "any", **changes: Any) -> dict[str, Any]:
    return rule(name, **{"host": "*", "ask": True, "hold": 30, "time": 300, **changes})


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory, shared_upstream: Upstream
) -> Iterator[tuple[Proxy, TlsEcho]]:
    echo = TlsEcho(tmp_path_factory.mktemp("tls"))
    proxy = Proxy(
        tmp_path_factory.mktemp("ask"), shared_upstream, upstream={"host": "api.models.example"},
        workload={"net": [rule(), asking(), asking("soon", port=8443, hold=1)]},
    )  # fmt: skip
    proxy.forward()
    yield proxy, echo
    assert proxy.close() == b"", "the proxy printed something"
    echo.close()


@pytest.fixture
def proxy(shared: tuple[Proxy, TlsEcho]) -> Proxy:
    proxy, echo = shared
    proxy.broker.dialled.clear()
    proxy.broker.ports[f"ask.{WORKLOAD}.{NEW}:443"] = echo.port
    return proxy


def word(host: str, verdict: str = "allow", port: int = 443, **more: Any) -> dict[str, Any]:
    return {"op": "answer", "workload": WORKLOAD, "host": host, "port": port, "verdict": verdict,
            "seconds": 60, "uses": 1, **more}  # fmt: skip


def question(proxy: Proxy, host: str, after: str = "") -> Any:
    """The record of what is held for `host`, once it is there; another than the one `after`."""

    def held() -> list[Any]:
        asked = [r for r in proxy.records("ask") if r["host"] == host and r["verdict"] == "held"]
        return [r for r in asked[-1:] if r["id"] != after]

    proxy.wait_for(lambda: bool(held()))
    return held()[-1]


def test_a_held_request_goes_on_when_it_is_allowed_and_only_so_often(proxy: Proxy) -> None:
    sock = connect(proxy, f"{NEW}:443")
    record = question(proxy, NEW)
    assert record["rule"]["id"] == "any" and record["port"] == 443 and record["until"]
    assert not proxy.broker.dialled
    assert proxy.command(word(NEW, uses=2)) == 0
    assert b" 200 " in head(sock)
    assert proxy.broker.dialled == [f"ask.{WORKLOAD}.{NEW}:443"]
    assert b" 200 " in head(connect(proxy, f"{NEW}:443")), "the second use"
    third = connect(proxy, f"{NEW}:443")
    question(proxy, NEW, after=record["id"])
    assert proxy.command(word(NEW, "refuse")) == 0
    assert answer(third) == (403, "destination_refused")
    ends = [r["verdict"] for r in proxy.records("ask") if r["host"] == NEW]
    assert ends == ["held", "allowed", "held", "refused"]


def test_a_refusal_is_remembered_and_another_port_is_another_question(proxy: Proxy) -> None:
    sock = connect(proxy, "bad.example:443")
    question(proxy, "bad.example")
    assert proxy.command(word("bad.example", "refuse")) == 0
    assert answer(sock) == (403, "destination_refused")
    assert answer(connect(proxy, "bad.example:443")) == (403, "destination_refused")
    assert answer(connect(proxy, "bad.example:8443")) == (403, "ask_timeout")
    assert not proxy.broker.dialled


def test_time_runs_out_to_a_refusal(proxy: Proxy) -> None:
    assert answer(connect(proxy, "slow.example:8443")) == (403, "ask_timeout")
    last = [r for r in proxy.records("ask") if r["host"] == "slow.example"][-1]
    assert (last["verdict"], last["reason"]) == ("refused", "ask_timeout")
    record = [r for r in proxy.records("completion") if r.get("host") == "slow.example"][-1]
    assert record["reason"] == "ask_timeout" and record["rule"]["id"] == "soon"


def test_what_needs_no_question_asks_none(proxy: Proxy) -> None:
    asked = len(proxy.records("ask"))
    proxy.broker.refuse.append((5, b"refused"))
    assert answer(connect(proxy)) == (502, "upstream_unreachable"), "a host that is listed"
    assert answer(connect(proxy, "api.models.example:443")) == (403, "model_host")
    assert answer(connect(proxy, "other.example:9000")) == (403, "destination_not_allowed")
    assert len(proxy.records("ask")) == asked


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (word(NEW, "perhaps"), 1),
        ({**word(NEW), "uses": "1"}, 1),
        ({**word(NEW), "seconds": True}, 1),
        ({**word(NEW), "more": 1}, 1),
        ({**word(NEW), "workload": "nobody"}, 4),
    ],
)
def test_a_malformed_word_changes_nothing(proxy: Proxy, message: dict[str, Any], code: int) -> None:
    assert proxy.command(message) == code


def test_a_word_takes_no_descriptor(proxy: Proxy) -> None:
    with socket.socket() as sock:
        assert proxy.command(word(NEW), sock.fileno()) == 3


# --- the questions themselves ---------------------------------------------------------------------


def asks_with(notes: list[str], clock: list[float]) -> Asks:
    def note(who: str, host: str, port: int, of: Any, verdict: str, *_: Any, **__: Any) -> None:
        notes.append(f"{host} {verdict}")

    return Asks(note, lambda: clock[0])


def test_many_who_wait_share_a_question_and_are_bounded() -> None:
    async def run() -> None:
        notes: list[str] = []
        asks = asks_with(notes, [0.0])
        one = destination(host="*", ask=True, hold=30, time=60)
        tasks = [
            asyncio.create_task(asks.permission("w", f"h{n % 2}.example", 443, one))
            for n in range(HELD_MAX)
        ]
        await asyncio.sleep(0)
        with pytest.raises(Refusal) as refused:
            await asks.permission("w", "more.example", 443, one)
        assert refused.value.code == "too_many_requests"
        assert notes == ["h0.example held", "h1.example held"]
        asks.answer("w", "h0.example", 443, allowed=True, seconds=60, uses=3)
        asks.answer("w", "h1.example", 443, allowed=False, seconds=60, uses=1)
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert sum(result is None for result in done) == 3, "as many as the word says"
        others = [result for result in done if result is not None]
        assert all(isinstance(e, Refusal) and e.code == "destination_refused" for e in others)

    asyncio.run(run())


def test_an_old_word_is_no_word() -> None:
    async def run() -> None:
        clock = [0.0]
        asks = asks_with([], clock)
        one = destination(host="*", ask=True, hold=0.05, time=60)
        asks.answer("w", "h.example", 443, allowed=True, seconds=10, uses=9)
        await asks.permission("w", "h.example", 443, one)
        with pytest.raises(Refusal):
            await asks.permission("other", "h.example", 443, one)
        clock[0] = 10.0
        with pytest.raises(Refusal) as refused:
            await asks.permission("w", "h.example", 443, one)
        assert refused.value.code == "ask_timeout"

    asyncio.run(run())


# --- the operator's view --------------------------------------------------------------------------


def record(id_: str, verdict: str, until: str = "2999-01-01T00:00:00Z", **more: Any) -> str:
    fields = {"time": "2026-11-24T20:00:00Z", "event": "ask", "workload": WORKLOAD, "host": NEW,
              "port": 443, "verdict": verdict, "id": id_, "until": until, **more}  # fmt: skip
    return json.dumps(fields) + "\n"


def run_view(folder: Path, text: str, *words: str) -> subprocess.CompletedProcess[str]:
    (folder / "state" / "audit").mkdir(parents=True)
    (folder / "state" / "audit" / "service.egress.jsonl").write_text(text)
    host = (ROOT / "policies" / "hosts" / "demo.toml").read_text().splitlines()
    lines = [line for line in host if not line.startswith(("state ", "run "))]
    at = lines.index("[paths]") + 1
    lines[at:at] = [f'state = "{folder}/state"', f'run = "{folder}/run"']
    (folder / "host.toml").write_text("\n".join(lines) + "\n")
    command = [sys.executable, str(ROOT / "supervisor"), "--host-file", str(folder / "host.toml")]
    return subprocess.run([*command, "ask", *words], capture_output=True, text=True, timeout=30)


def test_what_waits_is_listed_and_what_ended_is_not(tmp_path: Path) -> None:
    text = (
        record("aa", "held") + record("bb", "held") + record("bb", "allowed")
        + record("cc", "held", "2020-01-01T00:00:00Z") + '{"event": "ask", "id'
    )  # fmt: skip
    done = run_view(tmp_path, text, "list", "--json")
    assert done.returncode == 0, done.stderr
    assert [row["id"] for row in json.loads(done.stdout)["waiting"]] == ["aa"]


def test_an_answer_goes_to_the_supervisor_by_the_listed_host(tmp_path: Path) -> None:
    """Without a supervisor it gets as far as its socket: 4, and not "nothing waits"."""
    done = run_view(tmp_path, record("aa", "held"), "approve", "aa", "--for", "5m", "--uses", "3")
    assert done.returncode == 4, done.stderr


@pytest.mark.parametrize(
    "text", [record("aa", "held", host="[REDACTED:x]"), record("bb", "held"), ""]
)
def test_what_is_not_there_cannot_be_approved(tmp_path: Path, text: str) -> None:
    done = run_view(tmp_path, text, "approve", "aa")
    assert done.returncode == 2 and "nothing waits as aa" in done.stderr
