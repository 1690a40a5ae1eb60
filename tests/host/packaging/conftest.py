"""The packages as `make deb` builds them; built once, then reused until the tree changes."""

from __future__ import annotations

import subprocess

import pytest
from built import BUILD, ROOT, Deb, environment, read, suite


@pytest.fixture(scope="session")
def debs() -> dict[str, Deb]:
    """The packages of the tree as it stands, by name."""
    subprocess.run([BUILD], env=environment(), check=True)
    found = [read(path) for path in sorted((ROOT / "dist" / suite()).glob("*.deb"))]
    return {deb.fields["Package"]: deb for deb in found}
