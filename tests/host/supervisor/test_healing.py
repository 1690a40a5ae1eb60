"""Parts are killed in a running system, and it mends itself or says why not."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from house import MAIL, House, poll

from supervisor.cli.websocket import WebSocket
from supervisor.control import ControlError

_BAIT = "sk-proj-" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8s9T0u1V2w3X4"


def _crash(house: House, id_: str) -> dict[str, Any]:
    """Kill the workload; its status once another process runs in its place."""
    before = house.workload(id_)
    house.kill(before["pid"])

    def again() -> dict[str, Any] | None:
        now = house.workload(id_)
        return now if now["state"] == "running" and now["pid"] != before["pid"] else None

    after = poll(again, 20, f"{id_} runs again")
    assert after["restarts"] == before["restarts"] + 1
    assert all(layer["verdict"] != "FAIL" for layer in after["layers"])
    return after


@pytest.mark.parametrize("id_", ["adapter.rest", "service.ingress", "executor.main"])
def test_a_crashed_workload_comes_back_and_messages_with_it(healing: House, id_: str) -> None:
    began = time.monotonic()
    _crash(healing, id_)
    healing.measured(f"restart of {id_}", began)
    poll(lambda: _works(healing), 20, "a message gets its reply")
    record = healing.wait_record("supervisor", event="exit", workload=id_)
    assert (record["verdict"], record["reason"]) == ("failed", "signal SIGKILL")


def _works(house: House) -> bool:
    try:
        return bool(house.send()["reply"])
    except (ControlError, OSError):
        return False


def test_five_crashes_in_a_minute_are_quarantine_until_somebody_restarts_it(
    healing: House,
) -> None:
    id_ = "adapter.websocket"
    waits = []
    for _ in range(4):
        began = time.monotonic()
        _crash(healing, id_)
        waits.append(time.monotonic() - began)
    assert waits[3] > waits[0] + 1, waits  # 0.25, 0.5, 1, 2 seconds of backoff
    healing.kill(healing.workload(id_)["pid"])
    found = healing.wait_state(id_, "quarantined")
    assert "five times in a minute" in found["error"] and "SIGKILL" in found["error"]
    status = healing.ask("status")
    assert f"workload {id_}" in [gap["guarantee"] for gap in status["degraded"]]
    with pytest.raises(ControlError) as refused:
        healing.send("websocket")
    assert refused.value.code == "adapter_down"
    assert healing.send("rest")["reply"]
    assert healing.ask("restart", {"workload": id_}) == {"restarted": id_}
    answer = healing.send("websocket")
    assert answer.get("reply") or answer.get("text")
    _crash(healing, id_)  # a clean slate: not the sixth crash of the same minute


def test_without_the_egress_proxy_its_callers_are_frozen(healing: House) -> None:
    executor, leaf = healing.workload("executor.main"), healing.leaf("executor.main")
    assert not healing.frozen(leaf)
    before = len(healing.audit("service.egress"))
    token = healing.token()
    began = healing.kill(healing.workload("service.egress")["pid"])
    poll(lambda: healing.frozen(leaf), 5, "the executor is frozen", pause=0.001)
    healing.measured("egress killed to caller frozen", began)
    assert healing.send(token=token)["reply"]  # waits for the proxy, with the keys
    healing.measured("egress killed to message answered", began)
    assert not healing.frozen(leaf)
    assert healing.workload("executor.main")["pid"] == executor["pid"]
    events = {r["event"]: r for r in healing.audit("service.egress")[before:]}
    assert events["keys"]["keys"] == 1 and events["completion"]["verdict"] == "allowed"
    # Its output, too, goes through the new proxy, which masks it.
    with Path(f"/proc/{executor['pid']}/fd/1").open("wb", buffering=0) as output:
        output.write(f"spoken after the restart {_BAIT}\n".encode())
    log = healing.state / "logs/executor.main.log"
    said = poll(lambda: "spoken after the restart" in log.read_text(), 5, "the log goes on")
    assert said and _BAIT not in log.read_text()


_CALLS = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
libc.prctl(15, sys.argv[1].encode(), 0, 0, 0)
sys.stdin.readline()
libc.syscall(int(sys.argv[2]), 0, 0, 0, 0, 0, 0)
sys.stdin.readline()
print("went on", flush=True)
sys.stdin.readline()
"""


def _call_inside(leaf: Path, comm: str, number: int) -> subprocess.Popen[bytes]:
    """A process of ours, without any filter, makes one system call in the workload's cgroup."""
    words = ["/usr/bin/python3", "-I", "-c", _CALLS, comm, str(number)]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    (leaf / "cgroup.procs").write_text(str(process.pid))
    _go(process)
    return process


