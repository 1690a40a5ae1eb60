"""Bad input: each class names file, line and field, and yields no policy."""

from __future__ import annotations

from pathlib import Path

import pytest

from supervisor.policy.model import File, Syscalls
from supervisor.policy.parse import load_directory, parse_policy

# (what is replaced, by what, code, line, field)
MISTAKES = [
    ("unknown key", "version   = 1", 'version   = 1\ncolour = "red"', "unknown-key", 5, "colour"),
    ("unknown key in a rule", 'why  = "The program"', 'why  = "x"\nnote = "y"',
     "unknown-key", 14, "allow.note"),
    ("unknown key in a permission", 'access = ["read", "exec"] }', 'access = ["read"], mode = 7 }',
     "unknown-key", 14, "allow.file.mode"),
    ("unknown table", "[limits]", "[bounds]", "unknown-table", 21, "bounds"),
    ("single brackets for a list", "[[claim]]", "[claim]", "unknown-table", 27, "claim"),
    ("number as text", "version   = 1", 'version   = "1"', "wrong-type", 4, "version"),
    ("truth value as a number", "version   = 1", "version   = true", "wrong-type", 4, "version"),
    ("text as a list", '["seccomp"]', '"seccomp"', "wrong-type", 9, "requires"),
    ("date in quotes", "2099-01-01", '"2099-01-01"', "wrong-type", 6, "review_by"),
    ("date with a time", "2099-01-01", "2099-01-01T00:00:00", "wrong-type", 6, "review_by"),
    ("missing owner", 'owner     = "someone@example.org"\n', "", "missing-key", 1, "owner"),
    ("missing why", 'why  = "The program"\n', "", "missing-key", 11, "allow.why"),
    ("empty why", '"The program"', '""', "bad-value", 13, "allow.why"),
    ("unknown schema", "policy/1", "policy/9", "bad-value", 1, "schema"),
    ("unknown kind", '"tool"', '"demon"', "bad-value", 3, "kind"),
    ("id that names a path", '"tool.echo"', '"../echo"', "bad-value", 2, "id"),
    ("id with a newline", '"tool.echo"', '"tool.echo\\n"', "bad-value", 2, "id"),
    ("id with a NUL", '"tool.echo"', '"tool.\\u0000echo"', "bad-value", 2, "id"),
    ("id that is dots", '"tool.echo"', '".."', "bad-value", 2, "id"),
    ("id with a leading dash", '"tool.echo"', '"-rf"', "bad-value", 2, "id"),
    ("id without end", '"tool.echo"', f'"tool.{"x" * 300}"', "bad-value", 2, "id"),
    ("id a letter too long", '"tool.echo"', f'"tool.{"x" * 59}"', "bad-value", 2, "id"),
    ("id as long as may be, of another file", '"tool.echo"', f'"tool.{"x" * 58}"',
     "bad-file-name", 2, "id"),
    ("id that is a file of cgroups, which is a name like others", '"tool.echo"', '"cgroup.procs"',
     "bad-file-name", 2, "id"),
    ("id of another file", '"tool.echo"', '"tool.other"', "bad-file-name", 2, "id"),
    ("unknown requirement", '["seccomp"]', '["magic"]', "bad-value", 9, "requires"),
    ("not ASCII", "The program", "The pr\u043egram", "not-ascii", 13, "-"),
    ("carriage return", "version   = 1\n", "version   = 1\r\n", "not-ascii", 4, "-"),
    ("tab", "version   = 1", "version\t= 1", "not-ascii", 4, "-"),
    ("NUL", "The program", "The\0program", "not-ascii", 13, "-"),
    ("duplicate key", "version   = 1", "version   = 1\nversion = 2", "not-toml", 5, "-"),
    ("half a file", "[limits]", "[limits", "not-toml", 21, "-"),
    ("duplicate id", 'id       = "calls"', 'id       = "program"', "duplicate-id", 17, "allow.id"),
    ("a claim with a rule's id", '"no-passwords"', '"calls"', "duplicate-id", 28, "claim.id"),
    ("key that would join a table", '[limits]\nmemory = "64MiB"\n',
     '[limits]\nmemory = "64MiB"\n\npids = 4\n', "stray-key", 24, "limits.pids"),
    ("indented key", "version   = 1", "  version = 1", "not-plain", 4, "-"),
    ("quoted key", "version   = 1", '"version" = 1', "not-plain", 4, "-"),
    ("dotted key", "version   = 1", "version   = 1\nrun.more = 1", "not-toml", 9, "-"),
    ("multi-line text", '"Answers what it is asked"', '"""Answers\nmore"""',
     "not-plain", 7, "-"),
    ("two permissions in one block", 'file = {', 'group = "tss"\nfile = {',
     "one-permission", 11, "allow"),
    ("no permission in a block", 'syscalls = { group = "python-tool/1" }\n', "",
     "one-permission", 16, "allow"),
    ("a misspelt permission", "syscalls = {", "syscall  = {", "unknown-key", 19, "allow.syscall"),
    ("writable host file", '["read", "exec"]', '["read", "write"]',
     "bad-value", 14, "allow.file.access"),
    ("unknown access", '["read", "exec"]', '["look"]', "bad-value", 14, "allow.file.access"),
    ("access named twice", '["read", "exec"]', '["read", "read"]',
     "duplicate-value", 14, "allow.file.access"),
    ("path with dots", '"/usr/bin/echo", access', '"/usr/../etc/shadow", access',
     "bad-value", 14, "allow.file.path"),
    ("pattern in a path", '"/usr/bin/echo", access', '"/usr/bin/ec*o", access',
     "bad-value", 14, "allow.file.path"),
    ("the whole root", '"/usr/bin/echo", access', '"/**", access',
     "bad-value", 14, "allow.file.path"),
    ("another process's files", '"/usr/bin/echo", access', '"/proc/1/environ", access',
     "bad-value", 14, "allow.file.path"),
    ("group without a version", "python-tool/1", "python-tool",
     "bad-value", 19, "allow.syscalls.group"),
    ("capability outside a service", 'syscalls = { group = "python-tool/1" }',
     'capabilities = { names = ["bpf"] }', "services-only", 19, "allow.capabilities"),
    ("descriptor outside a service", 'syscalls = { group = "python-tool/1" }',
     'service = "broker"', "services-only", 19, "allow.service"),
    ("size without a unit", '"64MiB"', '"64"', "bad-value", 22, "limits.memory"),
    ("size as a number", '"64MiB"', "64", "wrong-type", 22, "limits.memory"),
    ("unknown answer", '"record"', '"shrug"', "bad-value", 25, "watch.on_unseen"),
    ("relative program", '["/usr/bin/echo"]', '["echo"]', "bad-value", 8, "run.command"),
    ("empty command", '["/usr/bin/echo"]', "[]", "wrong-type", 8, "run.command"),
    ("a port the kernel keeps", 'syscalls = { group = "python-tool/1" }',
     'listen = { port = 80, through = "egress" }', "out-of-range", 19, "allow.listen.port"),
    ("every host, unasked", 'syscalls = { group = "python-tool/1" }', 'net = { host = "*" }',
     "bad-value", 19, "allow.net.host"),
    ("an empty claim", 'never = { file = { path = "/etc/**", access = ["read"] } }', "never = { }",
     "one-permission", 29, "claim.never"),
]  # fmt: skip


