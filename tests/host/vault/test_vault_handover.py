"""Keys reach the egress proxy in secret memory, and nothing else ever shows them."""

from __future__ import annotations

import fcntl
import mmap
import os
import select
import socket
import struct
import subprocess
from pathlib import Path

import pytest
from vault_scene import DRIVER, PYTHON, Helper, Outcome

from supervisor.vault import entries
from supervisor.vault.errors import Fault

VALUE = b"sk-practice-" + os.urandom(16).hex().encode()
FILTERED = (PYTHON, str(Path(__file__).with_name("filtered.py")))


class Proxy:
    """The egress proxy's end of the hand-over."""

    def __init__(self) -> None:
        self.mine, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.mine.settimeout(10)

    def fd(self) -> int:
        data, fds, flags, _ = socket.recv_fds(self.mine, 16, 4)
        assert (data, len(fds), flags & socket.MSG_CTRUNC) == (b"\x00", 1, 0)
        return fds[0]

    def keys(self) -> dict[str, bytes]:
        fd = self.fd()
        with mmap.mmap(fd, os.fstat(fd).st_size, prot=mmap.PROT_READ) as mapping:
            view = memoryview(mapping)
            found, at = {}, 4
            for _ in range(struct.unpack_from("!I", view)[0]):
                parts = []
                for _ in range(2):
                    (length,) = struct.unpack_from("!H", view, at)
                    parts.append(bytes(view[at + 2 : at + 2 + length]))
                    at += 2 + length
                found[parts[0].decode()] = parts[1]
            assert not any(view[at:])
            view.release()
        os.close(fd)
        return found


@pytest.fixture
def proxy() -> Proxy:
    return Proxy()


@pytest.fixture
def stored(vault: Helper) -> Helper:
    assert vault.set("practice", VALUE + b"\n").code == 0
    assert vault.set("openai", b"another value").code == 0
    return vault


def unlock(helper: Helper, proxy: Proxy, *arguments: str, wrap: tuple[str, ...] = ()) -> Outcome:
    return helper.run("unlock", *arguments, wrap=wrap, handover=proxy.theirs.fileno())


def test_proxy_reads_the_keys(stored: Helper, proxy: Proxy) -> None:
    assert unlock(stored, proxy).code == 0
    assert proxy.keys() == {"practice": VALUE, "openai": b"another value"}
    assert unlock(stored, proxy, "--names", "practice").code == 0
    assert proxy.keys() == {"practice": VALUE}


def test_empty_vault_hands_over_no_key(vault: Helper, proxy: Proxy) -> None:
    """Above all not the signing key of tokens, which it does hold."""
    assert unlock(vault, proxy).code == 0
    assert proxy.keys() == {}


@pytest.mark.parametrize("name", [entries.SIGNING_KEY, "unknown", "Practice"])
def test_no_other_name_is_handed_over(stored: Helper, proxy: Proxy, name: str) -> None:
    outcome = unlock(stored, proxy, "--names", f"practice,{name}")
    assert outcome.fault in (Fault.KEY_NAME, Fault.KEY_UNKNOWN)
    proxy.mine.setblocking(False)
    with pytest.raises(BlockingIOError):  # not even the good half
        proxy.mine.recv(16)


def test_signing_key_can_not_be_set_or_removed(stored: Helper) -> None:
    assert stored.set(entries.SIGNING_KEY, b"x" * 32).fault is Fault.KEY_NAME
    assert stored.run("remove", entries.SIGNING_KEY).fault is Fault.KEY_NAME


def test_descriptor_is_secret_memory(stored: Helper, proxy: Proxy) -> None:
    """The kernel itself names it so, and /proc/PID/mem cannot read a mapping of it."""
    assert unlock(stored, proxy).code == 0
    fd = proxy.fd()
    assert Path(f"/proc/self/fd/{fd}").readlink().name.startswith("secretmem")
    secret = mmap.mmap(fd, 4096, prot=mmap.PROT_READ)
    control = mmap.mmap(-1, 4096)
    control.write(VALUE)
    readable = []
    with Path("/proc/self/mem").open("rb", buffering=0) as memory:
        for line in Path("/proc/self/maps").read_text().splitlines():
            if "secretmem" in line or "/dev/zero" in line:
                memory.seek(int(line.split("-")[0], 16))
                try:
                    memory.read(64)
                    readable.append("control")
                except OSError:
                    readable.append("refused")
    assert VALUE in secret[:]  # the holder of the descriptor does see it
    assert set(readable) == {"refused", "control"}
    secret.close()
    control.close()
    os.close(fd)


