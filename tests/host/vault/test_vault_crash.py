"""A verb that writes may die at any step, with its TPM or without: the old or the new vault opens.

Steps are the commands to the TPM and the calls of `store` to the system, each in its turn.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from vault_scene import Helper, Swtpm

from supervisor.vault.errors import Fault

Ask = Callable[..., Fault | None]
VALUE = b"sk-practice-0123456789"
STEPS_MAX = 250


def generation(vault: Helper) -> int:
    return int(json.loads(vault.file.read_bytes())["header"]["gen"])


def counter_state(vault: Helper) -> str:
    return str(vault.ok("status").json["counter"]["state"])


def writing_verb(vault: Helper, verb: str) -> tuple[tuple[str, ...], dict[str, bytes]]:
    return {
        "set": (("set", "practice"), {"secret": VALUE}),
        "rotate": (("rotate",), {}),
        "recover": (("recover",), {"secret": vault.code}),
        "rebind": (("rebind", "--pcrs", "7,11"), {}),
        "pin-set": (("pin-set", "--allow-pin-reset"), {"secret": b"123456"}),
    }[verb]


def opens(ask: Ask, verb: str) -> bool:
    """Whether the vault opens; after pin-set perhaps only with the PIN."""
    fault = ask("list")
    if verb == "pin-set" and fault is Fault.PIN_NEEDED:
        fault = ask("list", pin=b"123456")
    return fault is None


@pytest.mark.parametrize("verb", ["set", "rotate", "recover", "rebind", "pin-set"])
def test_killed_at_every_step(vault: Helper, verb: str) -> None:
    """Old or new, complete; whoever opens it next rolls forward, and the next writer tidies up."""
    arguments, given = writing_verb(vault, verb)
    generations = set()
    with vault.server() as ask:
        assert ask("set", "control", secret=VALUE) is None
        # Each step of pin-set costs a scrypt or two, and the TPM sees what it sees in a rotation.
        for step in range(1, STEPS_MAX, 6 if verb == "pin-set" else 1):
            before = generation(vault)
            outcome = ask(*arguments, trouble=("kill", step), **given)
            after = generation(vault)
            generations.add(after - before)
            assert opens(ask, verb), step
            if outcome is None:
                break
            assert outcome is Fault.INTERNAL, step  # killed
            if after != before and verb == "pin-set":
                assert ask("pin-remove", pin=b"123456") is None
            assert ask("set", "control", secret=VALUE) is None, step
    assert outcome is None
    assert generations == {0, 1}
    assert step > 20
    assert counter_state(vault) == "current"
    if verb != "pin-set":
        assert "control" in vault.ok("list").json["names"]
    assert vault.tpm.nv_indexes() == 1


def pending_step(vault: Helper, ask: Ask) -> int:
    """At which step a `set` must die to leave a file that is one step ahead of the counter."""
    step = 25  # that far the file is not written yet
    while True:
        assert ask("set", "practice", trouble=("kill", step), secret=VALUE)
        if counter_state(vault) == "pending":
            return step
        assert ask("list") is None
        step += 1


def test_killed_before_a_roll_forward_is_over(vault: Helper) -> None:
    """A file one step ahead: a reader that dies on its way leaves it so, or the counter moved."""
    states = []
    with vault.server() as ask:
        dies = pending_step(vault, ask)
        for step in range(1, STEPS_MAX, 4):
            assert ask("list") is None
            assert ask("set", "practice", trouble=("kill", dies), secret=VALUE)
            outcome = ask("list", trouble=("kill", step))
            states.append(counter_state(vault))
            if outcome is None:
                break
        assert ask("list") is None
    assert states[0] == "pending" and states[-1] == "current"
    assert states == sorted(states, key=("pending", "current").index)


@pytest.mark.parametrize("verb", ["set", "rotate", "recover"])
def test_full_disk_at_every_step(vault: Helper, verb: str) -> None:
    """The verb says so, or had written before; nothing is half done and no index is left over."""
    arguments, given = writing_verb(vault, verb)
    with vault.server() as ask:
        for step in range(1, 20):
            before = vault.file.read_bytes()
            outcome = ask(*arguments, trouble=("full", step), **given)
            if outcome is None:
                break
            assert outcome is Fault.VAULT_UNWRITABLE, step
            assert ask("list") is None, step
            assert vault.file.read_bytes() == before or generation(vault) > 3, step
        assert outcome is None
        assert step > 4
    assert vault.tpm.nv_indexes() == 1


@pytest.mark.parametrize("verb", ["set", "rotate"])
def test_power_cut_of_the_tpm(vault: Helper, tpm: Swtpm, verb: str) -> None:
    """At some commands; the verb names the fault, and all is well after the restart."""
    arguments, given = writing_verb(vault, verb)
    with vault.server() as ask:
        for step in range(1, STEPS_MAX, 4 if verb == "set" else 9):
            outcome = ask(*arguments, trouble=("power", step), **given)
            tpm.restart()
            assert ask("list") is None, step
            if outcome is None:
                break
            assert outcome in (Fault.TPM_FAULT, Fault.TPM_ABSENT), step
    assert outcome is None
    assert counter_state(vault) == "current"


def test_killed_first_start_begins_again(helper: Helper) -> None:
    """No vault, or a whole one."""
    made = 0
    with helper.server() as ask:
        for step in range(1, STEPS_MAX, 2):
            outcome = ask("init", "--pcrs", "7", trouble=("kill", step))
            if helper.file.exists():
                assert ask("list") is None, step
                made += 1
                helper.file.unlink()
            else:
                assert ask("list") is Fault.VAULT_ABSENT, step
            if outcome is None:
                break
    assert outcome is None
    assert made


def test_key_file_killed_at_every_step(vault: Helper, tpm: Swtpm, tmp_path: Path) -> None:
    """Without a TPM: the file and the key file that it names are replaced together."""
    tpm.stop()
    vault.where = f"socket:{tmp_path}/none"
    vault.tpm = Swtpm(tmp_path / "unused")
    vault.tpm.start()
    vault.file.unlink()
    allow = ("--allow-key-file",)
    with vault.server() as ask:
        for verb in ("init", "rotate"):
            for step in range(1, 60):
                outcome = ask(verb, *allow, trouble=("kill", step))
                fault = ask("list", *allow)
                assert fault is None or (verb, fault) == ("init", Fault.VAULT_ABSENT), step
                if outcome is None:
                    break
                assert outcome is Fault.INTERNAL or verb == "init", step
                if verb == "init" and fault is None:
                    shutil.rmtree(vault.state)
                    vault.state.mkdir()
            assert outcome is None
    vault.tpm.stop()
    keys = [path.name for path in vault.state.iterdir() if path.name.endswith(".key")]
    assert len(keys) == 1