def test_the_valid_policy_is_valid(valid: str) -> None:
    policy, errors = parse_policy(valid.encode(), "tool-echo.toml")
    assert not errors
    assert policy is not None
    assert [rule.id for rule in policy.allow] == ["program", "calls"]
    assert [rule.line for rule in policy.allow] == [11, 16]
    assert policy.allow[0].permission == File("/usr/bin/echo", False, ("read", "exec"))
    assert policy.allow[1].permission == Syscalls("python-tool/1")
    assert policy.limits.memory == 64 << 20
    assert policy.watch.on_high_risk == "stop"


@pytest.mark.parametrize(
    ("old", "new", "code", "line", "field"),
    [case[1:] for case in MISTAKES],
    ids=[case[0] for case in MISTAKES],
)
def test_a_mistake_is_named_with_its_place(
    valid: str, errors_of, old: str, new: str, code: str, line: int, field: str
) -> None:
    assert valid.count(old) >= 1
    errors = errors_of(valid.replace(old, new, 1))
    found = [(error.code, error.line, error.field) for error in errors]
    assert (code, line, field) in found
    assert all(error.file == "tool-echo.toml" and error.fix for error in errors)
    assert str(errors[0]).startswith(f"tool-echo.toml:{errors[0].line}:")


def test_all_mistakes_are_named_at_once(valid: str, errors_of) -> None:
    text = valid.replace('"tool"', '"demon"').replace('"64MiB"', '"64"').replace("seccomp", "magic")
    assert {error.field for error in errors_of(text)} == {"kind", "limits.memory", "requires"}


def test_a_rule_error_names_the_rule(valid: str, errors_of) -> None:
    (error,) = errors_of(valid.replace('/usr/bin/echo", access', '/home/x", access'))
    assert error.rule == "program"
    assert "[rule program]" in str(error)


def test_a_file_that_is_too_long_is_not_parsed(valid: str, errors_of) -> None:
    (error,) = errors_of(valid + "# " + "x" * 70000)
    assert error.code == "too-long"


def test_deeply_nested_input_is_an_error_not_a_crash(errors_of) -> None:
    errors = errors_of("schema = " + "[" * 20000)
    assert [error.code for error in errors] == ["not-toml"]


def test_one_broken_file_stops_only_itself(valid: str, tmp_path: Path) -> None:
    (tmp_path / "tool-echo.toml").write_text(valid)
    (tmp_path / "broken.toml").write_text(valid.replace("version   = 1", "version   = "))
    policies, errors = load_directory(tmp_path)
    assert [policy.id for policy in policies] == ["tool.echo"]
    assert [(error.file, error.line) for error in errors] == [("broken.toml", 4)]


@pytest.mark.parametrize("name", ["Echo.toml", "echo.toml.bak", ".echo.toml", "e cho.toml", "x"])
def test_a_bad_file_name_is_an_error(valid: str, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(valid)
    policies, errors = load_directory(tmp_path)
    assert not policies
    assert [(error.code, error.file) for error in errors] == [("bad-file-name", name)]


def test_a_link_and_a_pipe_are_not_policies(valid: str, tmp_path: Path) -> None:
    import os

    target = tmp_path / "elsewhere"
    target.mkdir()
    (target / "policy").write_text(valid)
    (tmp_path / "tool-echo.toml").symlink_to(target / "policy")
    os.mkfifo(tmp_path / "pipe.toml")
    policies, errors = load_directory(tmp_path)
    assert not policies
    assert {(error.code, error.file) for error in errors} == {
        ("unreadable", "tool-echo.toml"),
        ("unreadable", "pipe.toml"),
    }


def test_a_missing_directory_is_one_error(tmp_path: Path) -> None:
    policies, errors = load_directory(tmp_path / "none")
    assert not policies
    assert [error.code for error in errors] == ["unreadable"]
