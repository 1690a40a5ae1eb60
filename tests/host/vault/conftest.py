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


@pytest.fixture(scope="session")
def ready(app: Path, tmp_path_factory: pytest.TempPathFactory) -> Helper:
    """A vault at generation 3, and its TPM, switched off: made once, copied for each test."""
    if shutil.which("swtpm") is None:
        pytest.skip("NOT TESTED: swtpm is not installed, so nothing of the vault was proven")
    directory = tmp_path_factory.mktemp("ready")
    tpm = Swtpm(directory / "tpm")
    tpm.start()
    try:
        (directory / "vault").mkdir()
        helper = Helper(app, directory / "vault", tpm)
        helper.ok("init", "--pcrs", "7")
        helper.code = helper.new_code()
        assert helper.give("confirm-recovery", secret=helper.code).code == 0
    finally:
        tpm.stop()
    return helper


@pytest.fixture
def vault(ready: Helper, helper: Helper) -> Helper:
    """A vault at generation 3: its recovery code is confirmed and PCR 7 bound."""
    helper.tpm.stop()
    shutil.copytree(
        ready.tpm.directory / "state", helper.tpm.directory / "state", dirs_exist_ok=True
    )
    helper.tpm.start()
    shutil.copy(ready.file, helper.file)
    helper.code = ready.code
    return helper


@pytest.fixture(params=["raw", "esapi"])
def either(request: pytest.FixtureRequest, vault: Helper) -> Helper:
    """A vault whose helper speaks to the TPM in either way."""
    vault.backend = request.param
    return vault


@pytest.fixture
def recorder(tmp_path: Path, tpm: Swtpm) -> Iterator[Recorder]:
    relay = Recorder(tpm, tmp_path / "bus")
    relay.start()
    yield relay
    relay.stop()
