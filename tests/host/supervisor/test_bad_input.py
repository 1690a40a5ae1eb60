"""Broken files, missing programs, full disks: what stops, what goes on, and what is said."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from house import House, poll

from sandbox.cgroup import find_mount
from supervisor.control import ControlError


def _spoil(house: House, name: str, old: str, new: str) -> int:
    """Change one policy file; the line of the change."""
    path = house.policies / name
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    return text[: text.index(old)].count("\n") + 1


_TOOL = """
schema    = "anchorhold.policy/1"
id        = "tool.gone"
kind      = "tool"
version   = 1
owner     = "security@anchorhold.invalid"
review_by = 2027-11-01
why       = "A program that is not installed"
run       = {{ command = ["{program}"], restart = "on-failure" }}
requires  = ["seccomp", "userns"]

[[allow]]
id   = "program"
why  = "The program itself"
file = {{ path = "{program}", access = ["read", "exec"] }}

[[allow]]
id       = "calls"
why      = "Some"
syscalls = {{ group = "python-tool/1" }}

[limits]
memory = "64MiB"
pids   = 4
cpu    = "50%"

[watch]
on_high_risk = "stop"
on_unseen    = "alert"
"""


def test_a_broken_policy_and_a_missing_program_stop_only_their_own_workload(
    house: House, key: str
) -> None:
    line = _spoil(house, "adapter-websocket.toml", 'kind      = "adapter"', 'kind      = "toaster"')
    gone = "/usr/bin/no-such-program"
    (house.policies / "tool-gone.toml").write_text(_TOOL.format(program=gone))
    house.open()
    house.add_key(key)
    status = house.ask("status")
    assert len(status["policy_errors"]) == 1, status["policy_errors"]
    error = status["policy_errors"][0]
    assert re.search(rf"adapter-websocket\.toml:{line}\b.*\bkind\b", error), error
    assert error in [gap["why"] for gap in status["degraded"] if gap["guarantee"] == "policy"]
    states = house.states()
    assert "adapter.websocket" not in states
    missing = poll(
        lambda: next(
            (
                one
                for one in house.ask("status")["workloads"]
                if one["id"] == "tool.gone" and one["state"] in ("failed", "backoff", "quarantined")
            ),
            None,
        ),
        10,
        "tool.gone does not run",
    )
    assert re.search(f"step .* failed: .*{gone[1:]}", missing["error"]), missing["error"]
    states.pop("tool.gone")
    assert set(states.values()) == {"running"}, states
    assert house.send("rest")["reply"]
    # The protocol of the broken policy has no route.
    assert house.http("/websocket/", house.token("adapter.rest"))[0] == 404


@pytest.mark.parametrize(
    "file", ["executor-main.toml", "service-unlock.toml", "service-swtpm.toml",
             "service-probe-loader.toml"],
)  # fmt: skip
def test_a_broken_policy_of_any_part_is_named_and_the_supervisor_stays(
    house: House, file: str
) -> None:
    text = (house.policies / file).read_text()
    (version,) = re.findall(r"(?m)^version   = [0-9]+\n", text)
    line = _spoil(house, file, version, 'version   = "one"\n')
    house.open()
    status = house.ask("status")
    (error,) = status["policy_errors"]
    assert re.search(rf"{file}:{line}\b.*\bversion\b", error), error
    assert status["state"] == "degraded"
    states = house.states()
    assert (states["service.egress"], states["service.ingress"]) == ("running", "running"), states
    if file == "executor-main.toml":
        assert (states["adapter.rest"], states["model.practice"]) == ("running", "running"), states
        with pytest.raises(ControlError) as refused:
            house.send()
        assert "status 50" in str(refused.value), refused.value
    elif file != "service-probe-loader.toml":
        assert set(states.values()) == {"running"}, states
        gaps = {gap["guarantee"]: gap["why"] for gap in status["degraded"]}
        assert gaps["vault"]
        with pytest.raises(ControlError) as refused:
            house.token()
        assert refused.value.code in ("no_policy", "TPM_ABSENT") and refused.value.fix
    else:
        # What requires the probes is refused by name.
        refused_ = house.workload("executor.main")
        assert refused_["state"] == "failed" and "probes" in refused_["error"], refused_


def test_what_the_host_lacks_is_refused_unless_it_is_waived_by_name(
    house: House, running: House
) -> None:
    controllers = (find_mount() / "cgroup.controllers").read_text().split()
    if "memory" in controllers:
        pytest.skip("NOT TESTED: this host has the v2 memory controller, so nothing is refused")
    waiver = re.compile(r'(?m)^\[\[waive\]\]\nguarantee = "cgroup:memory"\n.*\n')
    assert waiver.search(house.host_file.read_text())
    house.write_host(lambda text: waiver.sub("", text))
    house.open()
    for workload in house.ask("status")["workloads"]:
        assert workload["state"] == "failed" and workload["pid"] is None, workload
        assert "required guarantee missing: cgroup:memory" in workload["error"]
        assert "systemd.unified_cgroup_hierarchy=1" in workload["error"]  # the fix
    house.wait_record("supervisor", event="start", workload="executor.main", verdict="refused")
    # With the waiver it runs, and says what is given up.
    status = running.ask("status")
    assert status["state"] == "degraded"
    assert "cgroup:memory" in [gap["guarantee"] for gap in status["degraded"]]
    layers = {layer["layer"]: layer for layer in running.workload("executor.main")["layers"]}
    assert layers["limit memory.max"]["verdict"] == "DEGRADED"
    assert "cgroup:memory" in layers["limit memory.max"]["evidence"]


_MOUNTED = 'mount -t tmpfs -o size=80m,mode=0711 none "$0" && exec "$@"'


def test_a_full_disk_refuses_messages_until_there_is_room(house: House, key: str) -> None:
    house.state.mkdir(mode=0o711)
    policy = house.policies / "executor-main.toml"
    smaller = policy.read_text().replace('size = "256MiB"', 'size = "4MiB"')
    policy.write_text(smaller)  # its room is taken at once
    house.open("unshare", "--mount", "sh", "-c", _MOUNTED, str(house.state))
    house.add_key(key)
    token = house.token()
    assert house.send(token=token)["reply"]
    inside = Path(f"/proc/{house.pid}/root{house.state}")  # the disk that only it sees
    filler = inside / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(b"x" * 4096)

    def refused() -> str | None:
        try:
            house.send(token=token)
        except ControlError as error:
            return str(error) if error.code == "audit_unwritable" else None
        return None  # the last page of the file still had room

    assert "status 503" in poll(refused, 20, "the gateway refuses")

    def refused_by_egress() -> bool:
        body = b'{"model": "llm-v1", "messages": [{"role": "user", "content": "hello"}]}'
        status, answer = house.model_call(body)
        return (status, answer.get("error", {}).get("code")) == (503, "audit_unwritable")

    poll(refused_by_egress, 20, "the egress proxy refuses")
    # Healing does not need the disk; starting something that cannot be recorded does not happen.
    pid = house.workload("adapter.websocket")["pid"]
    poll(lambda: not _recordable(inside), 5, "the supervisor's own log is full too")
    house.kill(pid)
    found = house.wait_state("adapter.websocket", "backoff")
    found = poll(
        lambda: (
            (now := house.workload("adapter.websocket"))
            and "audit_unwritable" in (now["error"] or "")
            and now
        ),
        10,
        "waits for room",
    )
    assert found["pid"] is None
    filler.unlink()
    assert poll(lambda: _reply(house, token), 10, "room again: messages again")
    house.wait_state("adapter.websocket", "running", 15)
    for path in inside.glob("audit/*.jsonl"):
        torn = [line for line in path.read_text().splitlines() if line and not line.endswith("}")]
        assert len(torn) <= 1, (path, torn)


def _recordable(inside: Path) -> bool:
    """Fill the last page of the supervisor's log, as its own records would."""
    fd = os.open(inside / "audit/supervisor.jsonl", os.O_WRONLY | os.O_APPEND)
    try:
        return os.write(fd, b"\n" * 64) == 64
    except OSError:
        return False
    finally:
        os.close(fd)


def _reply(house: House, token: str) -> bool:
    try:
        return bool(house.send(token=token)["reply"])
    except ControlError:
        return False
