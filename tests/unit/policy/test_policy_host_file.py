"""The host file: strict, with positions, and whole or not at all."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from supervisor.host import Host, load_host, parse_host
from supervisor.policy.errors import PolicyErrors
from supervisor.policy.wiring import egress_config


@pytest.fixture
def text(shipped: Path) -> str:
    return (shipped / "hosts" / "demo.toml").read_text()


def test_the_shipped_host_waives_by_name(host: Host) -> None:
    assert host.waived(date(2026, 12, 1)) == {
        "cgroup:memory",
        "cgroup:pids",
        "cgroup:cpu",
        "cgroup:io",
        "software-tpm",
    }
    assert all(waiver.why for waiver in host.waivers)
    practice = host.upstream("practice")
    assert practice is not None
    assert (practice.scheme, practice.workload, practice.port) == ("http", "model.practice", 8000)
    assert host.upstream("other") is None


def test_an_expired_waiver_waives_nothing(text: str) -> None:
    old = 'guarantee = "cgroup:pids"\n'
    host = parse_host(text.replace(old, old + "expires = 2026-01-31\n").encode())
    assert "cgroup:pids" in host.waived(date(2026, 1, 31))
    assert "cgroup:pids" not in host.waived(date(2026, 2, 1))


def test_a_vault_is_bound_to_the_pcrs_that_are_named(text: str) -> None:
    assert parse_host(text.encode()).tpm.pcrs == (7,)
    more = parse_host(text.replace('mode = "auto"', 'mode = "device"\npcrs = [11, 7]').encode())
    assert (more.tpm.mode, more.tpm.pcrs) == ("device", (7, 11))


def test_signed_policies_are_demanded_by_name(text: str) -> None:
    assert not parse_host(text.encode()).signed
    assert parse_host((text + "\n[policy]\nsigned = true\n").encode()).signed
    for wrong in ('signed = "yes"', "signd = true"):
        with pytest.raises(PolicyErrors, match=r"policy\.sign"):
            parse_host((text + f"\n[policy]\n{wrong}\n").encode())


def test_a_foreign_upstream_is_https(text: str) -> None:
    added = '\n[[upstream]]\nname = "real"\nhost = "api.example.org"\ncredential = "real"\n'
    real = parse_host((text + added).encode()).upstream("real")
    assert real is not None
    assert (real.scheme, real.host, real.port, real.path) == (
        "https",
        "api.example.org",
        443,
        "/v1",
    )


def test_a_provider_brings_its_path_and_the_place_of_its_key(text: str) -> None:
    added = """
[[upstream]]
name = "claude"
provider = "anthropic"
host = "api.anthropic.com"
credential = "claude"

[[upstream]]
name = "local"
provider = "ollama"
host = "box.lan"
addresses = ["192.168.1.0/24"]
scheme = "http"
port = 11434
"""
    host = parse_host((text + added).encode())
    claude, local = host.upstream("claude"), host.upstream("local")
    assert claude is not None and local is not None
    assert (claude.path, claude.header, claude.prefix) == ("/v1", "x-api-key", "")
    assert (local.scheme, local.path, local.credential) == ("http", "/api", None)
    sent = {entry["provider"] for entry in egress_config({}, host)["upstreams"].values()}
    assert sent == {"openai-compatible", "anthropic", "ollama"}


@pytest.mark.parametrize(
    ("lines", "field"),
    [
        ('host = "h.example"\ncredential = "x"\nscheme = "http"', "upstream.scheme"),
        ('workload = "a.b"\nport = 80\nscheme = "https"', "upstream.scheme"),
        ('host = "h.example"', "upstream.credential"),
        ('host = "h.example"\ncredential = "x"\nprovider = "nobody"', "upstream.provider"),
    ],
)
def test_an_upstream_without_key_or_tls_is_a_near_one(text: str, lines: str, field: str) -> None:
    with pytest.raises(PolicyErrors) as raised:
        parse_host(f'{text}\n[[upstream]]\nname = "x"\n{lines}\n'.encode())
    assert field in [error.field for error in raised.value.errors]


@pytest.mark.parametrize(
    ("old", "new", "code", "field"),
    [
        ('app      = "/usr', 'app      = "usr', "bad-value", "paths.app"),
        ('run      = "/run/', 'run      = "/run/../', "bad-value", "paths.run"),
        ("base = 1879050000", "base = 0", "out-of-range", "ids.base"),
        ('mode = "auto"', 'mode = "maybe"', "bad-value", "tpm.mode"),
        ('mode = "auto"', 'mode = "auto"\npcrs = []', "bad-value", "tpm.pcrs"),
        ('mode = "auto"', 'mode = "auto"\npcrs = [7, 24]', "bad-value", "tpm.pcrs"),
        ('mode = "auto"', 'mode = "auto"\npcrs = [7, 7]', "bad-value", "tpm.pcrs"),
        ('mode = "auto"', 'mode = "auto"\npcrs = [true]', "bad-value", "tpm.pcrs"),
        ('"127.0.0.1:8443"\norigins', '"127.0.0.999:8443"\norigins', "bad-value", "gateway.listen"),
        ('"127.0.0.1:8443"\norigins', '"127.0.0.1:0"\norigins', "bad-value", "gateway.listen"),
        ('["http://127.0.0.1:8443"]', '["*"]', "bad-value", "gateway.origins"),
        ('"cgroup:memory"', '"everything"', "bad-value", "waive.guarantee"),
        ('"cgroup:memory"', '"cgroup:pids"', "duplicate-id", "waive.guarantee"),
        ('workload   = "model.practice"', 'host = "h"\nworkload = "m"',
         "one-target", "upstream.workload"),
        ("port       = 8000\n", "", "missing-key", "upstream.port"),
        ("[tpm]", "[tpn]", "unknown-table", "tpn"),
        ("[gateway]", "[gateway]\ncolour = 1", "unknown-key", "gateway.colour"),
    ],
)  # fmt: skip
def test_a_mistake_is_named(text: str, old: str, new: str, code: str, field: str) -> None:
    assert old in text
    broken = text.replace(old, new, 1)
    with pytest.raises(PolicyErrors) as raised:
        parse_host(broken.encode(), "demo.toml")
    assert (code, field) in [(error.code, error.field) for error in raised.value.errors]
    assert all(error.line > 0 and error.file == "demo.toml" for error in raised.value.errors)


def test_a_missing_host_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(PolicyErrors, match=r"none\.toml: cannot open"):
        load_host(tmp_path / "none.toml")


def test_a_file_that_cannot_be_read_is_named_in_full_and_has_no_line(tmp_path: Path) -> None:
    missing = tmp_path / "none.toml"
    for path, reason in ((missing, f"cannot open {missing}: No such file"), (tmp_path, "regular")):
        with pytest.raises(PolicyErrors) as caught:
            load_host(path)
        (error,) = caught.value.errors
        assert str(path) in str(error) and reason in str(error)
        assert str(error).startswith(f"{path.name}: ")
        assert error.line == 0
