"""Workload output: masked, stamped, bounded, and never in anybody's way."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.egress.guard import KeyGuard
from proxy.egress.keys import KeyRing
from proxy.egress.logs import LINE_MAX, LogPump
from proxy.egress.redaction import rules
from proxy.egress.redaction.hold import HoldBack
from proxy.egress.redaction.scan import Scanner

from .harness import KEY, Proxy
from .samples import SECRETS


class Output:
    """One workload's stdout and the file it ends up in."""

    def __init__(self, proxy: Proxy, folder: Path, log: str | None = None) -> None:
        self.path = folder / "workload.log"
        self.proxy = proxy
        read, self.write_end = os.pipe()
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        fd = os.open(log or self.path, flags, 0o600)
        assert proxy.command({"op": "log", "workload": "adapter.rest"}, read, fd) == 0
        os.close(read)
        os.close(fd)

    def write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self.write_end, data) :]

    def end(self) -> None:
        if self.write_end >= 0:
            os.close(self.write_end)
            self.write_end = -1

    def lines(self, count: int) -> list[str]:
        """The lines without their stamps, once there are `count` of them."""

        def split() -> list[str]:
            return self.path.read_text().splitlines() if self.path.exists() else []

        self.proxy.wait_for(lambda: len(split()) >= count)
        return [line.partition(" ")[2] for line in split()]


@pytest.fixture
def output(proxy: Proxy, tmp_path: Path) -> Iterator[Output]:
    made = Output(proxy, tmp_path)
    yield made
    made.end()


def test_lines_are_stamped_and_secrets_masked(output: Output) -> None:
    output.write(f"start\nkey {SECRETS['openai-key']} and {KEY}\n".encode())
    output.write(b"mail jane@example.org\n")
    assert output.lines(3) == [
        "start",
        "key [REDACTED:openai-key] and [REDACTED:live-key]",
        "mail [REDACTED:email-address]",
    ]
    for line in output.path.read_text().splitlines():
        assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z ", line)


def test_line_split_over_writes_is_one_line(output: Output) -> None:
    for byte in f"a {SECRETS['github-token']} b\n".encode():
        output.write(bytes([byte]))
    assert output.lines(1) == ["a [REDACTED:github-token] b"]


def test_key_block_over_many_lines_is_masked(output: Output) -> None:
    output.write(f"before\n{SECRETS['private-key']}\nafter\n".encode())
    assert output.lines(3) == ["before", "[REDACTED:private-key]", "after"]


def test_many_lines_at_once_stay_lines_each_masked_where_it_must(output: Output) -> None:
    """Lines are masked together, which is cheaper; it must not show."""
    secret = SECRETS["github-token"]
    lines = [f"line {n} {secret if n % 7 == 0 else 'plain'} end" for n in range(200)]
    lines[50] = ""
    output.write(("\n".join(lines) + "\n").encode())
    assert output.lines(200) == [line.replace(secret, "[REDACTED:github-token]") for line in lines]


def test_long_line_is_cut_and_the_next_is_whole(output: Output) -> None:
    output.write(b"x " * 50_000 + b"\nnext\n")
    first, second = output.lines(2)
    assert len(first) <= 16 * 1024 + len(" [cut]") and first.endswith("[cut]")
    assert second == "next"


def test_control_characters_cannot_forge_a_line(output: Output) -> None:
    output.write("a\rb\x1b[31m\u202ec\u2028d\n".encode() + b"\xff\n")
    assert output.lines(2) == ["a\\rb\\x1b[31m\\u202ec\\u2028d", "\\xff"]


def test_last_line_without_newline_is_kept(output: Output) -> None:
    output.write(b"the end")
    output.end()
    assert output.lines(1) == ["the end"]


def test_flood_is_dropped_and_counted(proxy: Proxy, output: Output) -> None:
    output.write((b"y" * 999 + b"\n") * 4000)
    output.end()
    proxy.wait_for(lambda: bool(proxy.records("log")), 10)
    record = proxy.records("log")[-1]
    assert record["reason"] == "flood" and record["workload"] == "adapter.rest"
    assert proxy.ask("others go on").status == 200
    assert "lines dropped: flood" in output.path.read_text()
    assert output.path.stat().st_size < 3_000_000


def test_flood_of_empty_lines_is_dropped_and_counted_and_stops_nobody(
    proxy: Proxy, output: Output
) -> None:
    before = len(proxy.records("log"))
    output.write(b"\n" * 200_000)
    assert proxy.ask("others go on").status == 200
    output.end()

    def figures() -> tuple[int, int]:
        lost = sum(record["lines"] for record in proxy.records("log")[before:])
        return lost, output.path.read_text().count("\n")

    proxy.wait_for(lambda: sum(figures()) >= 200_000, 20)
    lost, kept = figures()
    assert lost > 1000 and kept > 1000
    assert lost + kept <= 200_010, "each line is written or counted; a few are notes"


def test_one_turn_is_short_whatever_was_read(tmp_path: Path) -> None:
    """Work is handed out in turns: between two, other callbacks of the loop run."""

    async def run() -> list[int]:
        read, write = os.pipe()
        log = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        book = rules.load()
        guard = KeyGuard(KeyRing())
        scanner = Scanner(book)
        pump = LogPump("w", read, log, scanner, guard, HoldBack(book), lambda *_: None)
        pump.start()
        os.write(write, b"\n" * 4000)
        os.close(write)
        sizes = [0]
        while pump.open:
            await asyncio.sleep(0)
            sizes.append((tmp_path / "log").read_bytes().count(b"\n"))
        return sizes

    sizes = asyncio.run(run())
    assert sizes[-1] == 4000
    assert max(after - before for before, after in itertools.pairwise(sizes)) <= 64


@pytest.mark.parametrize("ending", ["\n", ""])
@pytest.mark.parametrize("secret", [KEY, SECRETS["openai-key"]])
def test_secret_across_the_cut_leaves_no_head(output: Output, secret: str, ending: str) -> None:
    for shown in (4, 12, len(secret) - 1):
        filler = "word " * 4000
        output.write(f"{filler[: LINE_MAX - shown - 1]} {secret} and more\n".encode())
    output.write(f"{secret}{ending}".encode())
    output.end()
    *cut, last = output.lines(4)
    for line in cut:
        assert line.endswith("[cut]") and secret[:4] not in line
        assert len(line) > LINE_MAX - 100
    assert last in ("[REDACTED:live-key]", "[REDACTED:openai-key]")


def test_full_disk_is_counted_and_blocks_nobody(proxy: Proxy, tmp_path: Path) -> None:
    output = Output(proxy, tmp_path, "/dev/full")
    output.write(b"one\ntwo\n")
    output.end()
    proxy.wait_for(lambda: any(r["reason"] == "disk_full" for r in proxy.records("log")))
    lost = [r["lines"] for r in proxy.records("log") if r["reason"] == "disk_full"]
    assert sum(lost) == 2
    assert proxy.ask("x").status == 200
