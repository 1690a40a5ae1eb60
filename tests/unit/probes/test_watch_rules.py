"""Rules and their bytes, the source the loader makes, and the tables of names."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from probes import headers, layout, load
from probes.btf import Btf
from probes.errors import ProbeError
from probes.events import Verdict
from probes.maps import encode_rules
from probes.rules import WatchRules
from probes.syscalls import NAMES, name


def _rules(**over: object) -> WatchRules:
    fields: dict[str, object] = {
        "allowed": frozenset({0, 1}),
        "high_risk": frozenset({1, 101}),
        "on_high_risk": "stop",
        "on_unseen": "alert",
        "denials": True,
    }
    return WatchRules(**(fields | over))  # type: ignore[arg-type] - the point of some tests


def test_rules_become_one_byte_per_call() -> None:
    table, unseen, high_risk, denials = layout.RULES.unpack(encode_rules(_rules()))
    assert (table[0], table[101], table[2]) == (layout.ALLOWED, layout.HIGH_RISK, layout.UNSEEN)
    assert table[1] == layout.ALLOWED  # what the policy allows is quiet, high risk or not
    assert (unseen, high_risk, denials) == (Verdict.ALERT, Verdict.STOP, 1)
    assert sum(1 for byte in table if byte) == 3


@pytest.mark.parametrize(
    "over",
    [
        {"on_high_risk": "ignore"},
        {"on_unseen": "kill"},
        {"allowed": frozenset({512})},
        {"high_risk": frozenset({-1})},
    ],
)
def test_rules_refuse_what_the_kernel_tables_cannot_hold(over: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"on_high_risk|on_unseen|outside"):
        _rules(**over)


def test_the_source_has_every_number_it_asks_for() -> None:
    text = load.source(load.Config(2, True, Path("/x")), {"OFF_TGID": 1268})
    assert "#define LEVEL 2" in text
    assert "#define OFF_TGID 1268" in text
    assert "#define OFF_ID 0" in text
    for number in layout.DENIALS.values():
        assert f"case -{number}: bit" in text


def _config(**over: object) -> bytes:
    return json.dumps({"level": 2, "denials": False, "pins": "/p"} | over).encode()


def test_a_good_configuration_is_taken() -> None:
    assert load.parse_config(_config()) == load.Config(2, False, Path("/p"))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"[]",
        b'{"level": 2}',
        _config(level=0),
        _config(level=True),
        _config(level=33),
        _config(denials=1),
        _config(more=1),
    ],
)
def test_a_wrong_configuration_is_refused(data: bytes) -> None:
    with pytest.raises(ProbeError) as refused:
        load.parse_config(data)
    assert refused.value.code == "bad_config"


def _btf() -> bytes:
    """struct inner { a; }, struct outer { b; union { const struct inner; }; c at bit 65 }."""
    names = b"\0int\0inner\0a\0outer\0b\0c\0alias\0"
    at = {word: names.index(b"\0" + word + b"\0") + 1 for word in names.split(b"\0") if word}
    types = struct.pack("<IIII", at[b"int"], 1 << 24, 4, 32)  # 1
    types += struct.pack("<III", at[b"inner"], 4 << 24 | 1, 4)  # 2
    types += struct.pack("<III", at[b"a"], 1, 32)
    types += struct.pack("<III", 0, 10 << 24, 2)  # 3: const inner
    types += struct.pack("<III", at[b"alias"], 8 << 24, 3)  # 4: typedef
    types += struct.pack("<III", at[b"outer"], 4 << 24 | 3, 16)  # 5
    types += struct.pack("<III", at[b"b"], 1, 0)
    types += struct.pack("<III", 0, 4, 64)
    types += struct.pack("<III", at[b"c"], 1, 65)
    head = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(names))
    return head + types + names


def test_btf_offsets_reach_into_members_without_a_name() -> None:
    btf = Btf(_btf())
    assert btf.offset("outer", "b") == 0
    assert btf.offset("outer", "a") == 12
    assert btf.offset("inner", "a") == 4
    assert btf.offset("outer", "c") is None  # not at a byte
    assert btf.offset("outer", "nothing") is None
    assert btf.offset("nothing", "a") is None


@pytest.mark.parametrize("data", [b"", b"\x9f\xeb\1\0", bytes(64), _btf()[:60]])
def test_broken_btf_is_an_error_of_ours(data: bytes) -> None:
    with pytest.raises(ProbeError) as refused:
        Btf(data)
    assert refused.value.code == "bad_btf"


def _install(root: Path, release: str, split: bool = False) -> None:
    modules = root / "lib/modules" / release
    modules.mkdir(parents=True)
    for link, flavour in (("build", "amd64"), ("source", "common")):
        tree = root / "usr/src" / f"linux-headers-{release}-{flavour if split else 'one'}"
        (tree / "include").mkdir(parents=True, exist_ok=True)
        if link == "build" or split:
            (modules / link).symlink_to(tree)


def test_no_headers_is_an_error_with_the_package(tmp_path: Path) -> None:
    _install(tmp_path, "6.1.0-9", split=True)
    modules = tmp_path / "lib/modules"
    assert headers.linked("6.1.0-9", modules).build.endswith("amd64")
    with pytest.raises(ProbeError) as refused:
        headers.linked("1", modules)
    assert refused.value.code == "no_headers"
    assert "linux-headers" in refused.value.fix


def test_names_agree_with_the_system_headers() -> None:
    path = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
    if not path.exists():
        pytest.skip("linux-libc-dev is not installed")
    for line in path.read_text().splitlines():
        if line.startswith("#define __NR_"):
            word, number = line.removeprefix("#define __NR_").split()
            assert name(int(number)) == word
    assert name(400) == "#400"
    assert len(set(NAMES.values())) == len(NAMES)
