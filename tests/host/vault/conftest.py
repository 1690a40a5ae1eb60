"""Fixtures of the vault's host tests: a TPM, a helper, a vault, a recorder on the bus."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from vault_scene import ROOT, Helper, Recorder, Swtpm


@pytest.fixture(scope="session")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The application directory as a sandbox shows it: the vault package and nothing else."""
    directory = tmp_path_factory.mktemp("app")
    shutil.copytree(
        ROOT / "supervisor" / "vault",
        directory / "supervisor" / "vault",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    assert not (directory / "supervisor" / "__init__.py").exists()
    return directory


@pytest.fixture
def new_tpm(tmp_path: Path) -> Iterator[Callable[[], Swtpm]]:
    """A function that starts another software TPM."""
    if shutil.which("swtpm") is None:
        pytest.skip("NOT TESTED: swtpm is not installed, so nothing of the vault was proven")
    started: list[Swtpm] = []

    def make() -> Swtpm:
        tpm = Swtpm(tmp_path / f"tpm{len(started)}")
        started.append(tpm)
        tpm.start()
        return tpm

    yield make
    for tpm in started:
        tpm.stop()


@pytest.fixture
def tpm(new_tpm: Callable[[], Swtpm]) -> Swtpm:
    return new_tpm()


@pytest.fixture
def helper(app: Path, tmp_path: Path, tpm: Swtpm) -> Helper:
    state = tmp_path / "vault"
    state.mkdir()
    return Helper(app, state, tpm)


@pytest.fixture
def fresh(helper: Helper) -> Helper:
    """A helper whose vault was made: no recovery code yet, so bound to the counter only."""
    helper.ok("init", "--pcrs", "7")
    return helper


@pytest.fixture
def vault(fresh: Helper) -> Helper:
    """A vault at generation 3: its recovery code is confirmed and PCR 7 bound."""
    fresh.code = fresh.new_code()
    assert fresh.give("confirm-recovery", secret=fresh.code).code == 0
    return fresh


@pytest.fixture
def recorder(tmp_path: Path, tpm: Swtpm) -> Iterator[Recorder]:
    relay = Recorder(tpm, tmp_path / "bus")
    relay.start()
    yield relay
    relay.stop()
