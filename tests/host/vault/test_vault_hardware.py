"""A smoke test on the TPM of this machine. By hand only: ANCHORHOLD_HARDWARE_TPM=yes and root.

It makes a storage root key at 0x81000001 if there is none (and leaves it), defines and undefines
its own NV indexes, and binds to the PCRs named in ANCHORHOLD_HARDWARE_PCRS (7 without it).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from vault_scene import Helper, Swtpm

from supervisor.vault.channel import DEVICE

PCRS = os.environ.get("ANCHORHOLD_HARDWARE_PCRS", "7")


@pytest.fixture(params=["raw", "esapi"])
def real(app: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Helper]:
    if os.environ.get("ANCHORHOLD_HARDWARE_TPM") != "yes" or not Path(DEVICE).exists():
        pytest.skip("NOT TESTED: nobody asked for this machine's own TPM to be used")
    (tmp_path / "vault").mkdir()
    helper = Helper(app, tmp_path / "vault", Swtpm(tmp_path / "unused"))
    helper.where, helper.backend = "device", request.param
    yield helper
    helper.driver("forget", str(helper.state))


def test_whole_life_on_this_machine(real: Helper) -> None:
    made = real.ok("init", "--pcrs", PCRS, "--allow-software-tpm").json
    print(made["tpm"])
    code = real.new_code()
    assert real.give("confirm-recovery", secret=code).code == 0
    assert real.set("practice", b"the value").code == 0
    real.ok("rotate")
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with mine, theirs:
        outcome = real.run("unlock", handover=theirs.fileno())
    assert outcome.code == 0, outcome.stderr.decode()
    print(f"unlock: {outcome.seconds:.2f} s")
    assert real.give("recover", secret=code).code == 0
    assert real.ok("status").json["counter"]["state"] == "current"
