"""Every verb: what it asks, what it prints, which exit code it gives."""

from __future__ import annotations

import hashlib
import json
import os

import pytest
from answers import STATUS, answering

from supervisor.cli import exits
from supervisor.control import ControlError, Request


def test_not_running_is_4_with_the_fix(place):
    done = place.run("status")
    assert done.returncode == exits.NOT_RUNNING
    assert "not running" in done.stderr
    assert "anchorhold up" in done.stderr


def test_error_of_the_supervisor_sets_the_exit_code(place):
    refusal = ControlError("start_failed", "cgroup:memory is missing", "waive it", 5)
    place.serve({"restart": answering(place, refusal)})
    done = place.run("restart", "adapter.rest")
    assert done.returncode == exits.REFUSED_START
    assert done.stderr == "anchorhold: cgroup:memory is missing\n  to do: waive it\n"
    assert place.seen == [("restart", {"workload": "adapter.rest"})]


@pytest.mark.parametrize(
    "words",
    [[], ["bogus"], ["status", "--bogus"], ["token", "issue"], ["keys"], ["restart"], ["try", "x"],
     ["send", "x", "--protocol", "smtp"], ["completion", "tcsh"],
     ["token", "issue", "--client", "a", "--workload", "b", "--lifetime", "soon"]],
)  # fmt: skip
def test_wrong_command_line_is_2(place, words):
    done = place.run(*words)
    assert done.returncode == exits.USAGE
    assert "usage:" in done.stderr


def test_broken_host_file_is_2_with_its_line(place, tmp_path):
    path = tmp_path / "broken.toml"
    path.write_text('schema = "anchorhold.host/1"\nbogus = 1\n')
    done = place.run("--host-file", str(path), "status")
    assert done.returncode == exits.USAGE
    assert "broken.toml:2" in done.stderr


def test_stop_one_and_all(place):
    place.serve({"stop": answering(place, None)})
    assert place.run("stop", "adapter.rest").stdout == "stopped: adapter.rest\n"
    assert place.run("stop").stdout == "stopped: Anchorhold\n"
    assert place.seen == [("stop", {"workload": "adapter.rest"}), ("stop", {})]


def test_token_issue_prints_the_token_alone(place):
    place.serve({"token.issue": answering(place, {"token": "a.b.c"})})
    words = ["--client", "me", "--workload", "adapter.rest", "--lifetime", "15m"]
    assert place.run("token", "issue", *words).stdout == "a.b.c\n"
    assert place.seen[0][1] == {"client": "me", "workload": "adapter.rest", "lifetime": 900}


@pytest.mark.parametrize(
    ("option", "value"),
    [("--client", "Me!"), ("--workload", "../x"), ("--lifetime", "366d"), ("--lifetime", "soon")],
)
def test_refused_token_argument_is_named(place, option, value):
    given = {"--client": "me", "--workload": "adapter.rest", "--lifetime": "1h", option: value}
    done = place.run("token", "issue", *(word for pair in given.items() for word in pair))
    assert done.returncode == exits.USAGE
    assert f"argument {option}: {value!r} is" in done.stderr


@pytest.mark.parametrize("words", [["status", "--host-file", "{}"], ["status", "--host-file={}"]])
def test_host_file_may_stand_after_the_verb(place, tmp_path, words):
    path = tmp_path / "other.toml"
    path.write_text(place.host_file.read_text().replace(f"{place.folder}/run", "/nowhere"))
    done = place.run(*(word.format(path) for word in words))
    assert done.returncode == exits.NOT_RUNNING
    assert "/nowhere/control.sock" in done.stderr


def test_host_file_after_two_dashes_is_the_commands(place):
    place.serve({"try": answering(place, {"exit": 0, "signal": None})})
    place.run("try", "executor.main", "--", "/bin/echo", "--host-file", "x")
    assert place.seen[0][1]["argv"] == ["/bin/echo", "--host-file", "x"]


@pytest.mark.parametrize("words", [["status"], ["status", "--json"], ["completion", "bash"]])
def test_full_disk_is_1_and_one_sentence(place, words):
    import subprocess

    place.serve({"status": answering(place, STATUS)})
    command = [*place.run("--help").args[:-1], *words]
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == exits.FAILED
    assert done.stderr == "anchorhold: [Errno 28] No space left on device\n"


def test_try_relays_pipes_and_returns_the_exit_code(place):
    async def attempt(request: Request) -> object:
        place.seen.append(request.arguments)
        given = os.read(request.fds[0], 100)
        os.write(request.fds[1], b"out:" + given)
        os.write(request.fds[2], b"err")
        return {"exit": 7, "signal": None}

    place.serve({"try": attempt})
    done = place.run("try", "executor.main", "--", "/bin/cat", "-n", stdin="hello")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out:hello", "err")
    assert place.seen == [{"workload": "executor.main", "argv": ["/bin/cat", "-n"]}]


