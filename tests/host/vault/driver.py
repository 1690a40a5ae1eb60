"""Steps on the vault's own code that no verb offers. Run: driver.py APP TPM STEP [ARGUMENT...].

`kek DIR` prints the key-encryption key of a test's vault. `create DIR allow|refuse` makes one on a
software TPM. `clock DIR` prints the milliseconds of five unseals on one connection.
`seal plain|salted` seals and unseals a known payload. `hold clean|leaky DIR ARGUMENTS...` runs a
verb and then waits, so that its memory can be searched (leaky: with one copy of each value kept,
the search's positive control).
"""

import os
import sys
import time

sys.path.insert(0, sys.argv[1])

from supervisor.vault import handover, helper, policy, store, tpm, vault, verbs
from supervisor.vault.errors import VaultError

WHERE, STEP, ARGUMENTS = sys.argv[2], sys.argv[3], sys.argv[4:]
PAYLOAD = bytearray(b"this payload is searched on the bus, 64 bytes of it in the clear")
assert len(PAYLOAD) == tpm.PAYLOAD


def kek(directory: str) -> None:
    with store.locked(directory, write=False) as fd, tpm.connected(WHERE) as device:
        print(vault.unseal_kek(vault.load(fd).header, device).hex())


def seal(kind: str) -> None:
    with tpm.connected(WHERE) as device:
        key = device.ensure_storage_key()
        if kind == "plain":
            _seal_plainly(device._esys, key)
            return
        signer, point = policy.new_key()
        values = device.read_pcrs([7], key, software=True)
        digest = policy.policy_pcr([7], values)
        approval = vault.Approval("test", 1, tuple(values), digest, *policy.approve(signer, digest))
        sealed = device.seal(key, PAYLOAD, policy.policy_authorize(point))
        out = bytearray(tpm.PAYLOAD)
        device.unseal(key, sealed, point, [7], approval, out)
        assert out == PAYLOAD


def _seal_plainly(esys: object, key: tpm.StorageKey) -> None:
    """What the vault must never do: password sessions, everything in clear."""
    from tpm2_pytss.types import TPM2B_PUBLIC, TPM2B_SENSITIVE_CREATE, TPMS_SENSITIVE_CREATE

    public = TPM2B_PUBLIC.parse("keyedhash", objectAttributes="fixedtpm|fixedparent|userwithauth")
    sensitive = TPM2B_SENSITIVE_CREATE(TPMS_SENSITIVE_CREATE(data=bytes(PAYLOAD)))
    private, public, *_ = esys.create(key.handle, sensitive, public)
    handle = esys.load(key.handle, private, public)
    try:
        assert bytes(esys.unseal(handle)) == bytes(PAYLOAD)
    finally:
        esys.flush_context(handle)


def create(directory: str, software: str) -> None:
    with store.locked(directory, write=True) as fd, tpm.connected(WHERE) as device:
        try:
            vault.create(fd, device, [7], software_allowed=software == "allow", secure_boot=False)
        except VaultError as error:
            print(error.fault.name)
        else:
            print("made")


def clock(directory: str) -> None:
    with store.locked(directory, write=False) as fd, tpm.connected(WHERE) as device:
        for _ in range(5):
            began = time.monotonic()
            vault.open_vault(fd, device).wipe()
            print(f"{(time.monotonic() - began) * 1000:.1f}")


def hold(kind: str, directory: str, *arguments: str) -> None:
    kept = []
    if kind == "leaky":
        honest = handover.hand_over

        def leaky(values: dict[str, memoryview], *args: object, **options: object) -> None:
            kept.extend(bytes(value) for value in values.values())
            honest(values, *args, **options)

        verbs.hand_over = leaky
    helper.run([*arguments, "--dir", directory, "--tpm", WHERE], dict(os.environ))
    os.write(1, b"ready\n")
    os.read(0, 1)


STEPS = {"kek": kek, "seal": seal, "create": create, "clock": clock, "hold": hold}
STEPS[STEP](*ARGUMENTS)
