"""[[redact]] blocks: what they mean to the proxy, who sees them, what is wrong with a bad one."""

from __future__ import annotations

import dataclasses
import json
import shutil
from datetime import date
from pathlib import Path

import pytest
from policy_rig import HOST, SHIPPED, changed, compiled, mistakes, with_change

from proxy.egress.config import parse as parse_config
from proxy.egress.redaction import rules
from proxy.egress.redaction.actions import Treatments
from supervisor.policy import redactions
from supervisor.policy.errors import PolicyError
from supervisor.policy.explain import explain, explain_json
from supervisor.policy.lint import exit_code, lint
from supervisor.policy.parse import parse_policy
from supervisor.policy.redactions import (
    RuleNamesInvalid,
    names,
    names_at,
    own_rules,
    plan_redactions,
    relaxed,
)
from supervisor.policy.wiring import egress_config

BLOCKS = """
[[redact]]
id      = "mail-addresses"
why     = "Contacts are worked with, and the model need not know them"
class   = "email"
action  = "pseudonymise"
restore = ["text", "tool-arguments"]

[[redact]]
id     = "tokens-of-sessions"
why    = "The assistant debugs sign-ins for a month"
rule   = "jwt"
action = "allow"
exception = { owner = "ops@example.org", ticket = "T-7", expires = 2026-12-31 }

[[redact]]
id     = "accounts"
why    = "They have no business here"
class  = "payment"
action = "block"
"""
TODAY, AFTER = date(2026, 12, 1), date(2027, 1, 1)


def text(old: str = "", new: str = "") -> str:
    written = (SHIPPED / "executor-main.toml").read_text()
    assert old in BLOCKS
    return written.replace("\n[limits]", BLOCKS.replace(old, new, 1) + "\n[limits]", 1)


def line_of(part: str, within: str) -> int:
    return within[: within.index(part)].count("\n") + 1


def test_blocks_become_what_the_proxy_is_told_and_it_understands_them() -> None:
    policies = with_change("executor.main", "\n[limits]", BLOCKS + "\n[limits]")
    plans = compiled(policies)
    egress = plans["executor.main"].egress
    assert egress is not None
    whole = text()
    mail, tokens, accounts = egress["redact"]
    assert mail == {
        "id": "mail-addresses", "line": line_of("[[redact]]", whole), "class": "email",
        "action": "pseudonymise", "restore": ["text", "tool-arguments"],
    }  # fmt: skip
    assert (tokens["rule"], tokens["action"], tokens["expires"]) == ("jwt", "allow", "2026-12-31")
    assert (accounts["class"], accounts["action"]) == ("payment", "block")
    book = rules.load()
    config = parse_config(json.dumps(egress_config(plans, HOST)).encode(), frozenset(book.classes))
    treatments = Treatments(book, "w", config.workloads["executor.main"].redact)
    during, after = treatments.of("standard", TODAY), treatments.of("standard", AFTER)
    assert during.actions["email-address"] == "pseudonymise"
    assert during.actions["iban"] == "block"
    assert (during.actions["jwt"], after.actions["jwt"]) == ("allow", "mask")
    assert during.restored["tool-arguments"] == {"email-address"}


def test_digest_tells_policies_apart_by_their_blocks() -> None:
    policies = with_change("executor.main", "\n[limits]", BLOCKS + "\n[limits]")
    other = with_change(
        "executor.main", "\n[limits]", BLOCKS.replace('"block"', '"mask"') + "\n[limits]"
    )
    digests = {compiled(one)["executor.main"].digest for one in (policies, other)}
    assert len(digests) == 2


def test_explain_says_what_becomes_of_what() -> None:
    plan = compiled(with_change("executor.main", "\n[limits]", BLOCKS + "\n[limits]"))
    said = explain(plan["executor.main"])
    assert "class email: pseudonymised, put back in text and tool-arguments" in said
    assert "rule jwt: ALLOWED until 2026-12-31 (exception T-7 of ops@example.org)" in said
    assert "class payment: blocked" in said
    assert explain_json(plan["executor.main"])["egress"]["redact"][2]["action"] == "block"


def test_what_is_allowed_is_a_warning_and_afterwards_an_error(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(SHIPPED, tmp_path / "policies"))
    (copy / "executor-main.toml").write_text(text())
    (finding,) = lint(copy, TODAY)
    assert (finding.severity, finding.error.code) == ("warning", "redaction-relaxed")
    assert (finding.error.rule, finding.error.field) == ("tokens-of-sessions", "redact.action")
    assert finding.error.line == line_of('id     = "tokens-of-sessions"', text()) - 1
    assert exit_code([finding]) == 0
    (finding,) = lint(copy, AFTER)
    assert (finding.severity, finding.error.code) == ("error", "exception-expired")


def test_status_shows_what_is_allowed_while_it_is() -> None:
    policy = changed("executor.main", "\n[limits]", BLOCKS + "\n[limits]")
    (said,) = relaxed(policy, TODAY)
    assert "rule jwt is not redacted until 2026-12-31 (T-7 of ops@example.org)" in said
    assert relaxed(policy, AFTER) == []


