"""Steps on the vault's own code that no verb offers. Run: driver.py APP TPM STEP [ARGUMENT...].

`kek DIR` prints the sealed payload of a test's vault, `forget DIR` undefines its counters.
`software DIR refuse|allow` makes one on a software TPM that nobody chose by `--tpm socket:`.
`clock DIR` prints the milliseconds of five
unseals on one connection. `blind DIR BACKEND` and `forge DIR BACKEND` unseal without our own
checks. `plain-auth HEX` creates an object with that authorisation value in clear.
`seal plain|unsalted|BACKEND` seals and unseals a known payload.
`hold clean|leaky DIR ARGUMENTS...` runs a verb and then waits, so that its memory can be searched
(leaky: with one copy of each value kept, the search's positive control). `serve` runs many verbs.
"""

import errno
import fcntl
import json
import os
import signal
import sys
import time

sys.path.insert(0, sys.argv[1])

from supervisor.vault import (
    approvals,
    channel,
    counter,
    handover,
    helper,
    policy,
    raw,
    sealing,
    session,
    store,
    tpm,
    vault,
    verbs,
)
from supervisor.vault.commands import Entity, TpmError
from supervisor.vault.errors import VaultError
from supervisor.vault.header import Approval, SealedTo

WHERE, STEP, ARGUMENTS = sys.argv[2], sys.argv[3], sys.argv[4:]
PAYLOAD = bytearray(b"this payload is searched on the bus, 64 bytes of it in the clear")
assert len(PAYLOAD) == tpm.PAYLOAD


def kek(directory: str) -> None:
    with store.locked(directory, write=False) as fd, tpm.connected(WHERE) as device:
        header = vault.load(fd).header
        sealed = header.tpm
        key = device.storage_key()
        stand = sealing.standing(header, device, key)
        approval = approvals.matching(sealed, device.read_pcrs(sealed.pcrs, key, software=True))
        out = bytearray(tpm.PAYLOAD)
        bound = (stand.counter.entity(), approval.gen + sealed.nv.base)
        device.unseal(key, sealed, approval, bound, None, out)
        print(out.hex())


def seal(kind: str) -> None:
    if kind == "unsalted":
        _salt_no_more()
    backend = {"plain": "esapi", "unsalted": "raw"}.get(kind, kind)
    with tpm.connected(WHERE, backend) as device:
        key = device.ensure_storage_key(None)
        if kind == "plain":
            _seal_plainly(device.commands._esys, key)
            return
        signer, point = policy.new_key()
        state = sealing.boot_now(device, key, [7], [7], "test")
        made = device.seal(key, PAYLOAD, point, None)
        sealed = SealedTo(
            *("test", "absent", tpm.SRK, key.name, *made, point, None, (7,), (7,)),
            *(sealing._NO_WRAP, state.approvals),
        )
        approval = approvals.signed(sealed, signer, 1).approvals[0]
        out = bytearray(tpm.PAYLOAD)
        device.unseal(key, sealed, approval, None, None, out)
        assert out == PAYLOAD


def _salt_no_more() -> None:
    """What the vault must never do either: encrypted sessions without a salt, so without a key."""
    salted = raw.RawCommands.session

    class Keyless(session.Session):
        def __init__(self, *args: object) -> None:
            super().__init__(*args)
            self._key = bytearray()

    nobody = Entity(0x40000007, b"")
    raw.salt = lambda public: (bytearray(), b"")
    raw.Session = Keyless
    raw.RawCommands.session = lambda self, key, *rest: salted(self, nobody, *rest)


def _seal_plainly(esys: object, key: object) -> None:
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


def forget(directory: str) -> None:
    """Undefine the counters of a test's vault."""
    with store.locked(directory, write=True) as fd, tpm.connected(WHERE) as device:
        for index in counter.handles(vault.load(fd).header.id):
            counter.discard(device, index)


def plain_auth(auth: str) -> None:
    """What the vault must never do: an authorisation value in a plain session."""
    from tpm2_pytss.types import TPM2B_PUBLIC, TPM2B_SENSITIVE_CREATE, TPMS_SENSITIVE_CREATE

    with tpm.connected(WHERE, "esapi") as device:
        esys, key = device.commands._esys, device.storage_key()
        public = TPM2B_PUBLIC.parse("keyedhash", objectAttributes="fixedtpm|fixedparent")
        inner = TPMS_SENSITIVE_CREATE(userAuth=bytes.fromhex(auth), data=b"data")
        esys.create(key.handle, TPM2B_SENSITIVE_CREATE(inner), public)


def blind(directory: str, backend: str) -> None:
    """Open the sealed object with the file's first approval and no check of our own before."""
    with store.locked(directory, write=False) as fd, tpm.connected(WHERE, backend) as device:
        sealed = vault.load(fd).header.tpm
        _unseal(device, sealed, sealed.approvals[0])