def test_try_that_was_killed_is_128_and_the_signal(place):
    place.serve({"try": answering(place, {"exit": None, "signal": 31})})
    done = place.run("try", "executor.main", "--", "/bin/mount")
    assert done.returncode == 128 + 31
    assert "signal 31" in done.stderr


def test_try_that_could_not_start_is_125(place):
    refusal = ControlError("try_failed", "step 'mounts' failed", "see doctor", exits.TRY_FAILED)
    place.serve({"try": answering(place, refusal)})
    done = place.run("try", "executor.main", "--", "/bin/true")
    assert done.returncode == exits.TRY_FAILED
    assert "step 'mounts' failed" in done.stderr


def test_try_reads_a_plain_file_as_stdin(place, tmp_path):
    import subprocess

    async def attempt(request: Request) -> object:
        os.write(request.fds[1], os.read(request.fds[0], 100))
        return {"exit": 0, "signal": None}

    place.serve({"try": attempt})
    source = tmp_path / "input"
    source.write_text("from a file")
    command = [*place.run("--help").args[:-1], "try", "executor.main", "--", "/bin/cat"]
    with source.open() as stdin:
        done = subprocess.run(command, stdin=stdin, capture_output=True, timeout=20, check=False)
    assert (done.returncode, done.stdout) == (0, b"from a file"), done.stderr


def test_doctor_prints_table_and_json(place):
    table, data = place.run("doctor"), place.run("doctor", "--json")
    found = {each["name"]: each for each in json.loads(data.stdout)}
    assert found["runtime"]["state"] == "missing", (
        "this host file names a runtime that is not there"
    )
    assert table.returncode == data.returncode == exits.FAILED
    for name in ("landlock", "probes", "cgroup:memory", "headers"):
        assert name in table.stdout


def test_policy_lint_and_explain_need_no_supervisor(place):
    lint = place.run("policy", "lint")
    assert lint.returncode == exits.OK, lint.stdout + lint.stderr
    assert "0 errors" in lint.stdout


def test_policy_seccomp_shows_table_pseudo_code_and_bpf_to_anyone(place):
    import subprocess

    def shown(*words: str) -> str:
        base = [*place.run("--help").args[:-1], "policy", "seccomp", "adapter.rest"]
        done = subprocess.run(
            [*base, *words], capture_output=True, text=True, user=65534, timeout=60, check=False
        )
        assert done.returncode == exits.OK, done.stdout + done.stderr
        return done.stdout

    for part in (place.folder, *place.folder.parents):
        if str(part).startswith("/tmp/"):
            part.chmod(0o755)
    place.host_file.chmod(0o644)
    table = shown()
    assert "all answer as the table says" in table
    rows = [line.split() for line in table.splitlines()]
    assert ["ptrace", "101", "kill", "[baseline/3", "other-processes]"] in rows
    assert "arg0 is none of 0x1, 0x2, 0xa  [python-service/1 socket-families]" in table
    assert "\n  clone:\n      if arg0.low & 0x40000000 == 0x40000000: kill\n" in shown("--pseudo")
    assert "jeq   0xc000003e" in shown("--bpf")
    data = json.loads(shown("--json"))
    found = {(row["call"], row["verdict"]): row for row in data["table"]}
    assert found["setns", "kill"]["number"] == "308" and found["setns", "kill"]["why"]
    for one in data["filters"]:
        assert one["sha256"] == hashlib.sha256(bytes.fromhex(one["bpf"])).hexdigest()
        assert one["sha256"] in table
    assert data["disagreements"] == [] and data["tried"] > 3000


def test_policy_lint_names_file_and_line(place, tmp_path):
    import shutil
    from pathlib import Path

    folder = tmp_path / "policies"
    shutil.copytree(Path(__file__).parents[3] / "policies", folder)
    path = folder / "adapter-rest.toml"
    path.write_text(path.read_text().replace("why ", "wyh ", 1))
    done = place.run("policy", "lint", str(folder))
    assert done.returncode == exits.FAILED
    assert "adapter-rest.toml:" in done.stdout
    found = json.loads(place.run("policy", "lint", str(folder), "--json").stdout)
    assert {each["file"] for each in found if each["severity"] == "error"} >= {"adapter-rest.toml"}


