"""A commit that dies at any step leaves the old file or the new one, complete."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from supervisor.vault import store
from supervisor.vault.document import FILE_MAX
from supervisor.vault.errors import Fault, VaultError

OLD, NEW = b"old" * 1000, b"new" * 2000


class Dying:
    """The `os` module, except that the process kills itself before the n-th call of `store`."""

    def __init__(self, calls: int) -> None:
        self._left = calls

    def __getattr__(self, name: str) -> Any:
        value = getattr(os, name)
        if not callable(value) or isinstance(value, type):
            return value

        def call(*args: Any, **options: Any) -> Any:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return value(*args, **options)

        return call


def commit(directory: Path, raw: bytes) -> None:
    with store.locked(str(directory), write=True) as fd:
        store.commit(fd, raw)


def dies_at(step: int, directory: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Commit NEW in a child that dies before its call number `step`; whether it died."""
    with store.locked(str(directory), write=True) as fd:
        child = os.fork()
        if child == 0:
            monkeypatch.setattr(store, "os", Dying(step))
            try:
                store.commit(fd, NEW)
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def test_every_step_of_a_commit_may_be_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, step = [], 0
    while True:
        step += 1
        commit(tmp_path, OLD)
        died = dies_at(step, tmp_path, monkeypatch)
        content = (tmp_path / store.NAME).read_bytes()
        assert content in (OLD, NEW), step
        seen.append(content)
        if not died:
            break
    assert 6 <= step < 20
    assert seen[0] == OLD and seen[-1] == NEW
    assert seen == sorted(seen, key=(OLD, NEW).index)  # old up to the rename, new from there on
    commit(tmp_path, OLD)  # a `.new` left behind is in nobody's way
    assert [path.name for path in tmp_path.iterdir()] == [store.NAME]


def test_new_file_is_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        commit(tmp_path, OLD)
    finally:
        os.umask(before)
    assert (tmp_path / store.NAME).stat().st_mode & 0o7777 == 0o600


def test_planted_new_file_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"untouched")
    (tmp_path / "vault.json.new").symlink_to(target)
    commit(tmp_path, NEW)
    assert target.read_bytes() == b"untouched"
    assert (tmp_path / store.NAME).read_bytes() == NEW


def read_fault(directory: Path) -> Fault:
    with store.locked(str(directory), write=False) as fd, pytest.raises(VaultError) as caught:
        store.read(fd)
    return caught.value.fault


def test_only_a_small_regular_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / store.NAME
    assert read_fault(tmp_path) is Fault.VAULT_ABSENT
    os.mkfifo(file)
    assert read_fault(tmp_path) is Fault.TAMPERED  # and it does not wait for a writer
    file.unlink()
    file.symlink_to("/dev/zero")
    assert read_fault(tmp_path) is Fault.TAMPERED
    file.unlink()
    file.mkdir()
    assert read_fault(tmp_path) is Fault.TAMPERED
    file.rmdir()
    file.write_bytes(bytes(FILE_MAX + 1))
    assert read_fault(tmp_path) is Fault.TAMPERED
    file.write_bytes(bytes(FILE_MAX))
    with store.locked(str(tmp_path), write=False) as fd:
        assert len(store.read(fd)) == FILE_MAX


def test_lock_is_exclusive_for_writers_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "PATIENCE", 0)
    with store.locked(str(tmp_path), write=False), store.locked(str(tmp_path), write=False):
        with pytest.raises(VaultError) as caught, store.locked(str(tmp_path), write=True):
            pass
        assert caught.value.fault is Fault.VAULT_BUSY
    with store.locked(str(tmp_path), write=True):
        with pytest.raises(VaultError) as caught, store.locked(str(tmp_path), write=False):
            pass
        assert caught.value.fault is Fault.VAULT_BUSY
    with store.locked(str(tmp_path), write=True):
        pass
    with pytest.raises(VaultError) as caught, store.locked(str(tmp_path / "no"), write=False):
        pass
    assert caught.value.fault is Fault.VAULT_UNWRITABLE