def forge(directory: str, backend: str) -> None:
    """The same with an approval that another key signed."""
    with store.locked(directory, write=False) as fd, tpm.connected(WHERE, backend) as device:
        sealed = vault.load(fd).header.tpm
        signer, _ = policy.new_key()
        gen = sealed.approvals[0].gen
        _unseal(device, sealed, approvals.signed(sealed, signer, gen).approvals[0])


def _unseal(device: tpm.Tpm, sealed: SealedTo, approval: Approval) -> None:
    key = device.storage_key()
    index = counter.Counter(device, key, sealed.nv.index, sealed.pol_pub).entity()
    out = bytearray(tpm.PAYLOAD)
    try:
        device.unseal(key, sealed, approval, (index, approval.gen + sealed.nv.base), None, out)
    except VaultError as error:
        print(error.fault.name, error.detail)
    except TpmError as error:
        print(error)
    else:
        print("opened")


def software(directory: str, choice: str) -> None:
    """The TPM is at the device's place: there the socket is not the choice."""
    channel.DEVICE = WHERE.removeprefix("socket:")
    channel._device = lambda: channel._connect(channel.DEVICE)
    allow = ["--allow-software-tpm"] if choice == "allow" else []
    os.dup2(os.open("/dev/null", os.O_WRONLY), 3)
    inherited = {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "result"}
    try:
        helper.run(["init", *allow, "--dir", directory], inherited)
    except VaultError as error:
        print(error.fault.name)
    else:
        print("made")


def clock(directory: str) -> None:
    with store.locked(directory, write=False) as fd, tpm.connected(WHERE) as device:
        for _ in range(5):
            began = time.monotonic()
            doc = vault.load(fd)
            vault.open_by_tpm(fd, doc, device, pinned=None, pin=None).wipe()
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


def serve() -> None:
    """Run the verbs that come in, a line of JSON each, in this process: exit codes go out.

    A line is [arguments, {descriptor: text}, trouble]. Saves a start of the interpreter per verb.
    With a trouble, [kind, step, pid of the TPM], a child runs the verb and gets into it there.
    """
    for line in sys.stdin:
        arguments, given, trouble = json.loads(line)
        child = os.fork() if trouble else 0
        if child:
            _, status = os.waitpid(child, 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
            continue
        if trouble:
            Trouble(*trouble).install()
        sources = {"result": os.open(os.devnull, os.O_WRONLY)}
        for name, text in given.items():
            sources[name], write = os.pipe()
            os.write(write, text.encode())
            os.close(write)
        # High numbers first, so that no source is overwritten by an earlier target.
        high = []
        for source in sources.values():
            high.append(fcntl.fcntl(source, fcntl.F_DUPFD, 200))
            os.close(source)
        for number, source in enumerate(high, 3):
            os.dup2(source, number)
            os.close(source)
        names = {"LISTEN_FDS": str(len(sources)), "LISTEN_FDNAMES": ":".join(sources)}
        try:
            helper.run([*arguments, "--tpm", WHERE], names)
            code = 0
        except VaultError as error:
            code = error.fault.code
        except Exception as error:
            print("INTERNAL", helper._location(error), file=sys.stderr)
            code = 1
        for number in range(3, 3 + len(sources)):
            os.close(number)
        if trouble:
            os._exit(code)
        print(code, flush=True)


class Trouble:
    """At the given step (a command to the TPM, or a call of `store` to the system): `kill` this
    process, cut the TPM's `power`, or find the disk `full` from there on.
    """

    def __init__(self, kind: str, step: int, tpm_pid: int) -> None:
        self._kind = kind
        self._left = step
        self._tpm = tpm_pid

    def install(self) -> None:
        honest = channel.Channel.send

        def send(connection: channel.Channel, command: bytes) -> None:
            if self._kind != "full":
                self._step()
            honest(connection, command)

        channel.Channel.send = send
        store.os = self

    def __getattr__(self, name: str) -> object:
        value = getattr(os, name)
        if name not in ("open", "unlink", "fsync", "rename", "fdopen"):
            return value

        def call(*args: object, **options: object) -> object:
            self._step()
            return value(*args, **options)

        return call

    def _step(self) -> None:
        self._left -= 1
        if self._kind == "full" and self._left <= 0:
            raise OSError(errno.ENOSPC, "full")
        if self._left == 0:
            os.kill(os.getpid() if self._kind == "kill" else self._tpm, signal.SIGKILL)


STEPS = {
    "kek": kek,
    "seal": seal,
    "software": software,
    "plain-auth": plain_auth,
    "forget": forget,
    "blind": blind,
    "forge": forge,
    "clock": clock,
    "hold": hold,
    "serve": serve,
}
STEPS[STEP](*ARGUMENTS)