MISTAKES = [
    ("keys in use", 'rule   = "jwt"', 'rule   = "live-key"', "bad-value", "redact.rule"),
    ("neither class nor rule", 'rule   = "jwt"\n', "", "one-subject", "redact.class"),
    ("class and rule", 'rule   = "jwt"', 'rule   = "jwt"\nclass = "phone"', "one-subject",
     "redact.class"),
    ("unknown action", '"block"', '"shrug"', "bad-value", "redact.action"),
    ("unknown place", '"tool-arguments"', '"headers"', "bad-value", "redact.restore"),
    ("restore after masking", '"pseudonymise"', '"mask"', "bad-value", "redact.restore"),
    ("allowed for ever", 'exception = { owner = "ops@example.org", ticket = "T-7", '
     'expires = 2026-12-31 }\n', "", "missing-key", "redact.exception"),
    ("an exception without an end", ", expires = 2026-12-31", "", "missing-key",
     "redact.exception.expires"),
    ("an exception to be stricter", '"allow"', '"block"', "bad-value", "redact.exception"),
    ("the same class twice", '"payment"', '"email"', "duplicate-value", "redact.class"),
    ("no reason", '"They have no business here"', '""', "bad-value", "redact.why"),
    ("unknown key", 'action = "block"', 'action = "block"\nscope = "x"', "unknown-key",
     "redact.scope"),
    ("the id of a rule", '"accounts"', '"models"', "duplicate-id", "redact.id"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "code", "field"), [case[1:] for case in MISTAKES], ids=[c[0] for c in MISTAKES]
)
def test_a_mistake_is_named_with_its_place(old: str, new: str, code: str, field: str) -> None:
    policy, errors = parse_policy(text(old, new).encode(), "executor-main.toml")
    assert policy is None
    assert (code, field) in [(error.code, error.field) for error in errors]
    first = line_of("[[redact]]", text())
    assert all(error.line >= first and error.fix for error in errors)


def test_a_preset_that_does_not_exist_is_a_mistake_and_each_that_does_is_none() -> None:
    written = (SHIPPED / "executor-main.toml").read_text()
    for preset in names().presets:
        policy, errors = parse_policy(
            written.replace('"standard"', f'"{preset}"').encode(), "executor-main.toml"
        )
        assert policy is not None, errors
    _, errors = parse_policy(written.replace('"standard"', '"lax"').encode(), "executor-main.toml")
    assert [(error.code, error.field) for error in errors] == [("bad-value", "allow.model.redact")]


def test_blocks_without_a_model_are_a_mistake() -> None:
    policies = with_change("adapter.rest", "\n[limits]", BLOCKS + "\n[limits]")
    assert [(error.code, error.field) for error in mistakes(policies)] == [
        ("unknown-model", "redact")
    ]


@pytest.mark.parametrize(("old", "key"), [('"email"', "class"), ('"jwt"', "rule")])
def test_what_no_rule_file_has_is_a_mistake_and_what_the_host_adds_is_none(
    old: str, key: str, tmp_path: Path
) -> None:
    policies = with_change("executor.main", "\n[limits]", BLOCKS + "\n[limits]")
    assert mistakes(policies) == [], "the control"
    blocks = BLOCKS.replace(old, '"ours"')
    policies = with_change("executor.main", "\n[limits]", blocks + "\n[limits]")
    assert [(e.code, e.field) for e in mistakes(policies)] == [(f"unknown-{key}", f"redact.{key}")]
    (tmp_path / "redaction").mkdir()
    (tmp_path / "redaction" / "own.toml").write_text("[[rule]]\nid = 'ours'\ngroup = 'ours'\n")
    known = names_at(tmp_path)
    assert "ours" in known.rules & known.classes and known.presets == names().presets
    executor = next(policy for policy in policies if policy.id == "executor.main")
    errors: list[PolicyError] = []
    assert plan_redactions(executor, known, errors)
    assert errors == []


def test_names_are_those_of_the_proxy() -> None:
    book = rules.load()
    assert names().rules == {rule.id for rule in book.rules}
    assert names().classes == {rule.group for rule in book.rules}
    assert set(names().presets) == set(book.classes)


@pytest.mark.parametrize("broken", ["x = [", "[[rule]]\nid = 'a'", "rule = 1", ""])
def test_broken_rule_file_is_named(tmp_path: Path, broken: str) -> None:
    (tmp_path / "broken.toml").write_text(broken)
    with pytest.raises(RuleNamesInvalid, match=r"broken\.toml|no presets"):
        names(tmp_path)
    assert redactions.FOLDER.is_dir(), "the control: ours can be read"


def test_rules_of_the_host_travel_to_the_proxy_and_are_bounded(tmp_path: Path) -> None:
    host = dataclasses.replace(HOST, paths=dataclasses.replace(HOST.paths, policies=str(tmp_path)))
    assert "rules" not in egress_config({}, host)
    (tmp_path / "redaction").mkdir()
    (tmp_path / "redaction" / "own.toml").write_text("# none yet\n")
    assert egress_config({}, host)["rules"] == {"own.toml": "# none yet\n"}
    (tmp_path / "redaction" / "large.toml").write_text("#" * 300_000)
    with pytest.raises(RuleNamesInvalid, match="more than 262144 bytes"):
        own_rules(tmp_path)


def test_a_broken_rule_file_of_the_host_is_an_error_of_its_policies(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(SHIPPED, tmp_path / "policies"))
    (copy / "redaction").mkdir()
    (copy / "redaction" / "own.toml").write_text("# none yet")
    assert lint(copy, TODAY) == [], "the control"
    (copy / "redaction" / "own.toml").write_text("[[rule]")
    (finding,) = lint(copy, TODAY)
    assert (finding.severity, finding.error.code) == ("error", "rule-file")
    assert "own.toml" in str(finding)