def test_policy_of_a_directory_without_groups_uses_the_installed_ones(place, tmp_path):
    import shutil
    from pathlib import Path

    shipped = Path(__file__).parents[3] / "policies"
    folder = tmp_path / "mine"
    (folder / "hosts").mkdir(parents=True)
    shutil.copy(shipped / "hosts/demo.toml", folder / "hosts")
    for path in shipped.glob("*.toml"):
        shutil.copy(path, folder)
    for words in (["lint", str(folder)], ["explain", "adapter.rest", str(folder)]):
        done = place.run("policy", *words)
        assert done.returncode == exits.OK, done.stdout
        assert done.stderr == (
            f"anchorhold: no groups in {folder}: those of {shipped}/groups are used\n"
        )
    path = folder / "executor-main.toml"
    path.write_text(path.read_text().replace("python-service/1", "nonsense/1"))
    done = place.run("policy", "lint", str(folder))
    assert done.returncode == exits.FAILED, "control: groups are looked up"
    assert "executor-main.toml:" in done.stdout and "nonsense/1" in done.stdout


def test_policy_of_a_missing_directory_is_one_sentence(place):
    for words in (["lint", "/nowhere"], ["explain", "adapter.rest", "/nowhere"]):
        done = place.run("policy", *words)
        assert (done.returncode, done.stdout) == (exits.USAGE, "")
        assert done.stderr.startswith("anchorhold: /nowhere is no directory\n")


def test_policy_explain_as_text_and_json(place):
    from pathlib import Path

    folder = str(Path(__file__).parents[3] / "policies")
    words = ["--host-file", f"{folder}/hosts/demo.toml", "policy", "explain"]
    done = place.run(*words, "adapter.rest", folder)
    assert done.returncode == exits.OK, done.stderr
    assert done.stdout.startswith("adapter.rest: ")
    data = json.loads(place.run(*words, "adapter.rest", folder, "--json").stdout)
    assert data["id"] == "adapter.rest"
    unknown = place.run(*words, "adapter.nope", folder)
    assert unknown.returncode == exits.USAGE
    assert "adapter.rest" in unknown.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_every_verb(place, shell):
    done = place.run("completion", shell)
    for verb in ("status", "send", "logs", "issue", "explain", "restart"):
        assert verb in done.stdout


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("policy ex", "explain"),
        ("restart ad", "adapter.rest adapter.websocket"),
        ("stop -", "--help"),
        ("logs executor.", "executor.main"),
        ("try service.in", "service.ingress"),
        ("policy explain model", "model.practice"),
        ("policy seccomp model", "model.practice"),
        ("policy seccomp --ps", "--pseudo"),
        ("--host-file /nowhere/host.toml restart ad", ""),
    ],
)
def test_bash_completion_works(place, tmp_path, words, found):
    import subprocess

    script = tmp_path / "completion"
    text = place.run("completion", "bash").stdout
    script.write_text(text.replace("=/etc/anchorhold/host.toml", f"={place.host_file}"))
    line = f"COMP_WORDS=(anchorhold {words}); COMP_CWORD={len(words.split())}"
    probe = f'. {script}; {line}; _anchorhold; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(
        ["bash", "-c", probe], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert (done.stdout.strip(), done.stderr) == (found, "")


def test_completion_expands_nothing_of_a_policy_file(tmp_path, place):
    import subprocess

    (tmp_path / "policies").mkdir()
    (tmp_path / "policies/a.toml").write_text('id = "$(touch broken)"\n')
    (tmp_path / "policies/b.toml").write_text('id = "tool.good"\n')
    host_file = tmp_path / "other.toml"
    host_file.write_text(f'policies = "{tmp_path}/policies"\n')
    script = tmp_path / "completion"
    script.write_text(place.run("completion", "bash").stdout)
    probe = f". {script}; COMP_WORDS=(anchorhold --host-file {host_file} stop t); COMP_CWORD=4; "
    probe += '_anchorhold; echo "${COMPREPLY[@]}"'
    done = subprocess.run(
        ["bash", "-c", probe], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert (done.stdout.strip(), done.stderr) == ("tool.good", "")
    assert not (tmp_path / "broken").exists()


def test_stranger_is_refused_with_6(place):
    import subprocess

    place.serve({"status": answering(place, STATUS)})
    place.host_file.chmod(0o644)
    for part in (place.folder, *place.folder.parents):
        if str(part).startswith("/tmp/"):
            part.chmod(0o755)
    command = [*place.run("--help").args[:-1], "status"]
    done = subprocess.run(command, capture_output=True, text=True, user=65534, check=False)
    assert done.returncode == exits.NOT_ALLOWED, done.stderr
    assert place.seen == []