def _go(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.write(b"go\n")
    process.stdin.flush()


def test_a_new_probe_reader_knows_the_old_workloads_by_name(healing: House) -> None:
    """A call that no filter stops, in the cgroup of a workload older than the reader."""
    leaf = healing.leaf("model.practice")
    began = time.monotonic()
    _crash(healing, "service.probe-reader")
    healing.measured("restart of service.probe-reader", began)
    process = _call_inside(leaf, "afterwards", 140)  # getpriority: harmless, in no group
    try:
        record = healing.wait_record("service.probe-reader", comm="afterwards")
        assert record["workload"] == "model.practice"
        _go(process)  # not high-risk: it is seen and goes on
        assert process.stdout is not None and process.stdout.readline() == b"went on\n"
    finally:
        process.kill()
        process.wait()


def test_a_high_risk_call_that_got_past_the_filter_freezes_the_workload(healing: House) -> None:
    """What seccomp would have stopped: only a process that never had the filter can show it."""
    id_ = "adapter.websocket"
    healing.ask("restart", {"workload": id_})
    leaf, pid = healing.leaf(id_), healing.workload(id_)["pid"]
    process = _call_inside(leaf, "intruder", 165)  # mount(2), without arguments
    try:
        found = healing.wait_state(id_, "quarantined")
        assert "165" in found["error"] and found["pid"] == pid
        assert healing.frozen(leaf)
        healing.wait_record("supervisor", event="contain", workload=id_, verdict="refused")
        # The probe stopped the caller itself; without that, the freezer still holds it, and a
        # restart ends it where it is: it does not run one instruction more.
        process.send_signal(signal.SIGCONT)
        _go(process)
        healing.ask("restart", {"workload": id_})
        assert process.communicate(timeout=5)[0] == b""
        assert process.returncode == -signal.SIGKILL
    finally:
        process.kill()
        process.wait()
    assert healing.workload(id_)["pid"] != pid
    healing.send("websocket")


def test_a_client_that_vanishes_cancels_its_model_call(healing: House) -> None:
    """The model server is stopped, so that the call is surely under way."""
    token = healing.token("adapter.websocket")
    model = healing.workload("model.practice")["pid"]
    before = len(healing.audit("service.egress"))
    os.kill(model, signal.SIGSTOP)
    try:
        client = WebSocket("127.0.0.1", healing.port, "/websocket/", token, 30)
        client.send(json.dumps({"workflow": "email_management", "content": MAIL}))

        def fresh(**fields: object) -> dict[str, Any] | None:
            records = healing.audit("service.egress")[before:]
            return next((r for r in records if fields.items() <= r.items()), None)

        poll(lambda: fresh(event="admission"), 10, "the call is under way")
        assert _peers(model, "01")
        client._socket.shutdown(socket.SHUT_RDWR)  # no Close frame: it vanishes
        client._socket.close()
        gone = poll(lambda: fresh(event="completion"), 10, "the call ended")
        assert (gone["verdict"], gone["reason"]) == ("failed", "client_gone")
        poll(lambda: not _peers(model, "01"), 5, "the connection to the model is closed")
    finally:
        os.kill(model, signal.SIGCONT)
    assert healing.send("websocket") and healing.send("rest")


def _peers(pid: int, state: str) -> int:
    """TCP connections to port 8000 in that state, as the network namespace of `pid` has them."""
    lines = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    fields = [line.split() for line in lines]
    return sum(one[1].endswith(":1F40") and one[3] == state for one in fields)


def test_a_locked_vault_is_503_and_degraded_until_its_tpm_is_back(healing: House) -> None:
    token = healing.token()
    healing.ask("stop", {"workload": "service.swtpm"})
    _crash(healing, "service.egress")
    with pytest.raises(ControlError) as refused:
        healing.send(token=token)
    assert refused.value.code == "vault_locked" and "status 503" in str(refused.value)
    gaps = {gap["guarantee"]: gap["why"] for gap in healing.ask("status")["degraded"]}
    assert "TPM_ABSENT" in gaps["vault"], gaps
    began = time.monotonic()
    with pytest.raises(ControlError) as absent:
        healing.token()
    assert absent.value.code == "TPM_ABSENT" and absent.value.fix
    assert time.monotonic() - began < 5  # refused, not waited for
    healing.ask("restart", {"workload": "service.swtpm"})
    poll(lambda: _works(healing), 20, "the keys are back")
    gaps = {gap["guarantee"]: gap["why"] for gap in healing.ask("status")["degraded"]}
    assert "vault" not in gaps


def test_a_command_line_that_leaves_does_not_leave_a_half_done_restart(healing: House) -> None:
    before = healing.workload("adapter.rest")["pid"]
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(healing.run / "control.sock"))
        client.sendall(b'{"verb": "restart", "arguments": {"workload": "adapter.rest"}}\n')
    poll(lambda: healing.workload("adapter.rest")["pid"] != before, 10, "it began")
    after = healing.wait_state("adapter.rest", "running")
    assert after["pid"] not in (None, before)
    poll(lambda: _works(healing), 10, "a message gets its reply")


