"""The rule files: every rule by its own examples, and what a rule file may not be."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from egress.harness import Proxy, Upstream
from proxy.__main__ import check_rules
from proxy.egress.guard import KeyGuard
from proxy.egress.keys import KeyRing
from proxy.egress.redaction import examples, rules
from proxy.egress.redaction.hold import HoldBack
from proxy.egress.redaction.linear import Linear
from proxy.egress.redaction.rules import Rule, RulesInvalid
from proxy.egress.redaction.scan import Scanner
from proxy.egress.redaction.stream import Channel
from proxy.egress.redaction.text import Masker

BOOK = rules.load()
SCANNER = Scanner(BOOK)
HOLD = HoldBack(BOOK)
GUARD = KeyGuard(KeyRing())
ALL = "strict"
RULE = """[group]
g = "a group"
[[rule]]
id = "a"
group = "g"
severity = "low"
why = "A test."
pattern = 'tok-[a-z0-9]{20}'
keywords = ["tok-"]
match = ["tok-{20:lower}"]
clean = ["tok-{10:lower}"]
"""


def scanned(text: str) -> list[tuple[str, str]]:
    return [
        (f.rule.id, text[f.start : f.end])
        for f in SCANNER.find(text, SCANNER.presets[ALL])
        if f.rule
    ]


def test_every_example_of_every_rule_does_what_it_says() -> None:
    assert list(examples.faults(Scanner(BOOK))) == []


def test_wrong_examples_are_faults(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text(RULE)
    assert list(examples.faults(Scanner(rules.load(tmp_path)))) == []
    file.write_text(RULE.replace("tok-{20:lower}", "tok-{19:lower}"))
    assert "match example 1" in next(examples.faults(Scanner(rules.load(tmp_path))))
    file.write_text(RULE.replace("tok-{10:lower}", "tok-{20:lower}"))
    assert "clean example 1" in next(examples.faults(Scanner(rules.load(tmp_path))))
    file.write_text(RULE.replace("tok-{20:lower}", "tok-{20:lower}.{30:lower}"))
    assert "as a whole" in next(examples.faults(Scanner(rules.load(tmp_path)))), "a run was left"


def test_examples_are_the_same_every_time_and_look_random() -> None:
    text, runs = examples.expand("a {20:alnum} {4:hex} {64:HEX}")
    assert examples.expand("a {20:alnum} {4:hex} {64:HEX}") == (text, runs)
    assert [len(run) for run in runs] == [20, 4, 64] and text == f"a {' '.join(runs)}"
    assert text != examples.expand("b {20:alnum} {4:hex} {64:HEX}")[0].replace("b", "a", 1)
    with pytest.raises(RulesInvalid, match="alphabet"):
        examples.expand("{20:runes}")


def test_no_rule_file_holds_what_a_rule_masks() -> None:
    """Other scanners shall stay quiet about this tree: what is random is made when it is needed."""
    for path in rules.FOLDER.glob("1*.toml"):
        assert [rule for rule, _ in scanned(path.read_text())] == [], path.name


def test_there_are_enough_kinds_and_each_says_why() -> None:
    secrets = [rule for rule in BOOK.rules if rule.group == "secret"]
    assert len(secrets) >= 220
    for rule in BOOK.rules:
        assert rule.why.endswith(".") and rule.group in BOOK.groups
    assert set(Counter(rule.severity for rule in secrets)) == {"low", "medium", "high", "critical"}


@pytest.mark.parametrize("part", range(8))
def test_examples_are_masked_in_a_stream_as_in_a_finished_text(part: int) -> None:
    for rule in BOOK.rules[part::8]:
        for example in rule.match:
            text, runs = examples.expand(example)
            passed = _streamed(f"See: {text} and more.", rule)
            for run in runs:
                if len(run) >= 8:
                    assert run not in passed, f"{rule.id}: {example}"


def _streamed(text: str, rule: Rule) -> str:
    alone = examples.alone(BOOK, rule.group)
    channel = Channel(Masker(SCANNER, GUARD, alone), HOLD)
    return "".join(channel.feed(text[n : n + 4]) for n in range(0, len(text), 4)) + channel.flush()


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('severity = "low"', "", "severity"),
        ('severity = "low"', 'severity = "mild"', "severity"),
        ('why = "A test."', "", "why"),
        ('match = ["tok-{20:lower}"]', "", "match"),
        ('clean = ["tok-{10:lower}"]', "clean = []", "clean"),
        ('g = "a group"', "", "described nowhere"),
        ("pattern", 'name = "x"\npattern', "value is missing"),
        ('id = "a"', 'id = "A b"', "id"),
        ("[[rule]]", "[[rules]]", "unknown table rules"),
    ],
)
def test_incomplete_rule_is_refused(tmp_path: Path, old: str, new: str, says: str) -> None:
    (tmp_path / "x.toml").write_text(RULE)
    assert rules.load(tmp_path).rules[0].id == "a", "the control"
    (tmp_path / "x.toml").write_text(RULE.replace(old, new))
    with pytest.raises(RulesInvalid, match=says):
        rules.load(tmp_path)


def test_rules_of_several_folders_are_one_book_and_no_id_is_used_twice(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(RULE)
    both = rules.load(rules.FOLDER, tmp_path)
    assert len(both.rules) == len(BOOK.rules) + 1 and both.rules[-1].id == "a"
    with pytest.raises(RulesInvalid, match="called a"):
        rules.load(tmp_path, tmp_path)


NAMED = """[[rule]]
id = "b"
group = "g"
severity = "low"
why = "A test."
name = "acme"
value = "[a-z0-9]{20}"
match = ['acmeKey := "{20:lower}"', "<acmeToken>{20:lower}</acmeToken>"]
clean = ["acme {20:lower}"]
"""
BORDERS = (("", ""), ("(", ")"), ("x", ""), ("", "x"), ("-", "-"))


def test_rule_of_another_folder_finds_what_it_would_as_ours(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(RULE)
    (tmp_path / "y.toml").write_text(NAMED)
    book = rules.load(tmp_path)
    assert isinstance(book.rules[0].confirm, Linear) and isinstance(book.rules[1].confirm, Linear)
    assert list(examples.faults(Scanner(book))) == []
    text, _ = examples.expand("tok-{20:lower}")
    found = [book.rules[0].confirm.search(f"{before}{text}{behind}") for before, behind in BORDERS]
    assert [match is not None for match in found] == [True, True, False, False, True]
    second = book.rules[0].confirm.search(f"{text} {text}", 1)
    assert second and second.start() == 25 and second[0] == text


@pytest.mark.parametrize("careless", ["(a+)+b", "(?:a|aa)+b", "(a|a?)+b"])
def test_careless_expression_of_another_folder_cannot_stop_the_proxy(
    tmp_path: Path, careless: str
) -> None:
    """E38: on `re` each of these would take longer than anybody waits."""
    (tmp_path / "x.toml").write_text(
        RULE.replace("tok-[a-z0-9]{20}", f"k{careless}")
        .replace("tok-{20:lower}", "kaaaaaaaab")
        .replace("tok-{10:lower}", "kaaaaaaaac")
        .replace('"tok-"', '"k"')
    )
    book = rules.load(tmp_path)
    assert list(examples.faults(Scanner(book))) == []
    began = time.process_time()
    assert book.rules[0].confirm.search("k" + "a" * 20_000 + "c") is None
    assert time.process_time() - began < 10, "a guard against hanging, no measure of speed"


@pytest.mark.parametrize(
    ("pattern", "says"), [("(?<=x)tok", "invalid perl operator"), (r"(tok)\\1", "invalid")]
)
def test_expression_that_cannot_be_linear_is_refused(
    tmp_path: Path, pattern: str, says: str
) -> None:
    (tmp_path / "x.toml").write_text(RULE.replace("'tok-[a-z0-9]{20}'", f'"{pattern}"'))
    with pytest.raises(RulesInvalid, match=says):
        rules.load(tmp_path)


def test_rules_of_the_host_add_to_ours_and_may_not_contradict_their_examples(
    start: Callable[..., Proxy], upstream: Upstream
) -> None:
    own = RULE.replace('g = "a group"', 'g = "a group"\n[class]\nstandard = ["g"]')
    proxy = start(config={"rules": {"own.toml": own}})
    proxy.listen()
    proxy.unlock()
    secret, _ = examples.expand("tok-{20:lower}")
    assert proxy.ask(f"use {secret}").status == 200
    assert secret not in upstream.seen[-1].raw.decode()
    assert "use [REDACTED:a]" in upstream.seen[-1].raw.decode()
    wrong = own.replace('clean = ["tok-{10:lower}"]', 'clean = ["tok-{20:lower}"]')
    proxy = start(config={"rules": {"own.toml": wrong}})
    assert proxy.process.wait(30) == 1
    assert b"a: clean example 1 is masked" in proxy.close()


def test_own_rules_are_checked_before_they_are_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "own.toml"
    file.write_text(RULE)
    assert check_rules([str(file)]) == 0
    file.write_text(RULE.replace("{10:lower}", "{20:lower}"))
    assert check_rules([str(file)]) == 1
    assert "a: clean example 1 is masked" in capsys.readouterr().err
    assert check_rules([str(tmp_path / "absent.toml")]) == 1


def test_rules_that_say_so_have_three_digits_in_a_row_in_every_example() -> None:
    said = [rule for rule in BOOK.rules if rule.digits]
    assert len(said) > 20
    for rule in said:
        for example in rule.match:
            text, _ = examples.expand(example)
            assert re.search(r"[0-9][ ./()-]?[0-9][ ./()-]?[0-9]", text), rule.id
