"""`anchorhold keys`: what is typed reaches the helper's pipe and nothing else; errors are codes."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import time

import pytest
from answers import answering

from supervisor.cli import exits
from supervisor.control import ControlError, Request
from supervisor.vault.errors import Fault

KEY = "sk-test-1234"
SHUT = {
    "problem": "PCR_CHANGED", "detail": "PCR 7",
    "gap": {"code": "PCR_CHANGED", "why": "PCR_CHANGED: another boot state", "fix": "compare"},
    "level": {"code": "T2", "stops": "a stolen disk", "does_not_stop": "an evil maid",
              "reasons": ["Secure Boot is on"], "next": "sign a unified kernel image"},
    "tpm": {"software": False, "manufacturer": "ACME", "ek": "verified", "lockout_auth_set": False},
    "vault": {"id": "ab" * 16, "generation": 7, "date": "2026-01-02", "pin": False,
              "recovery": {"code": True, "confirmed": False,
                           "recipients": [{"name": "safe", "kind": "backup"}]}},
    "counter": {"value": 6, "generation": 7, "state": "pending"},
    "pcrs": [{"pcr": 7, "now": "aa" * 32, "approved": False, "expected": ["bb" * 32]},
             {"pcr": 11, "now": "cc" * 32, "approved": True, "expected": ["cc" * 32]}],
    "approvals": [{"note": "kernel 6.1", "kind": "predicted", "gen": 7, "pcr": {"7": "dd" * 32}}],
    "measures": {"7": "Secure Boot", "11": "the unified kernel image"},
    "waived": [{"guarantee": "pin-rate-limit", "why": "a test"}],
}  # fmt: skip


class Refusing:
    """Wants the PIN first, as the supervisor says it; then takes everything."""

    def __init__(self, place, needs_pin=False):
        self.place, self.needs_pin = place, needs_pin
        self.got: list[tuple[str, dict, dict[str, bytes]]] = []

    async def __call__(self, request: Request) -> object:
        names = request.arguments.pop("fds", [])
        read = {name: os.read(fd, 65536) for name, fd in zip(names, request.fds, strict=True)}
        assert all(os.read(fd, 1) == b"" for fd in request.fds), "the end of each pipe"
        self.got.append((request.verb, request.arguments, read))
        if self.needs_pin and "pin" not in read:
            raise ControlError("PIN_NEEDED", "PIN_NEEDED: it has a PIN", "give it", 44)
        return {"name": "openai", "names": ["openai", "practice"], "generation": 3, "date": "today"}


@pytest.mark.parametrize("verb", ["add", "set"])
def test_a_key_goes_through_a_pipe_and_nowhere_else(place, verb):
    taking = Refusing(place)
    place.serve({f"keys.{verb}": taking})
    done = place.run("keys", verb, "openai", stdin=f"{KEY}\n")
    assert (done.returncode, done.stdout) == (exits.OK, "stored: openai\n"), done.stderr
    assert taking.got == [(f"keys.{verb}", {"name": "openai"}, {"secret": KEY.encode()})]
    assert json.loads(place.run("keys", verb, "openai", "--json", stdin=KEY).stdout)


def test_a_key_is_read_from_a_descriptor(place, tmp_path):
    taking = Refusing(place)
    place.serve({"keys.set": taking})
    command = [*place.run("--help").args[:-1], "keys", "set", "openai", "--from-fd"]
    reading, writing = os.pipe()
    os.write(writing, KEY.encode())
    os.close(writing)
    done = subprocess.run(
        [*command, str(reading)], pass_fds=[reading], capture_output=True, check=False, text=True
    )
    os.close(reading)
    assert done.returncode == exits.OK, done.stderr
    assert taking.got[0][2] == {"secret": KEY.encode()}
    wrong = subprocess.run([*command, "77"], capture_output=True, check=False, text=True)
    assert wrong.returncode == exits.USAGE and "77" in wrong.stderr


@pytest.mark.parametrize(
    "value", ["", "\n", "seven-7", "good key", "goodkey\nb", "goodkeyé", "x" * 9000, "x" * 20000]
)
def test_a_bad_key_is_refused_before_anything_is_asked(place, value):
    place.serve({"keys.add": answering(place, {})})
    done = place.run("keys", "add", "openai", stdin=value)
    assert done.returncode == exits.USAGE
    assert place.seen == []
    assert value.strip() == "" or value not in done.stderr


def test_list_and_remove(place):
    taking = Refusing(place)
    place.serve({"keys.list": taking, "keys.remove": taking})
    assert place.run("keys", "list").stdout == "openai\npractice\n"
    assert json.loads(place.run("keys", "list", "--json").stdout) == ["openai", "practice"]
    assert place.run("keys", "remove", "openai").returncode == exits.OK
    assert taking.got[-1] == ("keys.remove", {"name": "openai"}, {})


def test_a_pin_is_asked_for_only_where_it_is_needed(place):
    taking = Refusing(place, needs_pin=True)
    place.serve({"keys.set": taking, "keys.add": taking})
    command = [*place.run("--help").args[:-1], "keys", "set", "openai"]
    reading, writing = os.pipe()
    os.write(writing, b"123456\n")
    os.close(writing)
    done = subprocess.run(
        [*command, "--pin-fd", str(reading)], pass_fds=[reading], input=KEY.encode(), check=False
    )
    os.close(reading)
    assert done.returncode == exits.OK
    assert taking.got == [
        ("keys.set", {"name": "openai"}, {"secret": KEY.encode(), "pin": b"123456"})
    ]
    taking.got.clear()
    # Without a terminal nobody can be asked: the fix says how.
    done = subprocess.run(
        command, input=KEY.encode(), capture_output=True, check=False, start_new_session=True
    )
    assert done.returncode == Fault.PIN_NEEDED.code and b"--pin-fd" in done.stderr
    said, code = on_a_terminal(command, [("key for openai: ", KEY), ("PIN of the vault: ", "4711")])
    assert code == exits.OK, said
    assert taking.got[-1][2] == {"secret": KEY.encode(), "pin": b"4711"}
    assert KEY not in said and "4711" not in said, "no echo"


def test_predictions_given_by_hand_need_the_pin_once(place):
    """A PIN on a descriptor can be read once; a second, empty one would count as a wrong one."""
    approved, wanting = [], Refusing(place, needs_pin=True)

    async def status(request: Request) -> object:
        now = [{"pcr": 7, "now": "aa" * 32, "approved": True, "expected": ["aa" * 32]}]
        return {"pcrs": now, "approvals": [{"pcr": {"7": value}} for value in approved]}

    place.serve({"keys.status": status, "keys.approve": wanting})
    command = [*place.run("--help").args[:-1], "keys", "approve", "--values", f"7={'cc' * 32}"]
    reading, writing = os.pipe()
    os.write(writing, b"123456")
    os.close(writing)
    done = subprocess.run(
        [*command, "--pin-fd", str(reading), "--note", "by hand"],
        pass_fds=[reading], capture_output=True, text=True, check=False,
    )  # fmt: skip
    os.close(reading)
    assert (done.returncode, done.stdout) == (0, "approved for the next start: by hand\n")
    prediction = b'{"7": "' + b"cc" * 32 + b'"}'
    options = {"options": {"predict": True, "note": "by hand"}}
    assert wanting.got == [("keys.approve", options, {"prediction": prediction, "pin": b"123456"})]
    approved.append("cc" * 32)
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0 and "approved already" in again.stdout
    wrong = place.run("keys", "approve", "--values", f"11={'cc' * 32}")
    assert wrong.returncode == exits.USAGE and "bound to PCRs [7]" in wrong.stderr
    assert place.run("keys", "approve", "--values", "7=zz").returncode == exits.USAGE


def test_the_code_goes_to_the_terminal_and_is_typed_back(place):
    async def make(request: Request) -> object:
        assert request.arguments["fds"] == ["code"]
        os.write(request.fds[0], b"AAAABBBB-CCCCDDDD\n")
        return {}

    confirm = Refusing(place)
    place.serve({"keys.recovery-code": make, "keys.confirm-recovery": confirm})
    command = [*place.run("--help").args[:-1], "keys", "recovery-code"]
    said, code = on_a_terminal(command, [("recovery code: ", "AAAABBBB-CCCCDDDD")])
    assert code == exits.OK, said
    assert said.count("AAAABBBB-CCCCDDDD") == 1, "shown once, typed back without echo"
    assert confirm.got[0][2] == {"secret": b"AAAABBBB-CCCCDDDD"}
    piped = place.run("keys", "recovery-code")
    assert piped.stdout == "AAAABBBB-CCCCDDDD\n" and "confirm" in piped.stderr


def test_an_old_file_is_used_only_after_a_yes(place):
    asked = []

    async def recover(request: Request) -> object:
        os.read(request.fds[0], 100)
        asked.append(request.arguments.get("options", {}))
        if "accept-stale" not in asked[-1]:
            raise ControlError("RECOVERY_STALE", "RECOVERY_STALE: it may be an old one", "", 63)
        return {"generation": 5, "date": "2026-01-01"}

    status = answering(place, {"vault": {"generation": 5, "date": "2026-01-01"}})
    place.serve({"keys.recover": recover, "keys.status": status})
    assert place.run("keys", "recover", stdin="CODE").returncode == 63
    assert asked == [{}], "nobody was there to say yes"
    command = [*place.run("--help").args[:-1], "keys", "recover"]
    said, code = on_a_terminal(command, [("recovery code: ", "CODE"), ("[y/N] ", "n")])
    assert code == 63 and "generation 5 of 2026-01-01" in said
    said, code = on_a_terminal(command, [("recovery code: ", "CODE"), ("[y/N] ", "y")])
    assert code == exits.OK and "recovered: generation 5" in said
    done = place.run("keys", "recover", "--accept-stale", "--pcrs", "7,11", stdin="CODE")
    assert done.returncode == exits.OK
    assert asked[-1] == {"accept-stale": True, "pcrs": "7,11"}


def test_status_says_level_reasons_gap_pcrs_and_what_to_do(place):
    place.serve({"keys.status": answering(place, SHUT)})
    done = place.run("keys", "status")
    assert done.returncode == Fault.PCR_CHANGED.code
    for words in (
        "SHUT  PCR_CHANGED: another boot state", "to do: compare", "level: T2",
        "does not stop: an evil maid", "because: Secure Boot is on", "next: sign a unified",
        "counter: 6 for generation 7 (pending)", "NOT confirmed", "recipient: safe (backup)",
        "kernel 6.1", "WAIVED  pin-rate-limit", "NO, but bbbbbbbbbbbb", "Secure Boot",
        "certificate: verified", "lockout password: not set",
    ):  # fmt: skip
        assert words in done.stdout, words
    assert json.loads(place.run("keys", "status", "--json").stdout) == SHUT
    place.close()
    place.serve({"keys.status": answering(place, SHUT | {"gap": None})})
    assert place.run("keys", "status").returncode == exits.OK


ENDS = [fault for fault in Fault if fault is not Fault.PIN_NEEDED]  # then the PIN is asked for


@pytest.mark.parametrize("fault", ENDS, ids=lambda fault: fault.name)
def test_every_fault_is_its_exit_code_with_the_fix(place, fault):
    error = ControlError(fault.name, fault.sentence, fault.fix, fault.code)
    place.serve({"keys.rotate": answering(place, error)})
    done = place.run("keys", "rotate")
    assert done.returncode == fault.code
    assert fault.sentence in done.stderr and fault.fix in done.stderr


@pytest.mark.parametrize(
    ("words", "verb", "values", "secrets"),
    [
        ("init --pcrs none", "init", {"options": {"pcrs": "none"}}, []),
        ("rebind --pcrs 7,11", "rebind", {"options": {"pcrs": "7,11"}}, []),
        ("rotate", "rotate", {}, []),
        ("approve --note ok", "approve", {"options": {"note": "ok"}}, []),
        ("unlock", "unlock", {}, []),
        ("unlock --recovery", "unlock", {}, ["recovery"]),
        ("pin set", "pin-set", {}, ["secret"]),
        ("pin remove", "pin-remove", {}, []),
        ("recipient add safe --kind host", "recipient-add",
         {"name": "safe", "options": {"kind": "host"}}, ["secret"]),
        ("recipient remove safe", "recipient-remove", {"name": "safe"}, []),
        ("trust add team", "trust-add", {"name": "team"}, ["secret"]),
        ("trust remove team", "trust-remove", {"name": "team"}, []),
        ("confirm-recovery", "confirm-recovery", {}, ["secret"]),
    ],
)  # fmt: skip
def test_each_verb_asks_for_what_it_says(place, words, verb, values, secrets):
    taking = Refusing(place)
    place.serve({f"keys.{verb}": taking})
    done = place.run("keys", *words.split(), stdin="from a pipe")
    assert done.returncode == exits.OK, done.stderr
    assert taking.got == [(f"keys.{verb}", values, dict.fromkeys(secrets, b"from a pipe"))]


def test_what_takes_long_says_what_it_does(place):
    import asyncio

    async def slow(request: Request) -> object:
        request.progress({"doing": "changing the vault"})
        await asyncio.sleep(1.5)
        return {}

    place.serve({"keys.rotate": slow})
    done = place.run("keys", "rotate")
    assert done.returncode == exits.OK and "changing the vault ..." in done.stderr
    assert "changing" not in done.stdout


def on_a_terminal(command: list[str], talk: list[tuple[str, str]]) -> tuple[str, int]:
    """Run `command` on a terminal of its own, answer each prompt; what was shown, and the code."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(command[0], command)
    said, end, rest = "", time.monotonic() + 30, list(talk)
    while True:
        ready, _, _ = select.select([terminal], [], [], 0.2)
        if ready:
            try:
                part = os.read(terminal, 4096)
            except OSError:
                break
            said += part.decode()
        if rest and rest[0][0] in said.rpartition("\n")[2]:
            time.sleep(0.05)  # getpass empties the input when it switches the echo off
            os.write(terminal, rest.pop(0)[1].encode() + b"\n")
            said += "\n"
        assert time.monotonic() < end, said
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    return said, os.waitstatus_to_exitcode(status)
