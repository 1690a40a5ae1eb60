"""What an interposer on the TPM bus sees of a vault: nothing secret."""

from __future__ import annotations

import pytest
from vault_scene import Helper, Recorder

PAYLOAD = b"this payload is searched on the bus, 64 bytes of it in the clear"


@pytest.mark.parametrize("backend", ["raw", "esapi"])
def test_seal_and_unseal_show_nothing_and_a_plain_run_does(
    helper: Helper, recorder: Recorder, backend: str
) -> None:
    """The same search over the same relay: salted sessions hide what password sessions show."""
    helper.where = recorder.where
    salted = helper.driver("seal", backend)
    assert salted.returncode == 0, salted.stderr.decode()
    assert len(recorder.seen) > 1000
    for begin in range(len(PAYLOAD) - 7):
        assert PAYLOAD[begin : begin + 8] not in recorder.seen
    recorder.seen.clear()
    plain = helper.driver("seal", "plain")
    assert plain.returncode == 0, plain.stderr.decode()
    assert recorder.seen.count(PAYLOAD) == 2  # once in Create, once in Unseal


def test_whole_life_of_a_vault_shows_no_key(helper: Helper, recorder: Recorder) -> None:
    """init, set, list, token over the relay; the payload is asked for afterwards, beside it."""
    helper.where = recorder.where
    helper.ok("init", "--pcrs", "7")
    assert helper.set("practice", b"sk-practice-0123456789").code == 0
    helper.ok("list")
    helper.ok("token", "--client", "alice", "--workload", "adapter.rest", "--lifetime", "60")
    seen = bytes(recorder.seen)
    helper.where = recorder.tpm.where
    kek = bytes.fromhex(helper.driver("kek", str(helper.state)).stdout.decode())
    assert len(kek) == 64
    assert len(seen) > 8000
    for begin in range(57):
        assert kek[begin : begin + 8] not in seen
    assert b"sk-practice" not in seen
