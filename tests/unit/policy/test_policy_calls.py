"""System call groups become filters that mean exactly what the files say."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from sandbox.seccomp.truth_table import TruthTable
from supervisor.policy.calls import allowed_values, seccomp_spec
from supervisor.policy.constants import CONSTANTS
from supervisor.policy.groups import ArgumentSet, Baseline, CallSet, Group, load_groups

SHIPPED = Path(__file__).parents[3] / "policies" / "groups"
GROUPS, BASELINE, _ = load_groups(SHIPPED)
SERVICE = GROUPS["python-service/1"]


@functools.cache
def table_of(*names: str) -> TruthTable:
    assert BASELINE is not None
    return TruthTable(seccomp_spec([GROUPS[name] for name in names], BASELINE))


def test_the_shipped_groups_are_sound() -> None:
    assert load_groups(SHIPPED)[2] == []
    tool = {call for part in GROUPS["python-tool/1"].parts() for call in part.calls}
    service = {call for part in SERVICE.parts() for call in part.calls}
    assert service - tool == {"bind", "listen", "connect", "socket", "socketpair"}
    assert tool < service


@pytest.mark.parametrize("family", range(46))
@pytest.mark.parametrize("call", ["socket", "socketpair"])
def test_only_three_socket_families(family: int, call: str) -> None:
    expected = "allow" if family in (1, 2, 10) else "EAFNOSUPPORT"
    table = table_of("python-service/1")
    assert table.verdict(call, [family]) == expected
    # The kernel reads 32 bits: the upper half must change nothing.
    assert table.verdict(call, [family | 1 << 32]) == expected


@pytest.mark.parametrize("bit", range(6, 32))
def test_a_family_with_a_high_bit_is_refused(bit: int) -> None:
    assert table_of("python-service/1").verdict("socket", [2 | 1 << bit]) == "EAFNOSUPPORT"


@pytest.mark.parametrize("request_name", ["TIOCSTI", "TIOCLINUX", "TIOCSETD"])
@pytest.mark.parametrize("high", [0, 1 << 32, 0xFFFFFFFF << 32])
def test_terminal_injection_is_refused_in_every_policy(request_name: str, high: int) -> None:
    for name in GROUPS:
        assert table_of(name).verdict("ioctl", [0, CONSTANTS[request_name] | high]) != "allow"


def test_harmless_ioctls_work() -> None:
    assert table_of("python-service/1").verdict("ioctl", [0, CONSTANTS["FIONBIO"]]) == "allow"


def test_threads_work_and_namespaces_kill() -> None:
    table = table_of("python-service/1")
    assert table.verdict("clone", [0x3D0F00]) == "allow"
    assert table.verdict("clone", [17]) == "allow"
    for name, value in CONSTANTS.items():
        if name.startswith("CLONE_NEW"):
            assert table.verdict("clone", [0x3D0F00 | value]) == "kill", name
    assert table.verdict("clone3") == "ENOSYS"


@pytest.mark.parametrize(
    "call",
    ["ptrace", "process_vm_readv", "bpf", "mount", "unshare", "setns", "kexec_load", "init_module",
     "keyctl", "userfaultfd", "perf_event_open", "open_by_handle_at", "pidfd_getfd", "iopl"],
)  # fmt: skip
def test_a_high_risk_call_kills(call: str) -> None:
    assert BASELINE is not None
    assert call in BASELINE.high_risk()
    for name in GROUPS:
        expected = "allow" if (name, call) == ("bpf-loader/1", "bpf") else "kill"
        assert table_of(name).verdict(call) == expected


@pytest.mark.parametrize("call", ["io_uring_setup", "clone3", "openat2", "memfd_create", "#999"])
def test_a_call_that_nobody_names_does_not_exist(call: str) -> None:
    assert table_of("python-service/1", "storage/1").verdict(call) == "ENOSYS"


def test_set_uid_modes_are_refused() -> None:
    table = table_of("storage/1")
    assert table.verdict("fchmod", [3, 0o600]) == "allow"
    assert table.verdict("fchmod", [3, 0o4755]) == "EPERM"
    assert table.verdict("fchmod", [3, 0o2755]) == "EPERM"


def free(*calls: str) -> TruthTable:
    """The baseline over a group that allows `calls` whatever their arguments."""
    assert BASELINE is not None
    group = Group("free/1", "why", (CallSet("a", "why", calls, "allow"),), ())
    return TruthTable(seccomp_spec([group], BASELINE))


@pytest.mark.parametrize(
    ("call", "mode"),
    [("chmod", 1), ("fchmod", 1), ("creat", 1), ("mkdir", 1), ("mknod", 1), ("open", 2),
     ("fchmodat", 2), ("#452", 2), ("mkdirat", 2), ("mknodat", 2), ("openat", 3)],
)  # fmt: skip
def test_no_group_can_allow_set_uid_modes(call: str, mode: int) -> None:
    table = free(call)
    for bits, verdict in ((0o755, "allow"), (0o4755, "EPERM"), (0o2755, "EPERM"), (0, "allow")):
        for high in (0, 1 << 32):
            assert table.verdict(call, [0] * mode + [bits | high]) == verdict, oct(bits)


@pytest.mark.parametrize(
    ("call", "allowed", "refused", "verdict"),
    [
        ("socket", [1, 1], [16, 3], "EAFNOSUPPORT"),  # netlink
        ("socket", [2, 1 | 0o2004000, 6], [2, 3 | 0o2000000, 255], "EAFNOSUPPORT"),  # raw
        ("socket", [1, 1], [1, 2], "EAFNOSUPPORT"),  # datagrams
        ("socket", [2, 1 | 0o4000], [2, 2 | 0o4000, 17], "EAFNOSUPPORT"),  # UDP
        ("socket", [2, 1, 0], [2, 10, 0], "EAFNOSUPPORT"),  # a packet socket in disguise
        ("socket", [10, 5], [2, 1, 262], "EAFNOSUPPORT"),  # MPTCP
        ("socketpair", [1, 1], [38, 1], "EAFNOSUPPORT"),  # kernel crypto
        ("personality", [0xFFFFFFFF], [0x0400000], "EPERM"),  # READ_IMPLIES_EXEC
        ("personality", [0], [0x0040000], "EPERM"),  # ADDR_NO_RANDOMIZE
        ("memfd_create", [0, 9], [0, 0x10], "EPERM"),  # MFD_EXEC
        ("memfd_create", [0, 8], [0, 1], "EPERM"),  # neither: the kernel would say executable
        ("mknod", [0, 0o010644], [0, 0o020644], "EPERM"),  # a FIFO; a character device
        ("mknodat", [0, 0, 0o140644], [0, 0, 0o060644], "EPERM"),  # a socket; a block device
        ("prctl", [15], [1], "EPERM"),  # PR_SET_PDEATHSIG
        ("prctl", [3], [22 | 1 << 32], "EPERM"),  # PR_SET_SECCOMP
        ("prctl", [66], [35], "EPERM"),  # PR_SET_MM
    ],
)
def test_no_group_can_go_beyond_the_baseline(
    call: str, allowed: list[int], refused: list[int], verdict: str
) -> None:
    table = free(call)
    assert table.verdict(call, allowed) == "allow"
    assert table.verdict(call, refused) == verdict


def test_a_group_that_allows_values_beyond_the_baseline_is_refused() -> None:
    assert BASELINE is not None
    only = ArgumentSet("x", "why", ("socket",), 0, (1, 16), ("AF_UNIX", "AF_X"), "EAFNOSUPPORT")
    with pytest.raises(ValueError, match="g/1 x allows socket with 0x10"):
        seccomp_spec([Group("g/1", "why", (), (only,))], BASELINE)


def test_a_limit_on_one_argument_hides_no_rule_on_another() -> None:
    """The value is refused at its own argument, though another argument may have it."""
    only = ArgumentSet("x", "why", ("ioctl",), 0, (3,), ("THREE",), "EPERM")
    never = ArgumentSet("y", "why", ("ioctl",), 1, (0x5412,), ("TIOCSTI",), "EPERM")
    groups = [Group("g/1", "why", (), (only,))]
    table = TruthTable(seccomp_spec(groups, Baseline(1, (), (), (never,))))
    assert table.verdict("ioctl", [3, 0x5412]) == "EPERM"
    assert table.verdict("ioctl", [3, 0x5413]) == "allow"


def test_no_shipped_group_allows_what_no_filter_can_read() -> None:
    """Flags, modes and addresses in memory, and rings that pass no filter."""
    never = {"clone3", "openat2", "mount_setattr", "io_uring_setup", "io_uring_enter", "seccomp"}
    for group in GROUPS.values():
        assert not never & {call for part in group.parts() for call in part.calls}, group.name


def test_prctl_cannot_loosen_anything() -> None:
    table = table_of("python-service/1")
    assert table.verdict("prctl", [CONSTANTS["PR_SET_NAME"]]) == "allow"
    for option in (1, 22, 24, 28, 35, 38, 47, 59, 65):  # PDEATHSIG, SECCOMP, CAPBSET_DROP, MM ...
        assert table.verdict("prctl", [option]) == "EPERM"


def test_groups_that_test_different_arguments_are_refused() -> None:
    def group(argument: int) -> Group:
        only = ArgumentSet("x", "why", ("fcntl",), argument, (1,), ("AF_UNIX",), "EPERM")
        return Group(f"g{argument}/1", "why", (), (only,))

    with pytest.raises(ValueError, match="different arguments of fcntl"):
        seccomp_spec([group(0), group(1)], Baseline(1, (), (), ()))


def test_two_groups_allow_the_union() -> None:
    table = table_of("unix-client/1", "python-service/1")
    assert table.verdict("socket", [2]) == "allow"
    assert table_of("unix-client/1").verdict("socket", [2]) == "EAFNOSUPPORT"
    assert table_of("unix-client/1").verdict("socket", [1]) == "allow"


def test_an_unconditional_allow_wins_over_a_conditional_one() -> None:
    free = Group("free/1", "why", (CallSet("a", "why", ("socket",), "allow"),), ())
    assert allowed_values([free, SERVICE]).keys() == {"socketpair", "prctl", "ioctl", "fcntl"}


@pytest.mark.parametrize(
    ("old", "new", "code", "field"),
    [
        ('["read"]', '["Read"]', "bad-value", "allow.calls"),
        ("version = 1", "version = 0", "out-of-range", "version"),
        ('name    = "x"', 'name    = "y"', "bad-file-name", "name"),
        ('["AF_UNIX"]', '["AF_MAGIC"]', "bad-value", "only.values"),
        ('"EPERM"', '"allow"', "bad-value", "only.otherwise"),
        ("argument  = 0", "argument  = 6", "out-of-range", "only.argument"),
        ('why     = "all"', 'why     = "all"\nextra = 1', "unknown-key", "extra"),
    ],
)
def test_a_mistake_in_a_group_is_named(
    tmp_path: Path, old: str, new: str, code: str, field: str
) -> None:
    text = """\
schema  = "anchorhold.group/1"
name    = "x"
version = 1
why     = "all"

[[allow]]
id    = "a"
why   = "b"
calls = ["read"]

[[only]]
id        = "c"
why       = "d"
calls     = ["socket"]
argument  = 0
values    = ["AF_UNIX"]
otherwise = "EPERM"
"""
    (tmp_path / "baseline.toml").write_bytes((SHIPPED / "baseline.toml").read_bytes())
    (tmp_path / "x.toml").write_text(text)
    assert load_groups(tmp_path)[2] == []
    assert old in text
    (tmp_path / "x.toml").write_text(text.replace(old, new, 1))
    groups, _, errors = load_groups(tmp_path)
    assert groups == {}
    assert (code, field) in [(error.code, error.field) for error in errors]


def test_without_a_baseline_nothing_compiles(tmp_path: Path) -> None:
    _, baseline, errors = load_groups(tmp_path)
    assert baseline is None
    assert [error.file for error in errors] == ["baseline.toml"]