def test_requests_at_the_same_time_get_their_own_answers(healing: House, key: str) -> None:
    """The vault has one helper and one file: those who need them wait for each other."""
    names = [f"more-{number}" for number in range(4)]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda name: healing.add_key(key, name), names))
        assert healing.ask("keys.list")["names"] == [*names, "practice"]
        list(pool.map(lambda name: healing.ask("keys.remove", {"name": name}), names))
    assert healing.ask("keys.list")["names"] == ["practice"]


def test_restarts_leave_no_descriptor_and_no_cgroup_behind(healing: House) -> None:
    def held() -> dict[str, int]:
        egress = healing.workload("service.egress")["pid"]
        pids = {"supervisor": healing.pid, "egress": egress}
        pids |= {name: healing.child(name) for name in ("zygote", "broker")}
        found = {name: len(list(Path(f"/proc/{pid}/fd").iterdir())) for name, pid in pids.items()}
        return found | {"cgroups": len(list(healing.slice.glob("cell-*")))}

    ids = ("adapter.rest", "executor.main", "service.probe-reader", "service.ingress")
    for id_ in ids:  # what is opened once and kept is open after this
        healing.ask("restart", {"workload": id_})
    healing.send()
    before = held()
    for id_ in ids * 2:
        healing.ask("restart", {"workload": id_})
        healing.ask("keys.list")
    healing.send()
    # An answered connection or an ended helper may take a moment to be let go.
    poll(lambda: all(held()[name] <= before[name] for name in before), 5,
         lambda: f"{held()} instead of {before}")  # fmt: skip


def test_who_asks_to_be_watched_does_not_run_unwatched(healing: House) -> None:
    """The probe reader is stopped: its wards are frozen and named, until it is back."""
    healing.ask("stop", {"workload": "service.probe-reader"})
    poll(lambda: healing.workload("executor.main")["frozen"], 5, "the executor is frozen")
    status = healing.ask("status")
    named = {each["guarantee"] for each in status["degraded"]}
    assert {"workload service.probe-reader", "workload executor.main"} <= named
    assert not next(w for w in status["workloads"] if w["id"] == "service.egress")["frozen"]
    healing.ask("restart", {"workload": "service.probe-reader"})
    poll(lambda: not healing.workload("executor.main")["frozen"], 5, "the executor goes on")
    poll(lambda: _works(healing), 20, "a message gets its reply")


@pytest.mark.parametrize("id_", ["service.egress", "service.ingress"])
def test_trying_a_service_leaves_the_running_one_alone(healing: House, id_: str) -> None:
    before = healing.workload(id_)["pid"]
    null = os.open("/dev/null", os.O_RDWR)
    try:
        words = ["/usr/bin/python3", "-I", "-c", "raise SystemExit(200)"]
        told = healing.ask("try", {"workload": id_, "argv": words}, null, null, null)
    finally:
        os.close(null)
    assert told == {"exit": 200, "signal": None}
    assert _works(healing)
    assert healing.workload(id_)["pid"] == before


def test_clients_that_leave_a_try_at_once_harm_nobody(healing: House) -> None:
    """Each leaves a cell to be killed in the middle of its launch."""
    request = {"workload": "adapter.rest", "argv": ["/usr/bin/python3", "-I", "-c", "pass"]}
    line = json.dumps({"verb": "try", "arguments": request}).encode() + b"\n"
    null = os.open("/dev/null", os.O_RDWR)
    try:
        for step in range(60):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(healing.run / "control.sock"))
                socket.send_fds(client, [line], [null, null, null])
                time.sleep(step % 20 / 1000)
    finally:
        os.close(null)
    assert _works(healing)
    poll(lambda: len(list(healing.slice.glob("cell-*"))) <= 10, 10, "the cells are gone")
