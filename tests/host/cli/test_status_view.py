"""The views of the status: what stands in them, and that it fits."""

from __future__ import annotations

import json

from answers import STATUS, answering

from supervisor.cli import exits


def test_status_shows_workloads_and_says_degraded(place):
    place.serve({"status": answering(place, STATUS)})
    done = place.run("status", "--layers")
    assert done.returncode == exits.OK, done.stderr
    for words in ("DEGRADED", "cgroup:memory: hybrid host", "adapter.rest", "running", "16.2 MiB",
                  "adapter-rest.toml v3 abababababab", "1 PASS", "Seccomp: 2",
                  "vault: PCR_CHANGED (PCR 11: 00 -> 01)", "to do: make a new one",
                  "TPM: software, T0, bound to PCR 7, 11. It protects nothing against root.",
                  "adapter.rest: started again after signal SIGKILL\n",
                  "probes: watching, 6 events, 5 lost\n"):  # fmt: skip
        assert words in done.stdout
    assert done.stdout.count("started again") == 1, "not of one that does not run"
    assert "\x1b" not in done.stdout, "no escape sequence of an error text reaches the terminal"
    assert "no \\x1b[31mpython" in done.stdout


def test_status_fits_a_hundred_columns(place):
    place.serve({"status": answering(place, STATUS)})
    wide = place.run("status").stdout
    place.columns = "100"
    narrow = place.run("status").stdout
    assert max(map(len, narrow.splitlines())) <= 100
    for words in ("1879050003", "adapter-rest.toml"):
        assert (words in wide, words in narrow) == (True, False)
    place.columns = "50"
    tight = place.run("status").stdout
    assert "adapter.rest " in tight and "executor.main " in tight, "an id is never broken"


def test_status_shows_use_and_limit(place):
    nothing = {"memory": {"now": None, "high": None, "limit": None, "swap": None,
                          "oom_kills": None},
               "pids": {"now": None, "limit": None}, "cpu": {"seconds": 0.5, "throttled": None},
               "pressure": {"cpu": None, "memory": None, "io": None}}  # fmt: skip
    longest = STATUS["workloads"][0] | {"id": "service.probe-reader"}
    bare = longest | {"id": "model.practice", "usage": nothing}
    status = STATUS | {"workloads": [*STATUS["workloads"], longest, bare]}
    place.serve({"status": answering(place, status)})
    place.columns = "100"
    said = place.run("status", "--limits").stdout
    assert max(map(len, said.splitlines())) <= 100
    table = said.partition("cpu psi")[2].splitlines()
    lines = {line.split()[0]: line.split()[1:] for line in table if line.strip()}
    full = ["101/128", "11/16", "12346", "12%", "100/12", "3/1", "absent", "3"]
    assert lines["adapter.rest"] == lines["service.probe-reader"] == full
    assert lines["executor.main"] == ["-"] * 8
    assert lines["model.practice"] == ["absent", "absent", "0", *["absent"] * 5]
    assert "memory: all limits together 384.0 MiB, this machine has 4.0 GiB" in said
    assert "WARNING" not in said
    assert "cpu psi" not in place.run("status").stdout


def test_status_warns_of_more_memory_than_there_is(place):
    status = STATUS | {"memory": {"limits": 5 << 30, "machine": 4 << 30}}
    place.serve({"status": answering(place, status)})
    assert "WARNING: the memory limits together are more" in place.run("status").stdout


def test_status_json_is_the_status(place):
    place.serve({"status": answering(place, STATUS)})
    assert json.loads(place.run("status", "--json").stdout) == STATUS
