"""A commit is all or nothing, and one process at a time uses the vault."""

from __future__ import annotations

import os
import random
import socket
import struct
import time

from vault_scene import Helper, Recorder, Running

from supervisor.vault import store
from supervisor.vault.errors import Fault


def test_second_process_is_told_that_the_vault_is_busy(vault: Helper) -> None:
    with store.locked(str(vault.state), write=True):
        assert vault.run("list").fault is Fault.VAULT_BUSY
        assert vault.set("practice", b"the value").fault is Fault.VAULT_BUSY
        assert vault.ok("status").json["problem"] == "VAULT_BUSY"
    with store.locked(str(vault.state), write=False):  # readers do not shut readers out
        assert vault.run("list").code == 0
        assert vault.set("practice", b"the value").fault is Fault.VAULT_BUSY
    assert vault.set("practice", b"the value").code == 0


def test_two_writers_at_once_lose_nothing(vault: Helper) -> None:
    """Each either commits or says VAULT_BUSY; what was committed is there."""
    running = {name: vault.begin_set(name, b"the value") for name in ("a", "b", "c")}
    outcomes = {name: helper.wait() for name, helper in running.items()}
    done = [name for name, outcome in outcomes.items() if outcome.code == 0]
    assert done
    assert all(o.fault in (None, Fault.VAULT_BUSY) for o in outcomes.values())
    assert vault.ok("list").json["names"] == sorted(done)
    assert vault.ok("status").json["vault"]["generation"] == 3 + len(done)


def test_killed_writers_leave_the_old_or_the_new_vault(vault: Helper) -> None:
    """kill -9 at random moments of real commits; tests/unit/vault kills at each single step."""
    began = time.monotonic()
    assert vault.set("control", b"the value").code == 0
    whole = time.monotonic() - began
    dice = random.Random(2)  # repeatable moments
    names, killed = {"control"}, 0
    for number in range(16):
        running = vault.begin_set(f"key{number}", os.urandom(8).hex().encode())
        time.sleep(dice.uniform(0.6, 1.02) * whole)
        running.kill()
        outcome = running.wait()
        killed += outcome.code == -9
        found = set(vault.ok("list").json["names"])
        assert found - names <= {f"key{number}"}
        assert names <= found
        assert outcome.code != 0 or f"key{number}" in found
        names = found
    assert killed  # at least some died on the way


def test_killed_readers_do_not_fill_the_tpm(vault: Helper, recorder: Recorder) -> None:
    """A TPM has three places for objects and three for sessions, and swtpm never tidies up.

    Each helper dies with one of both loaded, when the relay sees its Unseal.
    """
    running: Running | None = None

    def kill_at_unseal(_: socket.socket, command: bytes) -> None:
        if running is not None and command[6:10] == struct.pack("!I", 0x15E):
            running.kill()
            raise ConnectionAbortedError

    recorder.before = kill_at_unseal
    vault.where = recorder.where
    for _ in range(5):
        running = vault.start("list")
        assert running.wait().code == -9
    running = None
    assert vault.run("list").code == 0


def test_readers_at_once_wait_for_each_other(vault: Helper) -> None:
    running = [vault.start("list") for _ in range(4)]
    assert [helper.wait().code for helper in running] == [0, 0, 0, 0]


def test_full_disk_keeps_the_old_vault(vault: Helper) -> None:
    """RLIMIT_FSIZE stands in for a full disk: the write of `.new` fails half-way."""
    before = vault.file.read_bytes()
    prlimit = ("/usr/bin/prlimit", "--fsize=512", "--")
    read, write = os.pipe()
    os.write(write, b"the value")
    os.close(write)
    outcome = vault.run("set", "practice", wrap=prlimit, secret=read)
    os.close(read)
    assert outcome.fault is Fault.VAULT_UNWRITABLE
    assert vault.file.read_bytes() == before
    assert [path.name for path in vault.state.iterdir()] == ["vault.json"]
    assert vault.set("practice", b"the value").code == 0


def test_remove_and_init_twice(vault: Helper) -> None:
    assert vault.run("init").fault is Fault.VAULT_EXISTS
    assert vault.set("practice", b"the value").code == 0
    assert vault.run("remove", "other").fault is Fault.KEY_UNKNOWN
    vault.ok("remove", "practice")
    assert vault.ok("list").json["names"] == []
    assert vault.run("list", "--dir", "/nonexistent").code == 0  # the later --dir wins