def test_value_shows_nowhere(vault: Helper, proxy: Proxy) -> None:
    """Not in arguments, environment, stdout, stderr, result or the file, of any verb."""
    running = vault.begin_set("practice", VALUE)
    places = [Path(f"/proc/{running.pid}/{name}").read_bytes() for name in ("cmdline", "environ")]
    outcomes = [running.wait()]
    outcomes.append(vault.run("unlock", handover=proxy.theirs.fileno()))
    outcomes += [vault.run("list"), vault.run("status"), vault.set("practice", VALUE + b"\x7f")]
    outcomes.append(vault.set("Bad Name", VALUE))
    assert [outcome.fault for outcome in outcomes[-2:]] == [Fault.KEY_VALUE, Fault.KEY_NAME]
    places += [part for o in outcomes for part in (o.stdout, o.stderr, o.result)]
    places += [path.read_bytes() for path in vault.state.iterdir()]
    for place in places:
        assert VALUE not in place
        assert VALUE.split(b"-")[2][:8] not in place
    assert proxy.keys()["practice"] == VALUE  # it was there to be seen


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\n",
        b"seven-7",
        b"seven-7\n",
        b"good key\nb",
        b"good key\r",
        b"good key\x00",
        b"good caf\xc3\xa9",
        b"x" * 16385,
        b"x" * 70000,
    ],
)
def test_bad_values_are_refused(vault: Helper, value: bytes) -> None:
    before = vault.file.read_bytes()
    assert vault.set("practice", value).fault is Fault.KEY_VALUE
    assert vault.file.read_bytes() == before
    assert vault.set("practice", b"eight-8!\n").code == 0


def test_largest_value_and_a_full_vault(vault: Helper, proxy: Proxy) -> None:
    for number in range(2):
        assert vault.set(f"key{number}", b"x" * 16384 + b"\n").code == 0
    before = vault.file.read_bytes()
    assert vault.set("key2", b"x" * 16384).fault is Fault.VAULT_FULL
    assert vault.file.read_bytes() == before
    assert unlock(vault, proxy).code == 0
    assert {name: len(value) for name, value in proxy.keys().items()} == {
        "key0": 16384,
        "key1": 16384,
    }


def test_kernel_without_secret_memory_is_refused_unless_waived(
    stored: Helper, proxy: Proxy
) -> None:
    wrap = (*FILTERED, "no-secret-memory")
    assert unlock(stored, proxy, wrap=wrap).fault is Fault.SECRET_MEMORY_MISSING
    assert unlock(stored, proxy, "--allow-plain-memfd", wrap=wrap).code == 0
    fd = proxy.fd()
    assert Path(f"/proc/self/fd/{fd}").readlink().name.startswith("memfd:keys")
    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
    assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) & seals == seals
    os.close(fd)


@pytest.mark.parametrize("backend", ["raw", "esapi"])
def test_works_where_writable_code_is_refused(stored: Helper, proxy: Proxy, backend: str) -> None:
    """The sandbox refuses W+X memory; closures of libffi must still work there."""
    stored.backend = backend
    assert unlock(stored, proxy, wrap=(*FILTERED, "no-wx")).code == 0
    assert proxy.keys()["practice"] == VALUE


def test_vanished_proxy_is_named(stored: Helper, proxy: Proxy) -> None:
    proxy.mine.close()
    assert unlock(stored, proxy).fault is Fault.HANDOVER_FAILED


def test_missing_descriptors_and_bad_arguments_are_named(vault: Helper) -> None:
    assert vault.run("unlock").fault is Fault.USAGE
    assert vault.run("set", "practice").fault is Fault.USAGE
    for arguments in ([], ["explode"], ["init", "--pcrs", "24"], ["list", "--names", "a"]):
        assert vault.run(*arguments).fault is Fault.USAGE


def count_in_memory(pid: int, needle: bytes) -> int:
    """How often `needle` stands in the readable memory of a process."""
    found = 0
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, mode = line.split()[:2]
            if "r" not in mode or "[v" in line or "secretmem" in line:
                continue
            begin, end = (int(part, 16) for part in span.split("-"))
            try:
                memory.seek(begin)
                content = b""
                while len(content) < end - begin:
                    content += memory.read(end - begin - len(content)) or b"\x00"
            except OSError:
                continue
            found += content.count(needle)
    return found


def hold(kind: str, helper: Helper, *arguments: str, **descriptors: int) -> subprocess.Popen[bytes]:
    """A process that ran a verb with the vault's own code and is still there."""
    renumber = (
        "import os,sys\nn = int(sys.argv[1])\n"
        "for i in range(n): os.dup2(int(sys.argv[2 + i]), 3 + i)\n"
        "os.execv(sys.argv[2 + n], sys.argv[2 + n:])"
    )
    fds = [fcntl.fcntl(fd, fcntl.F_DUPFD, 100) for fd in descriptors.values()]
    held = subprocess.Popen(
        [
            *(PYTHON, "-c", renumber, str(len(fds)), *map(str, fds)),
            *(PYTHON, "-I", str(DRIVER), str(helper.app), helper.where),
            *("hold", kind, str(helper.state), *arguments, "--backend", helper.backend),
        ],
        pass_fds=fds,
        env={"LISTEN_FDS": str(len(fds)), "LISTEN_FDNAMES": ":".join(descriptors)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    for fd in fds:
        os.close(fd)
    assert held.stdout is not None
    assert held.stdout.readline() == b"ready\n"
    return held


def piped(data: bytes) -> int:
    """The reading end of a pipe that holds `data`."""
    read, write = os.pipe()
    os.write(write, data)
    os.close(write)
    return read


@pytest.mark.parametrize("verb", ["set", "rotate", "recover", "pin-set", "confirm-recovery"])
def test_writing_verbs_keep_no_copy_either(stored: Helper, verb: str) -> None:
    """Of the keys, of what was sealed before and after, of the PIN, of the recovery code."""
    pin, new = b"correct horse battery", b"sk-another-" + os.urandom(16).hex().encode()
    payloads = [bytes.fromhex(stored.driver("kek", str(stored.state)).stdout.decode())]
    given = {"set": new, "pin-set": pin, "rotate": b""}.get(verb, stored.code)
    arguments = {"set": ["set", "other"], "pin-set": ["pin-set", "--allow-pin-reset"]}
    secret, null = piped(given), os.open(os.devnull, os.O_WRONLY)
    running = hold("clean", stored, *arguments.get(verb, [verb]), secret=secret, result=null)
    os.close(secret)
    os.close(null)
    try:
        if verb != "pin-set":
            payloads.append(bytes.fromhex(stored.driver("kek", str(stored.state)).stdout.decode()))
        letters = stored.code.strip()
        secrets = [VALUE, new, pin, letters, letters.replace(b"-", b"")]
        for payload in payloads:
            assert len(payload) == 64
            secrets += [payload[:32], payload[32:]]
        assert [count_in_memory(running.pid, secret) for secret in secrets] == [0] * len(secrets)
        assert count_in_memory(running.pid, b"PolicyAuthValue") > 0  # the search does search
    finally:
        running.kill()
        running.wait()


@pytest.mark.parametrize("backend", ["raw", "esapi"])
@pytest.mark.parametrize("kind", ["clean", "leaky"])
def test_helper_keeps_no_copy_after_the_hand_over(
    stored: Helper, proxy: Proxy, kind: str, backend: str
) -> None:
    """Its own memory is searched from outside; `leaky` proves that the search finds a copy."""
    stored.backend = backend
    kek = bytes.fromhex(stored.driver("kek", str(stored.state)).stdout.decode())
    assert len(kek) == 64
    helper = hold(kind, stored, "unlock", handover=proxy.theirs.fileno())
    try:
        assert proxy.keys()["practice"] == VALUE
        assert count_in_memory(helper.pid, kek[:32]) == 0
        assert count_in_memory(helper.pid, kek[32:]) == 0
        assert count_in_memory(helper.pid, VALUE) == (0 if kind == "clean" else 1)
    finally:
        helper.kill()
        helper.wait()


def test_core_dumps_are_off_before_the_value_is_read(vault: Helper) -> None:
    read, write = os.pipe()
    running = vault.start("set", "practice", secret=read)
    os.close(read)
    try:
        for _ in range(200):
            limits = Path(f"/proc/{running.pid}/limits").read_text()
            core = next(line for line in limits.splitlines() if "core file size" in line)
            if core.split()[4:6] == ["0", "0"]:
                break
            select.select([], [], [], 0.02)
        assert core.split()[4:6] == ["0", "0"]
    finally:
        os.write(write, b"the value")
        os.close(write)
        assert running.wait().code == 0


def test_cost_of_an_unlock(
    stored: Helper, proxy: Proxy, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prints the figures; fails only where something went wrong by an order of magnitude."""
    seconds = []
    for _ in range(5):
        seconds.append(unlock(stored, proxy).seconds)
        assert proxy.keys()
    helper = hold("clean", stored, "unlock", handover=proxy.theirs.fileno())
    try:
        status = Path(f"/proc/{helper.pid}/status").read_text()
    finally:
        helper.kill()
        helper.wait()
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
    opened = stored.driver("clock", str(stored.state)).stdout.decode().split()
    with capsys.disabled():
        print(f"\nTPM and file alone, warm: median {sorted(map(float, opened))[2]} ms")
        print(f"unlock: median {sorted(seconds)[2] * 1000:.0f} ms, peak RSS {peak:.1f} MiB")
    assert peak < 64
    assert sorted(seconds)[2] < 5
